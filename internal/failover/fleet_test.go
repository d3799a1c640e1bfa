package failover_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/pgidem/idempotency/internal/failover"
)

// A fleet is several processes of clients that ask without a pause.
type fleet struct {
	testing.TB
	processes []*process
	readers   sync.WaitGroup

	mu      sync.Mutex
	answers []answer
}

type process struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
}

const (
	fleetProcesses = 3
	callers        = 8 // in each
)

func launch(p *failover.Pair) *fleet {
	p.Helper()
	f := &fleet{TB: p}
	for i := range fleetProcesses {
		f.start(job{Name: fmt.Sprint("client ", i), DSN: p.DSN(), Callers: callers})
	}
	return f
}

func (f *fleet) start(j job) {
	f.Helper()
	task, err := json.Marshal(j)
	if err != nil {
		f.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), workerEnv+"="+string(task))
	cmd.Stderr = os.Stderr
	stdin, errIn := cmd.StdinPipe()
	stdout, errOut := cmd.StdoutPipe()
	if err := errors.Join(errIn, errOut); err != nil {
		f.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		f.Fatal(err)
	}
	ended := make(chan struct{})
	f.Cleanup(func() {
		cmd.Process.Kill()
		<-ended // not those of the other processes, which are killed later
		cmd.Wait()
	})
	f.processes = append(f.processes, &process{cmd, stdin})
	f.readers.Go(func() {
		defer close(ended)
		f.read(stdout)
	})
}

func (f *fleet) read(stdout io.Reader) {
	in := json.NewDecoder(stdout)
	for {
		var a answer
		if in.Decode(&a) != nil {
			return // the process has ended, or was killed after a failure
		}
		f.mu.Lock()
		f.answers = append(f.answers, a)
		f.mu.Unlock()
	}
}

func (f *fleet) answered() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.answers)
}

// progress waits until the clients have n more answers.
func (f *fleet) progress(n int) {
	f.Helper()
	n += f.answered()
	for end := time.Now().Add(patience); f.answered() < n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			f.Fatalf("no %d answers within %v", n, patience)
		}
	}
}

// end lets each client finish its call.
func (f *fleet) end() []answer {
	f.Helper()
	for _, p := range f.processes {
		io.WriteString(p.stdin, "end\n")
	}
	f.readers.Wait()
	for _, p := range f.processes {
		if err := p.cmd.Wait(); err != nil {
			f.Error("a process of clients: ", err)
		}
	}
	return f.answers
}
