package idempotency

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/running"
)

// A progress is one run of a procedure's function.
type progress struct {
	c *invocation
	x *session // nil: its transaction is over, and its connection is given back
	j *journal

	mu     sync.Mutex // held by the step or the call that runs
	next   int        // how many the function has asked for
	names  map[string]bool
	failed *failure // and every later one fails with its error
	ended  bool     // the function has returned

	misused atomic.Bool // a step was asked for while another one ran
}

var errNotAlone = errors.New("idempotency: another step of this operation is running: steps and calls are not nested, and not parallel")

// resume makes the session one of an operation that was begun before, if it is one of
// this call's procedure. It is ErrInProgress if another attempt has the key.
func (c *invocation) resume(ctx context.Context, x *session) error {
	j, locked, err := x.readJournal(ctx)
	w, procedure := c.work.(*course)
	switch {
	case !procedure && missingOperations(err): // migrations.Up of this release has not run
		return ErrAbandoned
	case err != nil:
		return explain("read the operation", x.sql.remedied(err))
	case j != nil && !procedure:
		return ErrUnfinished
	case j != nil && j.fingerprint != c.key.Fingerprint:
		return ErrKeyReused
	case !locked:
		return errHeld
	case j == nil:
		return ErrAbandoned
	case w.number != "" && w.number != j.number:
		return errGone
	case isStep(j.begun()):
		return fmt.Errorf("%w: it was %s of procedure %q, and Store.Discard frees the key", ErrAbandoned, j.begun(), j.name)
	case j.name != w.name:
		return fmt.Errorf("%w: the operation is one of procedure %q, and not of %q", ErrStepsChanged, j.name, w.name)
	}
	x.journal = j
	return nil
}

// errHeld: another call is at work on the key.
var errHeld = fmt.Errorf("%w: another attempt is at work", ErrInProgress)

// errGone: the operation that was to be completed has ended, or was discarded.
var errGone = errors.New("idempotency: the operation is gone")

// attemptSteps runs the procedure's function once, and ends the session. What is recorded
// remains of a failure.
func (c *invocation) attemptSteps(ctx context.Context, x *session, w *course) *failure {
	p := &progress{c: c, x: x, j: x.journal, names: make(map[string]bool)}
	if p.j == nil && w.number != "" {
		x.rollback()
		return &failure{err: errGone}
	}
	w.ran = true
	if p.j == nil {
		p.j = newJournal(w, c.key.Fingerprint)
	}
	defer p.end() // also when the function panics or calls runtime.Goexit
	c.event.Runs++
	c.failed = false
	ctx, function := running.Mark(ctx, c.mark())
	defer function.End()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	result, err := w.run(ctx, &Op{progress: p}, p.j.input)
	cancel() // what still runs, against the rules, is to end
	return p.conclude(result, err)
}

// end gives the session back. Where the function has panicked between its steps, what was
// done is recorded before.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	if p.x != nil && p.failed == nil && p.j.unrecorded() {
		_ = p.x.advance(p.j, leg{none: true}) // the panic goes on
	}
	p.giveBack()
}

func (p *progress) giveBack() {
	if p.x != nil {
		p.x.rollback()
		p.x = nil
		p.c.lead.know(asking)
	}
}

// conclude records the result of the function. If that is an error, the steps and calls
// that have ended stay done.
func (p *progress) conclude(result []byte, err error) *failure {
	idle := p.mu.TryLock()
	if !idle {
		p.mu.Lock()
	}
	defer p.mu.Unlock()
	p.ended = true
	failed := p.failed // the function may have swallowed it
	switch {
	case failed != nil:
	case err != nil:
		failed = &failure{err: err}
	case !idle:
		failed = &failure{err: errors.New("idempotency: the procedure has returned while one of its steps ran")}
	case p.misused.Load():
		failed = &failure{err: errNotAlone}
	case p.next < len(p.j.labels):
		failed = &failure{err: fmt.Errorf("%w: the procedure has ended without %s", ErrStepsChanged, p.j.labels[p.next])}
	default:
		return p.finish(result)
	}
	p.c.failed = !failed.transient && !failed.inDoubt
	if p.c.failed && p.x != nil && p.j.unrecorded() {
		lost := p.x.advance(p.j, leg{none: true})
		p.giveBack()
		if lost != nil {
			return &failure{err: errors.Join(failed.err, lost.err)}
		}
	}
	return p.fail(failed)
}

func (p *progress) finish(result []byte) *failure {
	x, c := p.x, p.c
	if x == nil {
		return p.fail(&failure{err: errElsewhere, transient: true})
	}
	out := c.answer(x.conn.Conn(), result)
	x.journal, x.close, x.askRole = p.j, p.j.durable, c.askRole
	c.lead.seal()
	if failed := x.commit(out); failed != nil {
		return p.fail(p.explained(failed))
	}
	p.x = nil
	c.store.memory.remember(c.key)
	c.lead.share(out)
	return nil
}

// explained is a failure of the record, where another attempt has gone on.
func (p *progress) explained(failed *failure) *failure {
	if saysElsewhere(failed.err) {
		return &failure{err: errElsewhere, transient: true}
	}
	return failed
}

// fail makes the failure that of every later step, too.
func (p *progress) fail(failed *failure) *failure {
	if p.failed == nil {
		p.failed = failed
	}
	return p.failed
}

// error is fail for the error of a step's caller.
func (p *progress) error(err error) error { return p.fail(&failure{err: err}).err }

// enter finds out what is known of the step or call that is asked for: its result, or nil.
// It returns with the mutex, unless there is an error.
func (p *progress) enter(kind, name string) (asked string, known []byte, err error) {
	if !p.mu.TryLock() {
		p.misused.Store(true)
		return "", nil, errNotAlone
	}
	defer func() {
		if err != nil {
			p.mu.Unlock()
		}
	}()
	asked = label(kind, name)
	switch {
	case p.ended:
		return "", nil, errors.New("idempotency: the procedure of this Op has returned")
	case p.failed != nil:
		return "", nil, p.failed.err
	}
	if problem := problemOf(name); problem != "" {
		return "", nil, p.error(fmt.Errorf("idempotency: the name of a %s %s", kind, problem))
	}
	if p.names[name] {
		return "", nil, p.error(fmt.Errorf("idempotency: two steps have the name %q", name))
	}
	p.names[name] = true
	j := p.j
	if p.next < len(j.labels) && j.labels[p.next] != asked {
		return "", nil, p.error(fmt.Errorf("%w: it asks for %s, and recorded is %s", ErrStepsChanged, asked, j.labels[p.next]))
	}
	if p.next < len(j.results) {
		p.next++
		return asked, j.results[p.next-1], nil
	}
	return asked, nil, nil
}

// step returns an error, or recorded has been called with the value.
func (p *progress) step(ctx context.Context, name string, fn func(context.Context, pgx.Tx) ([]byte, error), recorded func([]byte) error) error {
	asked, known, err := p.enter(aStep, name)
	if err != nil {
		return err
	}
	defer p.mu.Unlock()
	if known != nil {
		return p.known(recorded(known))
	}
	return p.observed(ctx, "Step", name, func(ctx context.Context) error {
		if err := p.begin(ctx, leg{label: asked}); err != nil {
			return err
		}
		stored, failed := p.run(ctx, fn)
		if failed != nil {
			p.giveBack()
			return p.fail(failed).err
		}
		p.done(asked, stored)
		return nil
	})
}

func (p *progress) known(err error) error {
	if err != nil {
		return p.error(err)
	}
	return nil
}

// run runs the function of a step in the session's transaction.
func (p *progress) run(ctx context.Context, fn func(context.Context, pgx.Tx) ([]byte, error)) ([]byte, *failure) {
	ended := false
	defer p.unless(&ended)
	guard := guardTx(p.x.tx)
	defer guard.end()
	stored, err := fn(ctx, guard)
	ended = true
	if p.c.failed = err != nil; p.c.failed {
		return nil, p.x.failed(p.c.store.waitedForThePool(p.x.tx, err))
	}
	if err := checkOpen(p.x.tx); err != nil {
		return nil, p.x.failed(err)
	}
	return stored, nil
}

// unless is deferred: a function that has not ended has panicked, or called runtime.Goexit.
func (p *progress) unless(ended *bool) {
	if !*ended {
		p.error(errEnded)
		p.giveBack()
	}
}

func (p *progress) done(asked string, stored []byte) {
	j := p.j
	if len(j.labels) == len(j.results) { // of a call, it is there already
		j.labels = append(j.labels, asked)
	}
	j.results = append(j.results, stored)
	p.next++
}

// begin makes durable what was done before, and goes into the transaction of a step or a
// call that begins.
func (p *progress) begin(ctx context.Context, next leg) error {
	if err := ctx.Err(); err != nil && !p.j.unrecorded() {
		return p.error(err)
	}
	if p.x == nil {
		return p.fail(&failure{err: errElsewhere, transient: true}).err
	}
	var failed *failure
	switch {
	case next.call || p.j.unrecorded():
		failed = p.x.advance(p.j, next)
	case p.j.durable: // the first one of this run
		if err := p.x.enter(ctx, p.j, next); err != nil {
			failed = p.x.failed(err)
			failed.transient = failed.transient || errors.Is(err, errElsewhere)
		}
	}
	if failed != nil {
		p.giveBack()
		return p.fail(failed).err
	}
	if err := ctx.Err(); err != nil { // what was done is recorded by now
		return p.error(err)
	}
	return nil
}

// call returns an error, or recorded has been called with the value.
func (p *progress) call(ctx context.Context, name string, window time.Duration, fn func(context.Context, string) ([]byte, error), recorded func([]byte) error) error {
	asked, known, err := p.enter(aCall, name)
	if err != nil {
		return err
	}
	defer p.mu.Unlock()
	if known != nil {
		return p.known(recorded(known))
	}
	if stored := p.c.outcome.of(p.j); stored != nil { // of an earlier run of this process
		p.done(asked, stored)
		return p.known(recorded(stored))
	}
	switch {
	case window < 0:
		return p.error(fmt.Errorf("idempotency: Op.Within: the window of call %q is %v: it has to be positive", name, window))
	case window == 0:
		window = p.c.store.cfg.CallWindow
	}
	if p.j.begun() != "" && p.j.age > window {
		return p.error(fmt.Errorf("%w: %s was begun %v ago", ErrCallExpired, asked, p.j.age.Round(time.Second)))
	}
	if err := p.place(ctx); err != nil {
		return err
	}
	if p.j.begun() == "" {
		p.j.labels = append(p.j.labels, asked)
	}
	return p.observed(ctx, "Call", name, func(ctx context.Context) error {
		if err := p.begin(ctx, leg{call: true}); err != nil {
			return err
		}
		stored, err := p.ask(ctx, name, fn)
		if err != nil {
			p.c.failed = true
			p.giveBack()
			return p.error(err)
		}
		p.c.outcome = outcome{p.j.number, len(p.j.results), stored}
		p.done(asked, stored)
		return nil
	})
}

// ask runs the function of a call.
func (p *progress) ask(ctx context.Context, name string, fn func(context.Context, string) ([]byte, error)) ([]byte, error) {
	ended := false
	defer p.unless(&ended)
	bounded, cancel := p.bounded(ctx)
	defer cancel()
	err := bounded.Err() // a process that was frozen for as long begins nothing
	var stored []byte
	if err == nil {
		stored, err = fn(bounded, p.c.store.callKey(p.c.key, name))
	}
	ended = true
	if errors.Is(err, context.DeadlineExceeded) && errors.Is(context.Cause(bounded), errOutOfTime) {
		err = fmt.Errorf("%w, which is %v: %w", errOutOfTime, p.c.store.cfg.MaxIdle, err)
	}
	return stored, err
}

var errOutOfTime = errors.New("idempotency: a call has to end before 9 tenths of Config.MaxIdle are over")

// bounded is the context of a call. It ends before PostgreSQL ends the transaction that
// has the lock.
func (p *progress) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, has := ctx.Deadline()
	ctx = context.WithoutCancel(ctx)
	if limit := p.c.store.cfg.MaxIdle; limit > 0 {
		if end := p.x.began.Add(limit / 10 * 9); !has || end.Before(deadline) {
			return context.WithDeadlineCause(ctx, end, errOutOfTime)
		}
	}
	if !has {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, deadline)
}

// An outcome is the result of a call that may not be recorded: the connection can be lost
// before. The next run then need not ask again.
type outcome struct {
	number string // of the operation
	place  int
	stored []byte
}

func (o outcome) of(j *journal) []byte {
	if o.number == j.number && o.place == len(j.results) {
		return o.stored
	}
	return nil
}

// callsAtOnce is how many calls may hold a connection.
func callsAtOnce(pool, calls *pgxpool.Pool) int {
	if calls != nil {
		return int(calls.Config().MaxConns)
	}
	return max(1, int(pool.Config().MaxConns)/2)
}

// place waits until the procedure may hold a connection in its calls, and keeps its place
// until it ends. It waits without a connection: what was done is recorded before, and the
// function is run again after it.
func (p *progress) place(ctx context.Context) error {
	c := p.c
	if c.placed {
		return nil
	}
	select {
	case c.store.places <- struct{}{}:
		c.placed = true
		return nil
	default:
	}
	if p.x != nil && p.j.unrecorded() {
		if failed := p.x.advance(p.j, leg{none: true}); failed != nil {
			p.giveBack()
			return p.fail(failed).err
		}
	}
	p.giveBack()
	if c.completing() {
		return p.error(errNoPlace)
	}
	c.lead.know(elsewhere) // who does not wait is turned away
	start := time.Now()
	defer func() { c.event.Waited += time.Since(start) }()
	select {
	case c.store.places <- struct{}{}:
		c.placed = true
		return p.fail(&failure{err: errElsewhere, transient: true}).err
	case <-ctx.Done():
		return p.error(fmt.Errorf("idempotency: waiting for a place among the calls under way (%d at a time): %w", cap(c.store.places), ctx.Err()))
	}
}

// errNoPlace: Complete waits for no place among the calls under way.
var errNoPlace = errors.New("idempotency: too many calls are under way")

// leavePlace lets the next one in.
func (c *invocation) leavePlace() {
	if c.placed {
		<-c.store.places
		c.placed = false
	}
}

// callKey is made of nothing that is stored: it is the same after a failover that has lost
// the operation.
func (s *Store) callKey(key Key, name string) string {
	sum := FingerprintOf([]byte("github.com/pgidem/idempotency call"), []byte(s.cfg.CallNamespace), []byte(key.Scope), []byte(key.ID), []byte(name))
	return uuid([16]byte(sum[:16]), 8)
}
