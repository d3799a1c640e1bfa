package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

// A keeper is a second process of this program that starts a server, says where
// it is, and ends it when its standard input ends. The operating system closes
// that input whichever way the first process ends, so a killed testdb leaves
// nothing behind either. The keeper has a session of its own, out of reach of
// the terminal's Ctrl-C, and runs as another user where root may not.

// keeperArg makes the first argument of a keeper; the source follows. The settings,
// which can contain a password, come first on its standard input.
const keeperArg = "-keeper"

// startLimit bounds a start, including the download of an image.
const startLimit = 5 * time.Minute

// report is what a keeper prints when the server is there, or will not be.
type report struct {
	Database *database
	Err      string
}

// startKept starts the source in a keeper.
func (src source) startKept(ctx context.Context, set settings) (*database, error) {
	cmd, err := keeperCommand(src)
	if err != nil {
		return nil, err
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	_ = json.NewEncoder(stdin).Encode(set) // if that fails, so does the report
	giveUp := context.AfterFunc(ctx, func() { stdin.Close() })
	defer giveUp()
	var r report
	if err := json.NewDecoder(stdout).Decode(&r); err != nil {
		r.Err = fmt.Sprintf("the keeper ended without a report: %v", err)
	}
	end := func() {
		stdin.Close()
		kill := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		defer kill.Stop()
		cmd.Wait()
	}
	if r.Err != "" {
		end()
		return nil, errors.New(r.Err)
	}
	r.Database.close = end
	return r.Database, nil
}

func keeperCommand(src source) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, keeperArg, src.name)
	cmd.Dir = "/" // the current one may be closed to another user
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if src.unprivileged && os.Geteuid() == 0 {
		return cmd, dropRoot(cmd)
	}
	return cmd, nil
}

// keep is the main function of a keeper.
func keep(args []string) int {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	var set settings
	err := json.NewDecoder(os.Stdin).Decode(&set)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	var db *database
	if err == nil {
		db, err = startNamed(ctx, args, set)
	}
	r := report{Database: db}
	if err != nil {
		r.Err = err.Error()
	}
	json.NewEncoder(os.Stdout).Encode(r)
	if err != nil {
		return 1
	}
	<-ctx.Done()
	db.close()
	return 0
}

func startNamed(ctx context.Context, args []string, set settings) (*database, error) {
	if len(args) != 1 {
		return nil, fmt.Errorf("a keeper needs a source, not %q", args)
	}
	src, err := sourceNamed(args[0])
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return src.start(ctx, set)
}

// dropRoot makes cmd run as an ordinary user.
func dropRoot(cmd *exec.Cmd) error {
	u, err := ordinaryUser()
	if err != nil {
		return err
	}
	cmd.SysProcAttr.Credential = u.credential
	// Without a home nothing is left in that of a service's account.
	cmd.Env = append(cmd.Environ(), "USER="+u.name, "LOGNAME="+u.name, "HOME=/nonexistent")
	if runtime.GOOS == "linux" {
		// The path may lead through folders that are root's alone.
		cmd.Path = "/proc/self/exe"
	}
	return nil
}
