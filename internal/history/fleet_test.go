package history

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgidem/idempotency/internal/history/journal"
	"github.com/pgidem/idempotency/internal/pgproxy"
)

// A fleet is the worker processes of one history. There is always one in each
// berth, until the fleet is stopped.
type fleet struct {
	*testing.T
	program  string
	journals string // a folder
	url      string
	keys     []string
	percent  int // of the calls are of QueryRow
	berths   []*berth
}

// A berth is the place of one process at a time, with a proxy of its own.
type berth struct {
	fleet *fleet
	name  string
	proxy *pgproxy.Proxy

	mu      sync.Mutex
	process *process
	started int // processes so far
}

type process struct {
	*exec.Cmd
	stop io.Closer // its standard input
}

const (
	processes = 4
	callers   = 8 // in each process
	hotKeys   = 4
	maxIdle   = 200 * time.Millisecond

	statements = 25 // of a hundred calls
)

// newFleet starts a process behind each of the proxies.
func newFleet(t *testing.T, program, url string, statements int, proxies []*pgproxy.Proxy) *fleet {
	f := &fleet{T: t, program: program, journals: t.TempDir(), url: url, percent: statements}
	for i := range hotKeys {
		f.keys = append(f.keys, fmt.Sprintf("key-%d", i+1))
	}
	t.Cleanup(f.kill)
	for i, proxy := range proxies {
		b := &berth{fleet: f, name: string(rune('A' + i)), proxy: proxy}
		f.berths = append(f.berths, b)
		b.start()
	}
	return f
}

// start starts the berth's next process.
func (b *berth) start() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.started++
	name := fmt.Sprintf("%s%d", b.name, b.started)
	job, err := json.Marshal(journal.Job{
		Process: name,
		Journal: filepath.Join(b.fleet.journals, name),
		URL:     b.fleet.url,
		Port:    b.proxy.Port(),
		Keys:    b.fleet.keys,
		Callers: callers,

		Statements: b.fleet.percent,

		// Short enough for many generations, and for commits that are in doubt
		// until their record has expired.
		Retention: 20 * time.Millisecond << rand.N(5),
		MaxIdle:   maxIdle,
		Wait:      rand.N(2 * time.Second),
	})
	if err != nil {
		b.fleet.Error(err)
		return
	}
	cmd := exec.Command(b.fleet.program, string(job))
	cmd.Stderr = os.Stderr
	// In a process group of its own, which loses its parent with this process:
	// the kernel then continues and hangs up a worker that is stopped.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stop, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.fleet.Error(err)
		return
	}
	b.process = &process{cmd, stop}
}

func (b *berth) current() *process {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.process
}

// trips is the number of round trips that the processes have made so far.
func (f *fleet) trips() (n int) {
	for _, b := range f.berths {
		n += int(b.proxy.RoundTrips())
	}
	return n
}

// makes waits until n more round trips were made, and reports whether ctx lasted
// longer.
func (f *fleet) makes(ctx context.Context, n int) bool {
	for end := f.trips() + n; f.trips() < end; {
		if !sleep(ctx, 5*time.Millisecond) {
			return false
		}
	}
	return ctx.Err() == nil
}

// stopBound is how long the calls under way may take when all faults are over: a
// minute in COMMIT and half of one in doubt, at worst.
const stopBound = 2 * time.Minute

// stop lets every process finish its calls and end. Afterwards no transaction of
// the fleet can begin to commit.
func (f *fleet) stop() {
	f.Helper()
	for _, b := range f.berths {
		b.current().stop.Close()
	}
	for _, b := range f.berths {
		p := b.current()
		hung := time.AfterFunc(stopBound, func() {
			f.Errorf("a call of process %s does not end: its goroutines are on the standard error", b.name)
			p.Process.Signal(syscall.SIGQUIT)
		})
		if err := p.Wait(); err != nil {
			f.Errorf("process %s: %v", b.name, err)
		}
		hung.Stop()
		b.proxy.CutAll() // what faults have left half open
	}
}

// kill ends what a test that has failed leaves behind.
func (f *fleet) kill() {
	for _, b := range f.berths {
		if p := b.current(); p != nil {
			p.Process.Kill()
			p.Wait()
		}
	}
}

// calls reads the journals of all processes that ever were.
func (f *fleet) calls() (calls []journal.Call) {
	f.Helper()
	entries, err := os.ReadDir(f.journals)
	if err != nil {
		f.Fatal(err)
	}
	for _, entry := range entries {
		of, err := journal.Read(filepath.Join(f.journals, entry.Name()))
		if err != nil {
			f.Fatal(err)
		}
		calls = append(calls, of...)
	}
	return calls
}
