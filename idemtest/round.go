package idemtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/pgproxy"
)

const (
	// maxCalls is how often a call is made that fails when a connection is cut.
	maxCalls = 4

	// settle is how long connections may take to be released after the calls: a
	// ROLLBACK may still be under way in the background.
	settle = 5 * time.Second

	// grace is how long calls may take to return after their context has ended.
	grace = 5 * time.Second
)

// A round is one id, called several times, and what came of it.
type round struct {
	*storm
	plan
	id string

	commits atomic.Int64 // in a round alone: of the first call
	wasCut  atomic.Bool

	answers  []answer
	missing  int // calls that have not returned
	effects  int
	keys     int
	acquired int

	keysOfFirst int      // in a round alone: after the first call
	open        []string // sessions in a transaction
}

type answer struct {
	value    any
	replayed bool
	err      error
}

// run makes the calls and looks at what they leave.
func (r *round) run() error { return r.runUnder(r.rule(), r.fire) }

// runUnder makes the calls with fire, which is told how many keys there were before.
func (r *round) runUnder(rule pgproxy.Rule, fire func(keys int) error) error {
	if err := r.prepare(); err != nil {
		return err
	}
	effects, keys, err := r.count()
	if err != nil {
		return err
	}
	held := r.acquiredNow() // by the program, from its start
	r.proxy.SetRule(rule)
	if err := fire(keys); err != nil {
		return err
	}
	r.proxy.SetRule(nil)
	if err := r.lookForLeftovers(held); err != nil {
		return err
	}
	if r.acquired > 0 || r.missing > 0 {
		return nil // the program may hold all of the pool, or what Effects needs
	}
	r.effects, r.keys, err = r.count()
	r.effects -= effects
	r.keys -= keys
	return err
}

func (r *round) count() (effects, keys int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if effects, err = r.Effects(ctx, r.pool, r.id); err != nil {
		return 0, 0, fmt.Errorf("Program.Effects: %w", err)
	}
	if keys, err = r.schema.keys(ctx); err != nil {
		return 0, 0, fmt.Errorf("counting the keys: %w", err)
	}
	return effects, keys, nil
}

func (r *round) prepare() error {
	if r.Prepare == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := r.Prepare(ctx, r.pool, r.id); err != nil {
		return fmt.Errorf("Program.Prepare: %w", err)
	}
	return nil
}

// fire makes the calls. There were so many keys before.
func (r *round) fire(keys int) error {
	ctx, cancel := context.WithTimeout(context.Background(), r.Timeout)
	defer cancel()
	if !r.alone {
		r.together(ctx, r.n)
		return nil
	}
	r.together(ctx, 1)
	r.proxy.SetRule(nil)
	if r.missing > 0 {
		return nil
	}
	look, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	now, err := r.schema.keys(look)
	if err != nil {
		return fmt.Errorf("counting the keys: %w", err)
	}
	r.keysOfFirst = now - keys
	r.together(ctx, 1)
	return nil
}

// maxKeys is how many keys the round may leave.
func (r *round) maxKeys() int {
	if r.alone {
		return max(r.keysOfFirst, 1)
	}
	return max(r.keysOfOne, 1)
}

// together makes n calls at once and waits for them, for a while longer than
// their context.
func (r *round) together(ctx context.Context, n int) {
	start := make(chan struct{})
	answers := make(chan answer, n)
	for range n {
		go func() {
			<-start
			r.insist(ctx, answers)
		}()
	}
	close(start)
	late := time.After(r.Timeout + grace)
	for i := range n {
		select {
		case a := <-answers:
			r.answers = append(r.answers, a)
		case <-late:
			r.missing = n - i
			return
		}
	}
}

// insist is a client: it calls again when a call fails, in rounds where that can be.
func (r *round) insist(ctx context.Context, answers chan<- answer) {
	a := answer{err: errors.New("the call ended its goroutine (runtime.Goexit, or FailNow of a test)")}
	defer func() { answers <- a }()
	for try := range r.maxCalls() {
		a = r.once(ctx)
		if a.err == nil || r.cut == "" || ctx.Err() != nil {
			return
		}
		time.Sleep(r.pause << try)
	}
}

func (r *round) maxCalls() int { return cmp.Or(r.tries, maxCalls) }

func (r *round) once(ctx context.Context) (a answer) {
	defer func() {
		if v := recover(); v != nil {
			a.err = fmt.Errorf("the call panicked at %s: %v", findCaller().line, v)
		}
	}()
	a.value, a.replayed, a.err = r.call(ctx, r.id)
	return a
}

// commit is the statement, also at the end of several in the simple protocol.
var commit = regexp.MustCompile(`(?i)(^|;)\s*commit\b`)

// commits: the client asks for a COMMIT.
func commits(m pgproxy.Message) bool {
	return !m.FromServer && (m.Type == 'B' || m.Type == 'Q') && commit.MatchString(m.SQL)
}

// committed: the server answers that one has happened.
func committed(m pgproxy.Message) bool {
	return m.FromServer && m.Type == 'C' && m.Tag == "COMMIT"
}

// rule counts the COMMITs, and cuts the connection at the one of the plan.
func (r *round) rule() pgproxy.Rule {
	var sent, answered atomic.Int64
	return func(m pgproxy.Message) pgproxy.Verdict {
		cut := false
		switch {
		case committed(m):
			cut = answered.Add(1) == r.at && r.cut == "after"
			r.commits.Add(1)
		case commits(m):
			cut = sent.Add(1) == r.at && r.cut == "before"
		}
		if cut {
			r.wasCut.Store(true)
			return pgproxy.Drop
		}
		return pgproxy.Pass
	}
}

// lookForLeftovers waits until nothing is left, or for a while.
func (r *round) lookForLeftovers(held int) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for deadline := time.Now().Add(settle); ; time.Sleep(5 * time.Millisecond) {
		r.acquired = r.acquiredNow() - held
		rows, _ := r.schema.conn.Query(ctx, `
			select format('pid %s, last statement: %s', pid, query) from pg_stat_activity
			where application_name = $1 and state like 'idle in transaction%'`, r.app)
		if r.open, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
			return fmt.Errorf("looking for open transactions: %w", err)
		}
		if r.acquired <= 0 && len(r.open) == 0 || time.Now().After(deadline) {
			return nil
		}
	}
}
