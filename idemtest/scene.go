package idemtest

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"

	"github.com/pgidem/idempotency"
)

// A scene is what is seen of one round of a procedure: its attempts, and their requests
// to the provider.
type scene struct {
	id    string
	fault fault

	mu       sync.Mutex
	stop     bool          // the next attempt that has done everything
	stopped  any           // the result that was not recorded
	attempts []*attempt    // that run, the newest last
	begun    int           // attempts
	newest   *attempt      // of those that have begun: it may have ended
	requests []request     // to the provider, in the order of their arrival
	lost     int           // answers of the provider
	loser    int           // begun, when the first was lost: all of that attempt are
	met      bool          // a request was held
	second   chan struct{} // closed when another one has come
}

// An attempt is one run of the procedure's function.
type attempt struct {
	goroutine string // its number
	end       context.CancelFunc
	commits   int // that were sent since it began
}

type endKey struct{}

// errStopped is the error of an attempt that was made to stop.
var errStopped = errors.New("idemtest: the attempt was made to stop")

// watched is run, and the scene knows of it.
func watched[In, Out any](s *procedureStorm, run func(context.Context, *idempotency.Op, In) (Out, error)) func(context.Context, *idempotency.Op, In) (Out, error) {
	return func(ctx context.Context, op *idempotency.Op, in In) (out Out, err error) {
		scene := s.scene.Load()
		defer scene.enter(ctx)()
		if out, err = run(ctx, op, in); err == nil && scene.stops(out) {
			err = errStopped
		}
		return out, err
	}
}

func (c *scene) enter(ctx context.Context) (leave func()) {
	end, _ := ctx.Value(endKey{}).(context.CancelFunc)
	a := &attempt{goroutine: goroutineNumber(), end: end}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attempts = append(c.attempts, a)
	c.newest = a
	c.begun++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for i := range c.attempts {
			if c.attempts[i] == a {
				c.attempts = append(c.attempts[:i], c.attempts[i+1:]...)
				return
			}
		}
	}
}

// stops reports, once, that the attempt has to stop, and keeps the result that it has.
func (c *scene) stops(out any) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stop {
		return false
	}
	c.stop, c.stopped = false, out
	return true
}

// recorder is the attempt that sends a COMMIT, if the COMMIT records the result of the label.
// To count the COMMITs of the round would not tell: another process can take the operation
// over between two steps. It then makes a call again that was begun before, and its first
// COMMIT, before that call, records nothing.
func (c *scene) recorder(s *procedureStorm, label string) *attempt {
	next := s.next(c.id, label)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.newest == nil {
		return nil
	}
	c.newest.commits++
	if !next || isCall(label) && c.newest.commits == 1 {
		return nil
	}
	return c.newest
}

func goroutineNumber() string {
	var buf [64]byte
	fields := strings.Fields(string(buf[:runtime.Stack(buf[:], false)]))
	return fields[1] // goroutine 35 [running]:
}
