package link

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// A Process is a Proxy in a process of its own, so that what it does is not done
// by the scheduler and the garbage collector of the process that is measured.
type Process struct {
	Address string
	cmd     *exec.Cmd
	stdin   io.WriteCloser
}

// ProcessArg is the first argument of a process that has to call Main.
const ProcessArg = "link"

// Start starts this program again as a proxy.
func Start(network, address string, delay time.Duration) (*Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, ProcessArg, "-network", network, "-address", address, "-delay", delay.String())
	cmd.Stderr = os.Stderr
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
	p := &Process{cmd: cmd, stdin: stdin}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("the link's process ended: %w", err)
	}
	p.Address = strings.TrimSpace(line)
	return p, nil
}

// Close ends the process.
func (p *Process) Close() {
	p.stdin.Close()
	p.cmd.Wait()
}

// Main is the process of Start: it prints its address, and ends with its
// standard input, which the system closes when the parent is gone.
func Main(args []string) error {
	flags := flag.NewFlagSet(ProcessArg, flag.ContinueOnError)
	network := flags.String("network", "tcp", "of the server")
	address := flags.String("address", "", "of the server")
	delay := flags.Duration("delay", 0, "each way")
	if err := flags.Parse(args); err != nil {
		return err
	}
	p, err := Listen(*network, *address, *delay)
	if err != nil {
		return err
	}
	defer p.Close()
	fmt.Println(p.Address())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
