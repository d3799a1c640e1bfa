package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// A daemon is a server that was started from a binary on this machine, with all
// its files in one temporary folder.
type daemon struct {
	dir    string
	log    *os.File
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended
}

func newDaemon() (*daemon, error) {
	dir, err := os.MkdirTemp("", "testdb-")
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "server.log"))
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return &daemon{dir: dir, log: log}, nil
}

// start tries ports until the server of one of them answers, and returns the
// PostgreSQL version that it answers with.
func (d *daemon) start(ctx context.Context, command func(port string) (*exec.Cmd, error), url func(port string) string) (port, version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for range 3 { // somebody else may get to the free port first
		port, version, err = d.try(ctx, command, url)
		if err == nil {
			break
		}
		d.stop()
		if ctx.Err() != nil {
			break
		}
	}
	return port, version, err
}

func (d *daemon) try(ctx context.Context, command func(port string) (*exec.Cmd, error), url func(port string) string) (port, version string, err error) {
	if port, err = freePort(); err != nil {
		return "", "", err
	}
	cmd, err := command(port)
	if err != nil {
		return "", "", err
	}
	version, err = d.launch(ctx, cmd, url(port))
	return port, version, err
}

// launch starts the server and waits until it answers.
func (d *daemon) launch(ctx context.Context, cmd *exec.Cmd, url string) (version string, err error) {
	// An immediate shutdown, should even the keeper be killed.
	dieWithParent(cmd.SysProcAttr, syscall.SIGQUIT)
	if err := cmd.Start(); err != nil {
		return "", err
	}
	d.cmd, d.exited = cmd, make(chan struct{})
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		cmd.Wait()
		cancel(fmt.Errorf("%s ended", filepath.Base(cmd.Path)))
		close(d.exited)
	}()
	return waitReady(ctx, url)
}

// command prepares a command with its output in the log.
func (d *daemon) command(path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = d.log, d.log
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	return cmd
}

// stop ends the server without a last checkpoint: nobody needs the data.
func (d *daemon) stop() {
	if d.cmd == nil || d.cmd.Process == nil {
		return
	}
	d.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-d.exited:
	case <-time.After(20 * time.Second):
		d.cmd.Process.Kill()
		<-d.exited
	}
	d.cmd = nil
}

func (d *daemon) close() {
	d.stop()
	d.log.Close()
	if err := os.RemoveAll(d.dir); err != nil {
		fmt.Fprintln(os.Stderr, "testdb:", err)
	}
}

// fail closes a daemon that does not start, and adds the end of its log to the
// reason.
func (d *daemon) fail(err error) error {
	output, _ := os.ReadFile(d.log.Name())
	d.close()
	return fmt.Errorf("%w%s", err, tail(output))
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}
