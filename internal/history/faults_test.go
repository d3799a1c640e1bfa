package history

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgproxy"
)

// A fault is a kind of bad luck.
type fault string

const (
	killed      fault = "processes killed"
	frozen      fault = "processes frozen"
	terminated  fault = "backends terminated"
	outages     fault = "outages of the network"
	cut         fault = "links cut"
	halfOpen    fault = "links half open"
	lostCancels fault = "requests to cancel lost"
	late        fault = "messages delayed"
	unsent      fault = "COMMITs cut before the server"
	unanswered  fault = "COMMITs cut after the server"
	lostAnswers fault = "answers to COMMIT lost"
	lateAnswers fault = "answers to COMMIT delayed"
	lateGuards  fault = "guards of statements delayed"
)

var allFaults = []fault{
	killed, frozen, terminated, outages, cut, halfOpen, lostCancels, late,
	unsent, unanswered, lostAnswers, lateAnswers, lateGuards,
}

// faults are injected at random moments while a fleet is at work.
type faults struct {
	fleet *fleet
	pool  *pgxpool.Pool // of the driver

	mu     sync.Mutex
	counts map[fault]int
}

func (f *faults) count(kind fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts[kind]++
}

// inject breaks things until the fleet has made the given number of round trips,
// or the bound is over. Afterwards nothing is broken.
//
// Round trips are the clock of what happens at random, so that a slow machine
// sees the same history as a fast one, and not all faults and no calls.
func (f *faults) inject(trips int, bound time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	for _, b := range f.fleet.berths {
		b.proxy.SetRule(f.badLink())
	}
	var wg sync.WaitGroup
	for _, source := range []struct {
		every  int // round trips, on average
		strike func(context.Context, *berth)
	}{
		{1000, f.kill},
		{1000, f.freeze},
		{1500, f.outage},
		{80, f.terminate},
	} {
		wg.Go(func() {
			for f.fleet.makes(ctx, rand.IntN(2*source.every)) {
				source.strike(ctx, f.fleet.berths[rand.IntN(processes)])
			}
		})
	}
	f.fleet.makes(ctx, trips)
	cancel()
	wg.Wait()
	for _, b := range f.fleet.berths {
		b.proxy.SetRule(nil)
	}
}

// sleep reports whether ctx lasted longer.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func (f *faults) kill(_ context.Context, b *berth) {
	p := b.current()
	p.Process.Kill()
	p.Wait()
	f.count(killed)
	b.start()
}

// freeze stops a process for up to twice its MaxIdle.
func (f *faults) freeze(ctx context.Context, b *berth) {
	p := b.current()
	if p.Process.Signal(syscall.SIGSTOP) != nil {
		return // killed just now
	}
	f.count(frozen)
	sleep(ctx, rand.N(2*maxIdle))
	p.Process.Signal(syscall.SIGCONT)
}

// outage cuts a process off from the server, new connections included, for longer
// than some records live.
func (f *faults) outage(ctx context.Context, b *berth) {
	f.count(outages)
	b.proxy.SetRule(func(pgproxy.Message) pgproxy.Verdict { return pgproxy.Drop })
	sleep(ctx, rand.N(400*time.Millisecond))
	b.proxy.SetRule(f.badLink())
}

const terminateSQL = `
select count(pg_terminate_backend(pid)) from (
	select pid from pg_stat_activity
	where datname = current_database() and backend_type = 'client backend'
		and application_name <> current_setting('application_name')
	order by state = 'idle', random()
	limit 1) victim`

// terminate ends a backend, one that is at work if there is one.
func (f *faults) terminate(ctx context.Context, _ *berth) {
	var n int
	if err := f.pool.QueryRow(ctx, terminateSQL).Scan(&n); err == nil && n > 0 {
		f.count(terminated)
	}
}

// badLink returns a rule for one proxy.
func (f *faults) badLink() pgproxy.Rule {
	var commitBound atomic.Bool // the Sync of a COMMIT, or of what commits by itself, comes next
	var guardBound atomic.Bool  // the execution of a guard comes next
	return func(m pgproxy.Message) pgproxy.Verdict {
		switch {
		case m.Type == pgproxy.CancelRequest && !m.FromServer:
			return f.one(lostCancels, 0.5, pgproxy.Drop)
		case m.Type == 'B' && (m.SQL == "commit" || isShot(m.SQL)):
			if verdict := f.one(unsent, 0.03, pgproxy.Drop); verdict != pgproxy.Pass {
				return verdict
			}
			commitBound.Store(true)
		case m.Type == 'Q' && m.SQL == "commit": // of a transaction with a DoTx or a Delete
			return f.one(unanswered, 0.1, pgproxy.CutClient, pgproxy.PassAndCut)
		case m.Type == 'S' && !m.FromServer && commitBound.CompareAndSwap(true, false):
			return f.one(unanswered, 0.1, pgproxy.CutClient, pgproxy.PassAndCut)
		case m.FromServer && m.Tag == "COMMIT":
			if chance(0.3) { // long enough for many records to expire meanwhile
				f.count(lateAnswers)
				time.Sleep(rand.N(400 * time.Millisecond))
			}
			return f.one(lostAnswers, 0.04, pgproxy.Drop, pgproxy.PassAndCut)
		}
		if m.Type == 'B' && isGuard(m.SQL) {
			guardBound.Store(true)
		} else if !m.FromServer && guardBound.CompareAndSwap(true, false) && chance(0.3) {
			// It is bound, which fixes what it sees, and not yet executed, which takes the
			// lock: long enough for the call that has the key to commit meanwhile.
			f.count(lateGuards)
			time.Sleep(rand.N(400 * time.Millisecond))
		}
		if chance(0.03) {
			f.count(late)
			time.Sleep(rand.N(15 * time.Millisecond))
		}
		if m.Type == 'S' && !m.FromServer {
			// Here the server has all that was sent and waits for the next
			// statement: the silence that MaxIdle ends. In the middle of a batch
			// PostgreSQL does not take silence for idleness.
			if verdict := f.one(halfOpen, 0.005, pgproxy.CutClient); verdict != pgproxy.Pass {
				return verdict
			}
		}
		return f.one(cut, 0.001, pgproxy.Drop, pgproxy.PassAndCut)
	}
}

// isShot: an operation of QueryRow with its record.
func isShot(sql string) bool { return strings.Contains(sql, "idempotency_record as (") }

// isGuard: what goes before it. It tells taken keys by this sentence.
func isGuard(sql string) bool {
	return strings.Contains(sql, "this call goes on by another guard")
}

// one returns one of the verdicts with the given probability.
func (f *faults) one(kind fault, probability float64, verdicts ...pgproxy.Verdict) pgproxy.Verdict {
	if !chance(probability) {
		return pgproxy.Pass
	}
	f.count(kind)
	return verdicts[rand.IntN(len(verdicts))]
}

func chance(p float64) bool { return rand.Float64() < p }

func (f *faults) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []string
	for kind, n := range f.counts {
		lines = append(lines, fmt.Sprintf("%d %s", n, kind))
	}
	slices.Sort(lines)
	return strings.Join(lines, ", ")
}
