package main

import (
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/term"
)

// runCommand runs the command with DATABASE_URL set, passes it the signals, and
// returns its exit code: 128 and the signal's number if it died of one, as a shell
// has it.
func runCommand(args []string, dir string, db *database, signals <-chan os.Signal) (int, error) {
	if err := os.Chdir(dir); err != nil { // so that ./command is looked up there
		return exitFailed, err
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir // sets PWD
	cmd.Env = append(cmd.Environ(), "DATABASE_URL="+db.URL, "DATABASE_URL_DIRECT="+db.Direct)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// A command like "go test" does not pass on signals, so its whole process
	// group gets them. In a terminal it must stay in ours to be able to read.
	grouped := !term.IsTerminal(int(os.Stdin.Fd()))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: grouped}
	dieWithParent(cmd.SysProcAttr, syscall.SIGKILL)
	if err := cmd.Start(); err != nil {
		return exitFailed, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		cmd.Wait()
	}()
	for {
		select {
		case <-done:
			return exitCode(cmd.ProcessState), nil
		case sig := <-signals:
			forward(cmd.Process.Pid, sig, grouped)
		}
	}
}

func forward(pid int, sig os.Signal, grouped bool) {
	switch {
	case grouped:
		syscall.Kill(-pid, sig.(syscall.Signal))
	case sig == os.Interrupt:
		// The terminal has sent it to the command, too.
	default:
		syscall.Kill(pid, sig.(syscall.Signal))
	}
}

func exitCode(state *os.ProcessState) int {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}

// terminateWithParent sends us SIGTERM when the process that started us is gone:
// "go run" does not pass that signal on, it just ends.
func terminateWithParent() {
	parent := os.Getppid()
	for os.Getppid() == parent {
		time.Sleep(200 * time.Millisecond)
	}
	syscall.Kill(os.Getpid(), syscall.SIGTERM)
}
