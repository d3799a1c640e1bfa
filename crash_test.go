package idempotency_test

import (
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
)

// A step is a moment in a call, as seen on the wire between it and the server.
type step struct {
	name    string
	at      func(pgproxy.Message) bool
	commits bool // what the process has sent by then contains its COMMIT
}

// steps are in the order of a first call. Each test needs its own: they count.
func steps() []step {
	return []step{
		{"before the claim", bound(claimText), false},
		{"after the claim", answered("INSERT 0 1", 1), false},
		{"inside the function", answered("INSERT 0 1", 2), false},
		{"before the record", bound("with recorded"), true},
		{"between record and commit", bound("commit"), true},
		{"after the commit, before the answer", answered("COMMIT", 1), true},
	}
}

// unqualified takes the schema and the quotes out of the name of the table.
var unqualified = strings.NewReplacer(`"public".`, "", `"`, "")

// sent matches the messages that have the text in their SQL.
func sent(text string) func(pgproxy.Message) bool {
	return func(m pgproxy.Message) bool {
		return !m.FromServer && strings.Contains(unqualified.Replace(m.SQL), text)
	}
}

// bound matches a statement that is to be executed, and not only prepared. In the
// simple protocol it is one message with all others of its round trip.
func bound(text string) func(pgproxy.Message) bool {
	matches := sent(text)
	return func(m pgproxy.Message) bool { return (m.Type == 'B' || m.Type == 'Q') && matches(m) }
}

// answered matches the nth answer with a tag.
func answered(tag string, nth int64) func(pgproxy.Message) bool {
	var seen atomic.Int64
	return func(m pgproxy.Message) bool {
		return m.FromServer && m.Tag == tag && seen.Add(1) == nth
	}
}

// crash runs a worker behind a proxy and sends it a signal at a step.
func (b *bundle) crash(s step, signal syscall.Signal, verdict pgproxy.Verdict, maxIdle time.Duration) *process {
	b.Helper()
	_, proxy := b.through(idempotency.Config{})
	var worker atomic.Pointer[process]
	reached := make(chan struct{})
	var once atomic.Bool
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if !s.at(m) || !once.CompareAndSwap(false, true) {
			return pgproxy.Pass
		}
		for worker.Load() == nil {
			time.Sleep(time.Millisecond)
		}
		worker.Load().signal(signal)
		close(reached)
		return verdict
	})
	worker.Store(b.spawn(job{Port: proxy.Port(), Amount: 1, Callers: 1, MaxIdle: maxIdle}))
	select {
	case <-reached:
	case <-time.After(20 * time.Second):
		b.Fatal("the worker never reached the step")
	}
	return worker.Load()
}

// signal returns when the process has stopped: on a busy machine, some of its
// threads can run on for a while after SIGSTOP.
func (p *process) signal(signal syscall.Signal) {
	if err := p.cmd.Process.Signal(signal); err != nil {
		p.Error(err)
	}
	if signal == syscall.SIGSTOP {
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(p.cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
			p.Errorf("not stopped: %v, %v", status, err)
		}
	}
}

// ends checks what the next call gets after a call that did, or did not commit.
func (b *bundle) ends(committed bool) {
	b.Helper()
	start := time.Now()
	if committed {
		b.replays(1)
	} else {
		b.executes(2)
	}
	b.Logf("the next call had its answer after %v", time.Since(start).Round(time.Millisecond))
	b.effects(1)
}

func TestKilledAtEveryStepTheNextCallGetsOneEffect(t *testing.T) {
	t.Parallel()
	for _, s := range steps() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			b.crash(s, syscall.SIGKILL, pgproxy.Drop, 0)
			b.ends(s.name == "after the commit, before the answer")
		})
	}
}

// What a frozen process has handed to the kernel still arrives.
func TestFrozenAtEveryStepTheNextCallGetsOneEffectAndTheThawedOneNone(t *testing.T) {
	t.Parallel()
	for _, s := range steps() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			p := b.crash(s, syscall.SIGSTOP, pgproxy.Pass, 500*time.Millisecond)
			b.ends(s.commits)
			p.signal(syscall.SIGCONT)
			want := 2
			if s.commits {
				want = 1
			}
			// A function that is told of the fence by its own statement returns
			// that error; else the call asks, and gets the result.
			if r := p.report(); !strings.Contains(r.Err, "25P03") && (r.Err != "" || r.Value != want) {
				t.Errorf("the thawed process got %+v, want %d", r, want)
			}
			b.effects(1)
		})
	}
}
