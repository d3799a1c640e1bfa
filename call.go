package idempotency

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/running"
)

const (
	// maxRuns is how often one call runs its function at most.
	maxRuns = 10

	// leastLostClaims is how many connections one call may lose, at least, before
	// it has run anything. After a restart of the server, every idle one of the
	// pool is a dead one: a call may lose as many as the pool can hold.
	leastLostClaims = 10

	// doubtBound is how long a call tries to find out how its COMMIT ended. pgx
	// holds the place of a broken connection in the pool for up to 15 seconds.
	doubtBound = 30 * time.Second

	// replayBound is how long the ROLLBACK of a replay keeps the next call for
	// its key, in this process, waiting.
	replayBound = 100 * time.Millisecond

	// grace is how long a caller that does not want to wait asks again. A replay
	// holds the advisory lock until its ROLLBACK has arrived, so "not got" does
	// not prove that a call is in flight.
	grace = 50 * time.Millisecond
)

// A call is one Do or DoTx on its way.
type call struct {
	store *Store
	key   Key
	work  work
	event Event
	lease *lease // of a Do that leads, until it is handed on

	origin  string // of the result, if this call makes it
	refused bool   // by the function: what it returned is no finding of ours

	waitFrom   time.Time // Config.Wait counts from here
	inFlight   time.Time // since when the key is known to be another call's
	waits      backoff
	retries    backoff
	lostClaims int
}

// do is Do on stored values.
func (s *Store) do(ctx context.Context, key Key, w work) (replayed bool, err error) {
	return s.call(ctx, "Do", key, w, (*call).do)
}

// call runs a Do or DoTx, and replays the record that it finds if that is the
// answer to this request.
func (s *Store) call(ctx context.Context, operation string, key Key, w work, run func(*call, context.Context) (*record, error)) (replayed bool, err error) {
	c := &call{store: s, key: key, work: w}
	event := &c.event
	err = s.observed(ctx, operation, key, event, func(ctx context.Context) error {
		c.origin, c.waitFrom = event.Origin, time.Now()
		rec, err := run(c, ctx)
		event.Outcome = "executed"
		switch {
		case c.refused:
			event.Outcome = "failed"
			return err
		case err != nil || rec == nil:
			return err
		case rec.fingerprint != key.Fingerprint:
			return ErrKeyReused
		}
		event.Outcome, event.Origin = "replayed", rec.origin
		if err = w.replay(rec.result); err != nil {
			event.Outcome = "failed" // also if the error of the caller's type says something else
		}
		replayed = err == nil
		return err
	})
	return replayed, err
}

// do returns the record that it found, or neither record nor error when its own
// COMMIT was acknowledged.
func (c *call) do(ctx context.Context) (*record, error) {
	if err := c.admit(ctx); err != nil {
		return nil, err
	}
	lease, rec, err := c.store.gate.enter(ctx, c.key, c.store.cfg.Wait)
	c.event.Waited = time.Since(c.waitFrom)
	if lease == nil {
		return rec, err
	}
	c.lease = lease
	defer c.leave()
	return c.lead(ctx)
}

// admit refuses a call before anything is acquired for it.
func (c *call) admit(ctx context.Context) error {
	if err := c.key.validate(); err != nil {
		return err
	}
	if running.Under(ctx, c.running()) { // to wait for it would be to wait for ourselves
		return fmt.Errorf("%w: it is the function that made this call", ErrInProgress)
	}
	return ctx.Err()
}

// leave lets the next call for the key in, unless that was handed on.
func (c *call) leave() {
	if c.lease != nil {
		c.lease.leave()
	}
}

func (c *call) lead(ctx context.Context) (*record, error) {
	x, rec, err := c.claim(ctx)
	for x != nil {
		failed := c.attempt(ctx, x)
		switch {
		case failed == nil:
			return nil, nil
		case failed.inDoubt:
			x, rec, err = c.resolve(ctx, failed)
		case c.mayRunAgain(ctx, failed) && c.retries.pause(ctx) == nil:
			// The transaction that was lost may hold the key a little longer.
			c.waitFrom, c.inFlight = time.Now(), time.Time{}
			x, rec, err = c.claim(ctx)
		default:
			return nil, failed.err
		}
	}
	return rec, err
}

func (c *call) mayRunAgain(ctx context.Context, failed *failure) bool {
	return failed.transient && c.event.Runs < maxRuns && ctx.Err() == nil
}

// claim returns a session that owns the key, or the record that it found. It
// waits for calls elsewhere, between its questions without a connection.
func (c *call) claim(ctx context.Context) (*session, *record, error) {
	c.refused = false
	for {
		c.lease.seal()
		x, f, err := c.store.begin(ctx, c.key)
		switch {
		case err == nil && f.state == claimed:
			c.lease.stand(owning)
			return x, nil, nil
		case err == nil && f.state == recorded:
			c.replay(x, f.rec)
			return nil, f.rec, nil
		case err == nil && f.state == abandoned:
			x.rollback()
			return nil, nil, ErrAbandoned
		case err == nil:
			x.rollback()
			err = c.wait(ctx, ErrInProgress)
		case lostClaim(err):
			err = c.wait(ctx, fmt.Errorf("%w: %w", ErrInProgress, err))
		case c.mayReconnect(ctx, err):
			err = c.retries.pause(ctx)
		}
		if err != nil {
			return nil, nil, err
		}
	}
}

func (c *call) mayReconnect(ctx context.Context, err error) bool {
	c.lostClaims++
	return lostConnection(err) && ctx.Err() == nil &&
		c.lostClaims <= max(leastLostClaims, int(c.store.pool.Stat().MaxConns()))
}

// replay gives the record to everyone that waits here for it, and ends the
// session in the background: the answer need not wait for a ROLLBACK. The next
// call for the key is let in afterwards, since it would find the advisory lock
// taken; but not much later, since a ROLLBACK can hang with its connection.
func (c *call) replay(x *session, rec *record) {
	c.lease.stand(asking) // nothing is in flight elsewhere, whatever was found before
	c.lease.share(rec)
	lease := c.lease
	c.lease = nil
	late := time.AfterFunc(replayBound, lease.leave)
	go func() {
		x.rollback() // within rollbackBound
		if late.Stop() {
			lease.leave()
		}
	}()
}

// wait pauses before the key is asked for again, up to Config.Wait, when it
// returns inProgress.
func (c *call) wait(ctx context.Context, inProgress error) error {
	if c.lease != nil {
		c.lease.stand(elsewhere)
	}
	now := time.Now()
	if c.inFlight.IsZero() {
		c.inFlight = now
	}
	end := c.waitFrom.Add(c.store.cfg.Wait)
	if c.store.cfg.Wait < 0 {
		end = c.inFlight.Add(grace)
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
func (c *call) attempt(ctx context.Context, x *session) *failure {
	committed := false
	defer func() { // also when the function panics or calls runtime.Goexit
		if !committed {
			x.rollback()
			c.lease.stand(asking)
		}
	}()
	stored, failed := x.run(ctx, c.run)
	if failed != nil {
		return failed
	}
	rec := &record{fingerprint: c.key.Fingerprint, result: stored, origin: c.origin}
	c.lease.seal()
	if failed := x.commit(rec); failed != nil {
		return failed
	}
	committed = true
	c.lease.share(rec)
	return nil
}

// run runs the function, with a context that is marked with its key.
func (c *call) run(ctx context.Context, tx pgx.Tx) ([]byte, error) {
	c.event.Runs++
	ctx, end := running.Mark(ctx, c.running())
	defer end()
	stored, err := c.work.run(ctx, tx)
	c.refused = err != nil
	return stored, err
}

// resolve finds out what became of a COMMIT whose answer was lost, by claiming
// the key again: that waits for the old transaction to end. To look for the
// record would be unsound, for "not there" can mean "still committing". The
// caller's context and Config.Wait do not apply.
//
// It returns the record; or, when nothing was committed, a session for another
// run or the failure's error; or ErrOutcomeUnknown.
func (c *call) resolve(ctx context.Context, failed *failure) (*session, *record, error) {
	c.event.InDoubt = "unknown"
	c.lease.stand(elsewhere)
	unknown := fmt.Errorf("%w: %w", ErrOutcomeUnknown, failed.err)
	ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), doubtBound)
	defer cancel()
	var waits backoff
	for {
		c.lease.seal()
		x, f, err := c.store.begin(ask, c.key)
		// Near the end of the retention, our own record can have come and gone.
		conclusive := time.Since(failed.sent) < c.store.cfg.Retention/10*9
		switch {
		case err != nil:
		case f.state == recorded && (conclusive || f.rec.fingerprint == c.key.Fingerprint):
			if x.settle(ask) == nil {
				c.event.InDoubt = "committed"
				c.lease.share(f.rec)
				return nil, f.rec, nil
			}
		case f.state == claimed && conclusive && c.mayRunAgain(ctx, failed):
			c.event.InDoubt = "aborted"
			c.lease.stand(owning)
			return x, nil, nil
		case f.state == claimed && conclusive:
			c.event.InDoubt = "aborted"
			x.rollback()
			return nil, nil, failed.err
		case f.state == inFlight || f.state == expired:
			x.rollback()
		default:
			x.rollback()
			return nil, nil, unknown
		}
		if waits.pause(ask) != nil {
			return nil, nil, unknown
		}
	}
}

// running is the mark of the function's context.
func (c *call) running() running.Key {
	return running.Key{Store: c.store, Scope: c.key.Scope, ID: c.key.ID}
}
