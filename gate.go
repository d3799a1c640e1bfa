package idempotency

import (
	"container/list"
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"
)

// A gate is the mutex per key of this process. For each key one goroutine, the
// leader, talks to PostgreSQL; the others wait here, in order of arrival and
// without a connection, and get the leader's answer without a query. It stands
// before the pool: duplicates that wait for a connection, even only to be
// turned away, make every other caller of the pool wait behind them.
//
// The gate saves work and decides nothing: between processes, and between
// Stores, the unique index is the judge.
type gate struct {
	mu      sync.Mutex
	flights map[gateKey]*flight
}

// maxWaiting is how many calls wait here for one key at most. Each keeps what its
// caller has in its hands, such as the body of a request, and no client repeats a
// request so often: it is 1.5 times the largest storm of duplicates that
// docs/benchmarks.md measures.
const maxWaiting = 15_000

type gateKey struct{ scope, id string }

// knowledge is what the leader knows about its key.
type knowledge int

const (
	asking    knowledge = iota // nothing yet, or it is replaying
	owning                     // it holds the key's row
	elsewhere                  // a call outside this gate holds the key
)

// A flight is a key at which somebody is at work. Guarded by gate.mu.
type flight struct {
	known       knowledge
	fingerprint Fingerprint // the leader's
	waiters     list.List   // of *waiter, first come first served
	arrivals    uint64      // waiters that ever joined
	sealed      uint64      // arrivals when the leader's statement was sent
	first       lead        // the first leader's, allocated with the flight
}

type waiter struct {
	fingerprint Fingerprint
	impatient   bool
	arrival     uint64
	place       *list.Element // nil once its reply is on the way; guarded by gate.mu
	reply       chan reply    // holds one, so that sending never blocks
}

// A reply ends a wait: with an answer, an error, or the lead.
type reply struct {
	lead   *lead
	answer *answer
	err    error

	chain *chain // whose next one is to be woken
}

// enter returns the lead of key, or what its leader found while the caller waited.
// Patience bounds the wait with ErrInProgress; when it is negative, the caller is
// turned away as soon as somebody is known to hold the key, and waits only for a
// leader that is still asking. Where maxWaiting wait, it is turned away at once.
func (g *gate) enter(ctx context.Context, key Key, patience time.Duration) (*lead, *answer, error) {
	g.mu.Lock()
	at := gateKey{key.Scope, key.ID}
	f := g.flights[at]
	if f == nil {
		if g.flights == nil {
			g.flights = make(map[gateKey]*flight)
		}
		f = &flight{fingerprint: key.Fingerprint}
		f.first = lead{gate: g, at: at, flight: f}
		g.flights[at] = f
		g.mu.Unlock()
		return &f.first, nil, nil
	}
	w := &waiter{fingerprint: key.Fingerprint, impatient: patience < 0, reply: make(chan reply, 1)}
	err := f.refusal(w)
	if err == nil && f.waiters.Len() >= maxWaiting {
		err = fmt.Errorf("%w: %d calls wait for it in this process", ErrInProgress, maxWaiting)
	}
	if err != nil {
		g.mu.Unlock()
		return nil, nil, err
	}
	f.join(w)
	g.mu.Unlock()

	r := g.wait(ctx, f, w, patience)
	if r.lead != nil && ctx.Err() != nil {
		r.lead.leave()
		return nil, nil, leftWaiting(ctx)
	}
	return r.lead, r.answer, r.err
}

func (g *gate) wait(ctx context.Context, f *flight, w *waiter, patience time.Duration) reply {
	var bound <-chan time.Time
	if !w.impatient {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		bound = timer.C
	}
	var err error
	select {
	case r := <-w.reply:
		return r.passOn()
	case <-ctx.Done():
		err = leftWaiting(ctx)
	case <-bound:
		err = ErrInProgress
	}
	if !g.leaveQueue(f, w) {
		// The reply came first. It may be the lead, which must not be lost. It is not
		// waited for under the mutex: its sender may itself be waiting for the mutex.
		return (<-w.reply).passOn()
	}
	return reply{err: err}
}

// leaveQueue reports whether w was still in the queue.
func (g *gate) leaveQueue(f *flight, w *waiter) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.place == nil {
		return false
	}
	f.remove(w)
	return true
}

func leftWaiting(ctx context.Context) error {
	return fmt.Errorf("idempotency: waiting for the call in flight: %w", ctx.Err())
}

func (f *flight) join(w *waiter) {
	f.arrivals++
	w.arrival = f.arrivals
	w.place = f.waiters.PushBack(w)
}

func (f *flight) dismiss(w *waiter, r reply) {
	f.remove(w)
	w.reply <- r
}

// remove takes w out of the queue. The caller must then send w a reply, unless w has
// left by itself, or w waits for ever.
func (f *flight) remove(w *waiter) {
	f.waiters.Remove(w.place)
	w.place = nil
}

// refusal says why w cannot wait for what the leader is doing. A fingerprint is
// compared only with a leader that owns the row: one that is itself replaying,
// or was sent with the wrong request, must not answer for the key.
func (f *flight) refusal(w *waiter) error {
	switch {
	case f.known == owning && f.fingerprint != w.fingerprint:
		return ErrKeyReused
	case f.known != asking && w.impatient:
		return ErrInProgress
	}
	return nil
}

// A lead is the right to talk to PostgreSQL about one key. It ends with leave.
type lead struct {
	gate   *gate
	at     gateKey
	flight *flight
}

// seal is called right before a statement whose answer is to be shared is
// sent. Waiters that come later ask for themselves, else they could be given a
// value that was deleted before they called.
func (l *lead) seal() {
	l.gate.mu.Lock()
	defer l.gate.mu.Unlock()
	l.flight.sealed = l.flight.arrivals
}

// know tells the waiters what the leader has learned, and turns away those that will
// not wait for that.
func (l *lead) know(k knowledge) {
	l.gate.mu.Lock()
	defer l.gate.mu.Unlock()
	if l.flight.known == k {
		return
	}
	l.flight.known = k
	l.flight.each(func(w *waiter) {
		if err := l.flight.refusal(w); err != nil {
			l.flight.dismiss(w, reply{err: err})
		}
	})
}

// share gives the answer to the waiters that came before the seal.
func (l *lead) share(a *answer) {
	due := l.due()
	chains := runtime.GOMAXPROCS(0)
	share := (len(due) + chains - 1) / chains
	for waiters := range slices.Chunk(due, max(share, 1)) {
		(&chain{answer: a, waiters: waiters}).begin()
	}
}

// due takes those waiters out of the queue.
func (l *lead) due() (due []*waiter) {
	l.gate.mu.Lock()
	defer l.gate.mu.Unlock()
	l.flight.each(func(w *waiter) {
		if w.arrival <= l.flight.sealed {
			l.flight.remove(w)
			due = append(due, w)
		}
	})
	return due
}

// A chain of waiters is woken one by the other: ten thousand at once would stand
// before every other goroutine of the process, those of other keys among them. No
// mutex guards it: only the waiter that was woken last may touch it, or the timer
// that ends its rest.
type chain struct {
	answer  *answer
	waiters []*waiter // that still sleep
	since   time.Time // it goes on without a rest
}

const (
	// stint is how long a chain goes on without a rest. The scheduler looks for
	// answers from the network only when it has nothing to run (or after 10 ms).
	stint = time.Millisecond

	// rest is how long a chain then leaves the processor to others.
	rest = time.Millisecond
)

// begin begins a stint.
func (c *chain) begin() {
	c.since = time.Now()
	c.wake()
}

// wake wakes the next one.
func (c *chain) wake() {
	if len(c.waiters) > 0 {
		next := c.waiters[0]
		c.waiters = c.waiters[1:]
		next.reply <- reply{answer: c.answer, chain: c}
	}
}

// passOn is called by the one who was woken, before anything else.
func (r reply) passOn() reply {
	if c := r.chain; c != nil {
		if time.Since(c.since) < stint {
			c.wake()
		} else if len(c.waiters) > 0 {
			time.AfterFunc(rest, c.begin)
		}
	}
	return r
}

// leave hands the lead to the waiter that has waited longest.
func (l *lead) leave() {
	l.gate.mu.Lock()
	defer l.gate.mu.Unlock()
	f := l.flight
	first := f.waiters.Front()
	if first == nil {
		delete(l.gate.flights, l.at)
		return
	}
	w := first.Value.(*waiter)
	f.known = asking
	f.fingerprint = w.fingerprint
	f.dismiss(w, reply{lead: &lead{gate: l.gate, at: l.at, flight: f}})
}

func (f *flight) each(visit func(*waiter)) {
	for e := f.waiters.Front(); e != nil; {
		next := e.Next()
		visit(e.Value.(*waiter))
		e = next
	}
}
