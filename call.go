package idempotency

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/running"
)

const (
	// maxRuns is how often one call runs its function at most.
	maxRuns = 10

	// doubtBound is how long a call tries to find out how its COMMIT ended. pgx
	// holds the place of a broken connection in the pool for up to 15 seconds.
	doubtBound = 30 * time.Second

	// replayBound is how long the ROLLBACK of a replay keeps the next call for
	// its key, in this process, waiting.
	replayBound = 100 * time.Millisecond

	// impatientBound is how long a call with a negative Config.Wait asks again. A
	// replay holds the advisory lock until its ROLLBACK has arrived, so one failed
	// try does not prove that another call is running.
	impatientBound = 50 * time.Millisecond
)

// An invocation is one call of Do or DoTx on its way.
type invocation struct {
	store *Store
	key   Key
	work  work
	event *Event
	lead  *lead // of a Do that talks to PostgreSQL, until it is handed on

	origin  string // of the result, if this call makes it
	failed  bool   // the function returned an error: the outcome is "failed", whichever error it is
	late    bool   // something that this call has sent may still arrive, and take effect
	askRole bool   // before the record: see failure.forbidden

	outcome outcome // of a procedure
	placed  bool    // among the calls under way: see progress.place

	waitFrom   time.Time // Config.Wait counts from here
	heldSince  time.Time // since when the key is known to be another call's
	unheld     bool      // the last round found nobody at work on the key: see unreachable
	waits      backoff
	retries    backoff
	reconnects reconnects
}

// call runs a Do, or in the caller's transaction tx a DoTx, and replays the answer
// that it finds if it is one to this request.
func (s *Store) call(ctx context.Context, operation string, tx pgx.Tx, key Key, w work) (replayed bool, err error) {
	var event Event
	c := &invocation{store: s, key: key, work: w, event: &event, reconnects: reconnects{store: s}}
	err = s.observed(ctx, operation, key, &event, func(ctx context.Context) error {
		c.origin, c.waitFrom = event.Origin, time.Now()
		if procedure, is := w.(*course); is {
			event.Name = procedure.name
		}
		var found *answer
		if tx == nil {
			found, err = c.do(ctx)
		} else {
			found, err = c.doTx(ctx, tx)
		}
		replayed, err = c.end(found, err)
		return err
	})
	return replayed, err
}

// end gives the answer that was found to the caller, and says in the event how the
// call went.
func (c *invocation) end(found *answer, err error) (replayed bool, _ error) {
	c.event.Outcome = "executed"
	switch {
	case c.failed:
		c.event.Outcome = "failed"
		return false, err
	case err != nil || found == nil:
		return false, err
	case found.fingerprint != c.key.Fingerprint:
		return false, ErrKeyReused
	}
	c.event.Outcome, c.event.Origin = "replayed", found.origin
	if err := c.work.decode(found.result); err != nil {
		c.event.Outcome = "failed" // also if the error of the caller's type says something else
		return false, err
	}
	return true, nil
}

// do returns the answer that it found, or neither answer nor error when its own
// COMMIT was acknowledged.
func (c *invocation) do(ctx context.Context) (*answer, error) {
	if err := c.admit(ctx); err != nil {
		return nil, err
	}
	lead, found, err := c.store.gate.enter(ctx, c.key, c.patience())
	c.event.Waited = time.Since(c.waitFrom)
	if lead == nil {
		return found, err
	}
	c.lead = lead
	defer c.leave()
	if found := c.recall(ctx); found != nil {
		return found, nil
	}
	var x *session
	switch s := c.shoot(ctx); {
	case s.executed || s.found != nil:
		return s.found, nil
	case s.failed == nil:
		x, found, err = c.claim(ctx)
	case s.failed.inDoubt:
		x, found, err = c.resolve(ctx, s.failed)
	default:
		return nil, s.failed.err
	}
	found, err = c.attempts(ctx, x, found, err)
	if err != nil && c.late {
		err = c.unknown(err)
	}
	return found, err
}

// attempts runs the function in a session that owns the key, and once more in another
// one where that is worth while.
func (c *invocation) attempts(ctx context.Context, x *session, found *answer, err error) (*answer, error) {
	for x != nil {
		failed := c.attempt(ctx, x)
		switch {
		case failed == nil:
			return nil, nil
		case failed.inDoubt:
			x, found, err = c.resolve(ctx, failed)
		case c.mayRunAgain(ctx, failed) && c.retries.pause(ctx) == nil:
			c.askRole = c.askRole || failed.forbidden
			// The transaction that was lost may hold the key a little longer.
			c.waitFrom, c.heldSince = time.Now(), time.Time{}
			x, found, err = c.claim(ctx)
		case ctx.Err() != nil && errors.Is(failed.err, errElsewhere):
			return nil, ctx.Err()
		default:
			return nil, failed.err
		}
	}
	return found, err
}

// unknown is the error of a call of which something may still arrive: whatever err says
// of a later attempt, the operation can take effect.
func (c *invocation) unknown(err error) error {
	c.event.InDoubt, c.failed = "unknown", false
	if errors.Is(err, ErrOutcomeUnknown) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
}

// admit refuses a call before anything is acquired for it.
func (c *invocation) admit(ctx context.Context) error {
	if err := c.key.validate(); err != nil {
		return err
	}
	if running.Under(ctx, c.mark()) { // to wait for it would be to wait for ourselves
		return fmt.Errorf("%w: it is the function that made this call", ErrInProgress)
	}
	return ctx.Err()
}

// patience is how long the call waits for another one.
func (c *invocation) patience() time.Duration {
	if c.completing() {
		return -1
	}
	return c.store.cfg.Wait
}

// completing: the call is one of Complete, which waits for nobody.
func (c *invocation) completing() bool {
	w, ok := c.work.(*course)
	return ok && w.number != ""
}

// begin starts a transaction and claims the key: see Store.begin.
func (c *invocation) begin(ctx context.Context) (*session, finding, error) {
	pool := c.store.pool
	if c.isProcedure() && c.store.cfg.CallPool != nil {
		pool = c.store.cfg.CallPool
	}
	return c.store.begin(ctx, pool, c.key)
}

// leave lets the next call for the key in, unless the lead was handed on.
func (c *invocation) leave() {
	c.leavePlace()
	if c.lead != nil {
		c.lead.leave()
	}
}

func (c *invocation) mayRunAgain(ctx context.Context, failed *failure) bool {
	return failed.transient && c.event.Runs < maxRuns && ctx.Err() == nil
}

// claim returns a session that owns the key, or the answer that it found. It
// waits for calls elsewhere, between its questions without a connection.
func (c *invocation) claim(ctx context.Context) (*session, *answer, error) {
	c.failed = false
	for {
		c.lead.seal()
		x, f, err := c.begin(ctx)
		switch {
		case err == nil && f.state == claimed:
			c.lead.know(owning)
			return x, nil, nil
		case err == nil && f.state == recorded:
			c.replay(x, f.answer)
			return nil, f.answer, nil
		case err == nil && f.state == abandoned:
			if err = c.resume(ctx, x); err == nil {
				c.lead.know(owning)
				return x, nil, nil
			}
			x.rollback()
			switch {
			case errors.Is(err, errHeld):
				err = c.wait(ctx, ErrInProgress)
			case c.reconnects.worthwhile(ctx, err):
				err = c.retries.pause(ctx)
			}
		case err == nil:
			err = c.unreachable(ctx, x.tx, x.sql, f)
			x.rollback()
			if err == nil {
				err = c.wait(ctx, ErrInProgress)
			}
		case lostClaim(err):
			err = c.wait(ctx, fmt.Errorf("%w: %w", ErrInProgress, err))
		case c.reconnects.worthwhile(ctx, err):
			err = c.retries.pause(ctx)
		}
		if err != nil {
			return nil, nil, err
		}
	}
}

// replay gives the answer to everyone that waits here for it, and ends the
// session in the background: the caller need not wait for a ROLLBACK. The next
// call for the key is let in afterwards, since it would find the advisory lock
// taken; but not much later, since a ROLLBACK can hang with its connection.
func (c *invocation) replay(x *session, found *answer) {
	c.store.memory.remember(c.key)
	c.lead.know(asking) // nothing is in flight elsewhere, whatever was found before
	c.lead.share(found)
	lead := c.lead
	c.lead = nil
	late := time.AfterFunc(replayBound, lead.leave)
	go func() {
		x.rollback() // within rollbackBound
		if late.Stop() {
			lead.leave()
		}
	}()
}

// wait pauses before the key is asked for again, up to Config.Wait, when it
// returns inProgress.
func (c *invocation) wait(ctx context.Context, inProgress error) error {
	if c.lead != nil {
		c.lead.know(elsewhere)
	}
	now := time.Now()
	if c.heldSince.IsZero() {
		c.heldSince = now
	}
	patience := c.patience()
	end := c.waitFrom.Add(patience)
	if patience < 0 {
		end = c.heldSince.Add(impatientBound)
	}
	if !now.Before(end) {
		return inProgress
	}
	err := sleep(ctx, min(c.waits.next(), end.Sub(now)))
	c.event.Waited += time.Since(now)
	if err != nil {
		return leftWaiting(ctx)
	}
	return nil
}

// attempt runs the function in a session that owns the key, commits, and ends
// the session. Nothing remains of a failure, unless it is in doubt.
func (c *invocation) attempt(ctx context.Context, x *session) *failure {
	if w, ok := c.work.(*course); ok {
		return c.attemptSteps(ctx, x, w)
	}
	committed := false
	defer func() { // also when the function panics or calls runtime.Goexit
		if !committed {
			x.rollback()
			c.lead.know(asking)
		}
	}()
	result, err := c.run(ctx, x.tx)
	if err != nil {
		return x.failed(err)
	}
	out := c.answer(x.conn.Conn(), result)
	x.askRole = c.askRole
	c.lead.seal()
	if failed := x.commit(out); failed != nil {
		return failed
	}
	committed = true
	c.store.memory.remember(c.key)
	c.lead.share(out)
	return nil
}

// run runs the function once, with tx behind a guard and a context that is marked
// with its key, and checks that tx can still commit what the function did.
func (c *invocation) run(ctx context.Context, tx pgx.Tx) ([]byte, error) {
	c.event.Runs++
	ctx, function := running.Mark(ctx, c.mark())
	defer function.End()
	guard := guardTx(tx)
	defer guard.end()
	result, err := c.work.(transactional).execute(ctx, guard)
	if c.failed = err != nil; c.failed {
		return nil, c.store.waitedForThePool(tx, err)
	}
	return result, checkOpen(tx)
}

// answer is what this call records through conn. An origin that cannot be stored is left
// out.
func (c *invocation) answer(conn *pgx.Conn, result []byte) *answer {
	a := &answer{fingerprint: c.key.Fingerprint, result: result}
	if canHold(conn, c.origin) {
		a.origin = c.origin
	}
	return a
}

// resolve finds out what became of a COMMIT whose answer was lost, by claiming
// the key again: that waits for the old transaction to end. To look for the
// record would be unsound, for "not there" can mean "still committing". The
// caller's context and Config.Wait do not apply.
//
// It returns the answer; or, when nothing was committed, a session for another
// run or the failure's error; or ErrOutcomeUnknown.
func (c *invocation) resolve(ctx context.Context, failed *failure) (*session, *answer, error) {
	c.event.InDoubt = "unknown"
	c.lead.know(elsewhere)
	unknown := fmt.Errorf("%w: %w", ErrOutcomeUnknown, failed.err)
	ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), doubtBound)
	defer cancel()
	var waits backoff
	for {
		c.lead.seal()
		x, f, err := c.begin(ask)
		// Near the end of the retention, our own record can have come and gone.
		conclusive := time.Since(failed.sent) < c.store.cfg.Retention/10*9
		switch {
		case err != nil:
		case f.state == recorded && (conclusive || f.answer.fingerprint == c.key.Fingerprint):
			if x.confirm(ask) == nil {
				c.event.InDoubt = "committed"
				c.store.memory.remember(c.key)
				c.lead.share(f.answer)
				return nil, f.answer, nil
			}
		case f.state == claimed && conclusive && c.mayRunAgain(ctx, failed):
			c.event.InDoubt = "aborted"
			c.lead.know(owning)
			return x, nil, nil
		case f.state == claimed && conclusive:
			c.event.InDoubt = "aborted" // unless it is late: see unknown
			x.rollback()
			return nil, nil, failed.err
		case f.state == inFlight:
			x.rollback()
		case f.state == abandoned && c.isProcedure():
			switch err := c.resume(ask, x); {
			case err == nil && c.mayRunAgain(ctx, failed):
				c.event.InDoubt = "" // the journal tells what was committed
				c.lead.know(owning)
				return x, nil, nil
			case err == nil:
				c.event.InDoubt = ""
				err = failed.err
				fallthrough
			case !errors.Is(err, errHeld) && !lostConnection(err):
				x.rollback()
				return nil, nil, err
			}
			x.rollback() // the old transaction, or a duplicate, has the key
		default:
			x.rollback()
			return nil, nil, unknown
		}
		if waits.pause(ask) != nil {
			return nil, nil, unknown
		}
	}
}

func (c *invocation) isProcedure() bool {
	_, ok := c.work.(*course)
	return ok
}

// mark is what the function's context is marked with.
func (c *invocation) mark() running.Key {
	return running.Key{Store: c.store, Scope: c.key.Scope, ID: c.key.ID}
}
