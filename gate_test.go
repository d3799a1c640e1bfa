package idempotency

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A gateTest drives one gate by hand; nothing here needs a database.
type gateTest struct {
	*testing.T
	gate gate
}

var theKey = Key{Scope: "s", ID: "1"}

func (g *gateTest) enter(key Key, patience time.Duration) (*lead, *answer, error) {
	return g.gate.enter(g.Context(), key, patience)
}

func (g *gateTest) lead() *lead {
	g.Helper()
	l, rec, err := g.enter(theKey, 0) // else it waits for a lead that is lost
	if l == nil {
		g.Fatalf("not the leader: %v, %v", rec, err)
	}
	return l
}

// follow starts a waiter and returns when it is in the queue.
func (g *gateTest) follow(key Key, patience time.Duration) <-chan reply {
	g.Helper()
	g.gate.mu.Lock()
	before := g.gate.flights[gateKey{key.Scope, key.ID}].arrivals
	g.gate.mu.Unlock()
	ended := make(chan reply, 1)
	go func() {
		lead, rec, err := g.enter(key, patience)
		ended <- reply{lead: lead, answer: rec, err: err}
	}()
	for {
		g.gate.mu.Lock()
		f := g.gate.flights[gateKey{key.Scope, key.ID}]
		joined := f == nil || f.arrivals > before
		g.gate.mu.Unlock()
		if joined || len(ended) > 0 {
			return ended
		}
		time.Sleep(time.Millisecond)
	}
}

func (g *gateTest) waits(ended <-chan reply) {
	g.Helper()
	select {
	case v := <-ended:
		g.Fatalf("does not wait: %+v", v)
	default:
	}
}

// gets is the reply to a waiter, which has to come soon.
func (g *gateTest) gets(ended <-chan reply) reply {
	g.Helper()
	select {
	case r := <-ended:
		return r
	case <-time.After(time.Minute):
		g.Fatal("the waiter has no reply after a minute")
		panic("unreachable")
	}
}

func (g *gateTest) empty() {
	g.Helper()
	g.gate.mu.Lock()
	defer g.gate.mu.Unlock()
	if n := len(g.gate.flights); n != 0 {
		g.Errorf("%d entries are left", n)
	}
}

func TestGateSharesOnlyWithThoseThatCameBeforeTheSeal(t *testing.T) {
	t.Parallel()
	g := &gateTest{T: t}
	leader := g.lead()
	early := g.follow(theKey, time.Minute)
	leader.seal()
	late := g.follow(theKey, time.Minute)
	rec := &answer{}
	leader.share(rec)
	if v := g.gets(early); v.answer != rec {
		t.Errorf("the early one got %+v", v)
	}
	g.waits(late)
	leader.leave()
	v := g.gets(late)
	if v.lead == nil {
		t.Fatalf("the late one got %+v, not the lead", v)
	}
	v.lead.leave()
	g.empty()
}

func TestGateHandsTheLeadToTheOneThatWaitedLongest(t *testing.T) {
	t.Parallel()
	g := &gateTest{T: t}
	leader := g.lead()
	var queue []<-chan reply
	for range 5 {
		queue = append(queue, g.follow(theKey, time.Minute))
	}
	for i, next := range queue {
		leader.leave()
		v := g.gets(next)
		if v.lead == nil {
			t.Fatalf("waiter %d got %+v", i, v)
		}
		for _, other := range queue[i+1:] {
			g.waits(other)
		}
		leader = v.lead
	}
	leader.leave()
	g.empty()
}

// Waiters wake each other in a chain, and one can leave at the very moment at
// which it is its turn.
func TestGateGivesTheAnswerToAllThatStayHoweverManyLeave(t *testing.T) {
	t.Parallel()
	for range 100 {
		g := &gateTest{T: t}
		leader := g.lead()
		ctx, leave := context.WithCancel(t.Context())
		var all sync.WaitGroup
		var answers atomic.Int64
		const waiters = 60
		for i := range waiters {
			all.Go(func() {
				ctx := ctx
				if i%3 == 0 {
					ctx = t.Context() // stays
				}
				lead, rec, err := g.gate.enter(ctx, theKey, time.Minute)
				switch {
				case rec != nil:
					answers.Add(1)
				case lead != nil || i%3 == 0 || !errors.Is(err, context.Canceled):
					t.Errorf("got %v, %v, %v", lead, rec, err)
				}
			})
		}
		g.queued(waiters)
		leader.seal()
		go leave()
		leader.share(new(answer))
		leader.leave()
		all.Wait()
		if answers.Load() < waiters/3 {
			t.Errorf("%d of %d got the answer", answers.Load(), waiters)
		}
		g.empty()
	}
}

// queued waits until n have arrived.
func (g *gateTest) queued(n uint64) {
	for {
		g.gate.mu.Lock()
		arrivals := g.gate.flights[gateKey{theKey.Scope, theKey.ID}].arrivals
		g.gate.mu.Unlock()
		if arrivals == n {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func TestGateComparesFingerprintsOnlyWithAnOwner(t *testing.T) {
	t.Parallel()
	g := &gateTest{T: t}
	other := theKey
	other.Fingerprint[0] = 1
	leader := g.lead()
	waiter := g.follow(other, time.Minute)
	leader.know(elsewhere)
	g.waits(waiter)
	leader.know(owning)
	if v := g.gets(waiter); !errors.Is(v.err, ErrKeyReused) {
		t.Errorf("got %+v", v)
	}
	if _, _, err := g.enter(other, time.Minute); !errors.Is(err, ErrKeyReused) {
		t.Errorf("got %v", err)
	}
	leader.know(asking) // its attempt has failed
	waiter = g.follow(other, time.Minute)
	g.waits(waiter)
	leader.leave()
	v := g.gets(waiter)
	if v.lead == nil {
		t.Fatalf("got %+v", v)
	}
	v.lead.know(owning)
	if _, _, err := g.enter(theKey, time.Minute); !errors.Is(err, ErrKeyReused) {
		t.Errorf("compared with the former leader: %v", err)
	}
	v.lead.leave()
	g.empty()
}

func TestGateTurnsTheImpatientAwayOnceTheKeyIsKnownToBeHeld(t *testing.T) {
	t.Parallel()
	for _, s := range []knowledge{owning, elsewhere} {
		g := &gateTest{T: t}
		leader := g.lead()
		waiter := g.follow(theKey, -1)
		g.waits(waiter)
		leader.know(s)
		if v := g.gets(waiter); !errors.Is(v.err, ErrInProgress) {
			t.Errorf("got %+v", v)
		}
		if _, _, err := g.enter(theKey, -1); !errors.Is(err, ErrInProgress) {
			t.Errorf("got %v", err)
		}
		leader.leave()
		g.empty()
	}
}

func TestGateWaiterLeavesAtItsBoundAndWithItsContext(t *testing.T) {
	t.Parallel()
	g := &gateTest{T: t}
	leader := g.lead()
	if v := g.gets(g.follow(theKey, time.Millisecond)); !errors.Is(v.err, ErrInProgress) {
		t.Errorf("got %+v", v)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := g.gate.enter(ctx, theKey, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	leader.leave()
	g.empty()
}

// The lead can reach a waiter in the moment in which it leaves.
func TestGateNeverLosesTheLead(t *testing.T) {
	t.Parallel()
	g := &gateTest{T: t}
	for range 200 {
		leader := g.lead()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		for range 3 {
			go func() {
				defer func() { done <- struct{}{} }()
				if l, _, _ := g.gate.enter(ctx, theKey, time.Minute); l != nil {
					l.leave()
				}
			}()
		}
		go cancel()
		leader.leave()
		for range 3 {
			<-done
		}
		g.empty()
	}
}

// A lateContext is one that ends while its waiter looks at it: on is called then.
type lateContext struct {
	context.Context
	done chan struct{}
	on   func()
}

func (c *lateContext) Done() <-chan struct{} {
	c.on()
	return c.done
}

func (c *lateContext) Err() error { return context.Canceled }

func TestGateTakesTheLeadBackFromAWaiterWhoseContextHasEnded(t *testing.T) {
	t.Parallel()
	g := &gateTest{T: t}
	ended := make(chan struct{})
	close(ended)
	for range 64 { // which of two channels is taken is left to chance
		for _, done := range []chan struct{}{nil, ended} {
			leader := g.lead()
			ctx := &lateContext{t.Context(), done, leader.leave}
			if l, a, err := g.gate.enter(ctx, theKey, time.Minute); l != nil || a != nil || !errors.Is(err, context.Canceled) {
				t.Fatalf("got %v, %v, %v", l, a, err)
			}
			g.empty()
		}
	}
}

func TestGateKeepsKeysApart(t *testing.T) {
	t.Parallel()
	g := &gateTest{T: t}
	leader := g.lead()
	for _, key := range []Key{{Scope: "s", ID: "2"}, {Scope: "2", ID: "1"}} {
		l, _, err := g.enter(key, -1)
		if l == nil {
			t.Fatalf("%v: %v", key, err)
		}
		l.leave()
	}
	leader.leave()
	g.empty()
}

// A leader leaves as the owner when it has committed. Whoever follows owns
// nothing yet.
func TestGateForgetsTheStandingOfTheLeaderThatLeaves(t *testing.T) {
	t.Parallel()
	other := theKey
	other.Fingerprint[0] = 1
	for _, s := range []knowledge{owning, elsewhere} {
		g := &gateTest{T: t}
		leader := g.lead()
		next := g.follow(theKey, time.Minute)
		leader.know(s)
		leader.leave()
		v := g.gets(next)
		for _, waiter := range []<-chan reply{g.follow(other, time.Minute), g.follow(theKey, -1)} {
			g.waits(waiter)
			v.lead.leave()
			v = g.gets(waiter)
			if v.lead == nil {
				t.Fatalf("got %+v, not the lead", v)
			}
		}
		v.lead.leave()
		g.empty()
	}
}

// Each one that waits keeps what its caller has in its hands.
func TestGateTurnsAwayAtOnceWhereTooManyWait(t *testing.T) {
	t.Parallel()
	g := &gateTest{T: t}
	leader := g.lead()
	leader.know(owning)
	var others []*waiter
	for range maxWaiting - 1 {
		w := &waiter{reply: make(chan reply, 1)}
		leader.flight.join(w)
		others = append(others, w)
	}
	following := g.follow(theKey, time.Minute)
	g.waits(following)
	if _, _, err := g.enter(theKey, time.Minute); !errors.Is(err, ErrInProgress) {
		t.Errorf("got %v", err)
	}
	other := theKey
	other.Fingerprint[0] = 1
	if _, _, err := g.enter(other, time.Minute); !errors.Is(err, ErrKeyReused) {
		t.Errorf("got %v", err)
	}
	if l, _, err := g.enter(Key{Scope: "s", ID: "2"}, time.Minute); l == nil {
		t.Errorf("another key: %v", err)
	} else {
		l.leave()
	}
	g.gate.leaveQueue(leader.flight, others[0])
	next := g.follow(theKey, time.Minute)
	g.waits(next)
	for _, w := range others[1:] {
		g.gate.leaveQueue(leader.flight, w)
	}
	leader.seal()
	leader.share(new(answer))
	leader.leave()
	if v := g.gets(following); v.answer == nil {
		t.Errorf("got %+v", v)
	}
	if v := g.gets(next); v.answer == nil {
		t.Errorf("got %+v", v)
	}
	g.empty()
}
