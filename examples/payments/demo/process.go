package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// ChildCommand begins the command line of a process that must not outlive the demo.
const ChildCommand = "for-the-demo"

// WhileParentLives returns a context that ends, at the latest, when the parent
// does, however it dies: then the pipe to standard input is closed.
func WhileParentLives(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel(errors.New("the demo has ended"))
	}()
	return ctx
}

// A process is one of the service, or the card provider.
type process struct {
	name    string // application_name
	flags   []string
	cmd     *exec.Cmd
	in      io.Closer
	address string // host:port

	logs  []string      // its last lines; to be read when ended is closed
	ended chan struct{} // its output has come to an end
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// startProcess starts one of the service and waits until it is ready.
func (d *demo) startProcess(ctx context.Context, name string, flags []string) (*process, error) {
	p := d.newProcess(ctx, append([]string{"serve", "-examples", "-provider", d.cards.url()}, flags...)...)
	p.name, p.flags = name, flags
	p.cmd.Env = append(os.Environ(), "DATABASE_URL="+d.server.urlFor(d.database, name))
	if err := p.start(); err != nil {
		return nil, err
	}
	return p, p.ready(ctx)
}

func (d *demo) newProcess(ctx context.Context, command ...string) *process {
	p := &process{ended: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, d.program, append([]string{ChildCommand}, append(command, "-addr", "127.0.0.1:0")...)...)
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = limit
	return p
}

// start waits until the process listens.
func (p *process) start() error {
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return err
	}
	logs, err := p.cmd.StderrPipe()
	if err != nil {
		return err
	}
	p.in = in
	if err := p.cmd.Start(); err != nil {
		return err
	}
	address := make(chan string, 1)
	go p.read(logs, address)
	select {
	case p.address = <-address:
		return nil
	case <-p.ended:
		p.cmd.Wait()
		return fmt.Errorf("%s has not started: %s", p.cmd.Args[2], p.lastWords())
	}
}

// read follows the log, in which the address is.
func (p *process) read(out io.Reader, address chan<- string) {
	defer close(p.ended)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		p.logs = append(p.logs[max(0, len(p.logs)-9):], lines.Text())
		var entry struct{ Msg, Address string }
		if json.Unmarshal(lines.Bytes(), &entry) == nil && entry.Msg == "listening" {
			address <- entry.Address
		}
	}
}

func (p *process) lastWords() string { return strings.Join(p.logs, "\n") }

func (p *process) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+p.address+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the service is not ready: %s", resp.Status)
	}
	return nil
}

// kill is kill -9: the process can neither roll back nor say goodbye.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil {
		return err
	}
	<-p.ended
	if exit, ok := errors.AsType[*exec.ExitError](p.cmd.Wait()); !ok || exit.Exited() {
		return fmt.Errorf("process %d should have been killed, and ended with %v", p.pid(), p.cmd.ProcessState)
	}
	return nil
}

// stop asks the process to end, and makes sure that it did so in good order.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	<-p.ended
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("process %d did not end well: %w: %s", p.pid(), err, p.lastWords())
	}
	return nil
}

// A fleet is the two processes of the service.
type fleet [2]*process

// start starts both, at once: they may well migrate at the same time.
func (d *demo) start(ctx context.Context, flags []string) error {
	var errs [2]error
	done := make(chan int)
	for i := range d.fleet {
		go func() {
			d.fleet[i], errs[i] = d.startProcess(ctx, fmt.Sprintf("payments-%d", i+1), flags)
			done <- i
		}()
	}
	<-done
	<-done
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	d.proxy.send(d.fleet[0].address, d.fleet[1].address)
	return nil
}

// restart starts one that was killed, with more flags.
func (d *demo) restart(ctx context.Context, i int, flags ...string) error {
	p, err := d.startProcess(ctx, d.fleet[i].name, append(slices.Clone(d.fleet[i].flags), flags...))
	if err != nil {
		return err
	}
	d.fleet[i] = p
	d.proxy.send(d.fleet[0].address, d.fleet[1].address)
	return nil
}

func (f *fleet) stop() error {
	var errs []error
	for i, p := range f {
		errs = append(errs, p.stop())
		f[i] = nil
	}
	return errors.Join(errs...)
}

// kill ends what still runs.
func (f *fleet) kill() {
	for _, p := range f {
		if p != nil && p.cmd.ProcessState == nil {
			_ = p.kill()
		}
	}
}

// until asks again and again until it is so.
func until(ctx context.Context, what string, so func() (bool, error)) error {
	for {
		done, err := so()
		if err != nil || done {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w", what, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}
