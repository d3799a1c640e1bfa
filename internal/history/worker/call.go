package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/history/journal"
)

// callBound is the time after which a caller gives up in any case.
const callBound = 5 * time.Second

type counter struct{ n atomic.Int64 }

func (c *counter) next() int64 { return c.n.Add(1) }

// A call is one entry of the journal on its way.
type call struct {
	worker *worker
	begin  journal.Begin
	store  *idempotency.Store
	event  idempotency.Event
	runs   int
}

// call makes one random call.
func (w *worker) call() {
	switch n := rand.IntN(100); {
	case n < 2:
		w.newCall(journal.Delete).delete()
	case n < 10:
		w.newCall(journal.Get).get()
	case n < 25:
		w.newCall(journal.DoTx).doTx()
	case n < 25+w.job.Statements:
		w.newCall(journal.QueryRow).queryRow()
	default:
		w.newCall(journal.Do).do()
	}
}

func (w *worker) newCall(op journal.Operation) *call {
	c := &call{
		worker: w,
		begin: journal.Begin{
			Call:      fmt.Sprintf("%s/%d", w.job.Process, w.calls.next()),
			Operation: op,
			Key:       w.job.Keys[rand.IntN(len(w.job.Keys))],
		},
		store: w.stores[0],
	}
	if chance(0.3) {
		c.store = w.stores[1]
	}
	if chance(0.05) {
		c.begin.Fingerprint = 1
	}
	c.begin.At = journal.Now()
	w.journal.Begin(c.begin)
	return c
}

func (c *call) key() idempotency.Key {
	return idempotency.Key{
		Scope:       "history",
		ID:          c.begin.Key,
		Fingerprint: idempotency.Fingerprint{c.begin.Fingerprint},
	}
}

func (c *call) do() {
	ctx, cancel := c.context()
	defer cancel()
	c.end(c.survive(func() (string, bool, error) {
		return idempotency.Do(ctx, c.store, c.key(), c.business)
	}))
}

// queryRow is do with a business function that is one statement. Only PostgreSQL knows
// how often it ran: a batch whose answer was lost can have done so.
func (c *call) queryRow() {
	ctx, cancel := c.context()
	defer cancel()
	value, replayed, err := idempotency.QueryRow[string](ctx, c.store, c.key(), businessSQL, c.begin.Call, c.begin.Key)
	c.runs = c.event.Runs
	c.end(value, replayed, err)
}

var levels = []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable}

// doTx is one transaction of the caller's own with a DoTx in it.
func (c *call) doTx() {
	ctx, cancel := c.context()
	defer cancel()
	tx, err := c.worker.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: levels[rand.IntN(len(levels))]})
	if err != nil {
		c.end("", false, err)
		return
	}
	if chance(0.3) { // above READ COMMITTED, what DoTx sees is then already fixed
		tx.Exec(ctx, `select from effects limit 0`)
		pause()
	}
	value, replayed, err := c.survive(func() (string, bool, error) {
		return idempotency.DoTx(ctx, c.store, tx, c.key(), c.business)
	})
	switch {
	case err == nil && chance(0.9):
		err = commit(tx)
	case err == nil:
		err = errChanged
		tx.Rollback(ctx)
	case chance(0.5):
		tx.Rollback(ctx)
	default:
		commit(tx) // nothing of a DoTx that failed may remain, whichever way this goes
	}
	if replayed {
		err = nil // what was recorded before does not depend on how tx ended
	}
	c.end(value, replayed, err)
}

var (
	errChanged = errors.New("the caller rolled back")
	errLost    = errors.New("the caller's COMMIT was lost")
)

func commit(tx pgx.Tx) error {
	ctx, cancel := context.WithTimeout(context.Background(), callBound)
	defer cancel()
	err := tx.Commit(ctx)
	if err != nil && !errors.Is(err, pgx.ErrTxCommitRollback) {
		return fmt.Errorf("%w: %w", errLost, err)
	}
	return err
}

func (c *call) get() {
	ctx, cancel := c.context()
	defer cancel()
	record, err := c.store.Get(ctx, c.key())
	value := ""
	if err == nil {
		value, err = executionIn(record)
	}
	c.end(value, true, err)
}

type deleteKey struct{}

func (c *call) delete() {
	ctx, cancel := c.context()
	defer cancel()
	ctx = context.WithValue(ctx, deleteKey{}, c.begin.Call)
	err := c.worker.deletes.Delete(ctx, c.key())
	if err != nil && !errors.Is(err, idempotency.ErrNotFound) && !errors.Is(err, idempotency.ErrInProgress) {
		err = fmt.Errorf("%w: %w", errLost, err)
	}
	c.end("", false, err)
}

// signDelete makes a removal known to the database as this call's.
func signDelete(ctx context.Context, conn *pgx.Conn) (bool, error) {
	name, _ := ctx.Value(deleteKey{}).(string)
	_, err := conn.Exec(ctx, `select set_config('application_name', $1, false)`, name)
	return err == nil, err
}

// context is that of a caller, some of whom are in a hurry.
func (c *call) context() (context.Context, context.CancelFunc) {
	bound := callBound
	if chance(0.1) {
		bound = rand.N(60 * time.Millisecond)
	}
	ctx := context.WithValue(context.Background(), eventKey{}, &c.event)
	return context.WithTimeout(ctx, bound)
}

type eventKey struct{}

// observe keeps what the Store says about a call.
func observe(ctx context.Context, event idempotency.Event) {
	if to, ok := ctx.Value(eventKey{}).(*idempotency.Event); ok {
		*to = event
	}
}

// survive turns the panic of a business function into an error.
func (c *call) survive(do func() (string, bool, error)) (value string, replayed bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			if p != any(errPanic) {
				panic(p)
			}
			err = errPanic
		}
	}()
	return do()
}

func (c *call) end(value string, replayed bool, err error) {
	e := journal.End{
		At:      journal.Now(),
		Call:    c.begin.Call,
		Outcome: outcome(replayed, err),
		Runs:    c.runs,
		InDoubt: c.event.InDoubt != "",
	}
	if err == nil {
		e.Value, e.Replayed = value, replayed
	} else {
		e.Err = err.Error()
	}
	c.worker.journal.End(e)
}

func outcome(replayed bool, err error) journal.Outcome {
	switch {
	case errors.Is(err, idempotency.ErrOutcomeUnknown) || errors.Is(err, errLost):
		return journal.Unknown
	case errors.Is(err, idempotency.ErrKeyReused):
		return journal.Refused
	case errors.Is(err, idempotency.ErrNotFound):
		return journal.Missed
	case err != nil:
		return journal.Failed
	case replayed:
		return journal.Replayed
	}
	return journal.Executed
}
