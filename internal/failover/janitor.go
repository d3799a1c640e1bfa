package failover

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// A janitor is a second process of the test binary that ends every server and
// removes every file of a run when its standard input ends. The operating system
// closes that input whichever way the tests end, so nothing is left of tests
// that were killed either; frozen servers would otherwise stay for ever.

// janitorEnv makes the test binary a janitor; its value is the folder of the run.
const janitorEnv = "FAILOVER_JANITOR"

// hireJanitor starts the janitor of dir, and returns what lets it do its work.
func hireJanitor(dir string) (clean func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), janitorEnv+"="+dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // out of reach of Ctrl-C
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() error {
		stdin.Close()
		return cmd.Wait()
	}, nil
}

// janitor is the main function of a janitor.
func janitor(dir string) int {
	io.Copy(io.Discard, os.Stdin)
	if err := sweep(dir); err != nil {
		fmt.Fprintln(os.Stderr, "failover: cleaning up:", err)
		return 1
	}
	return 0
}

// sweep ends every process that bears the folder's name, and removes the folder.
func sweep(dir string) (err error) {
	for range 50 { // a process that dies may still write
		if err = kill(filepath.Base(dir)); err == nil {
			err = os.RemoveAll(dir)
		}
		if err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}
