package idempotency

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/sqltx"
)

// doTx is do inside the caller's transaction.
func (c *invocation) doTx(ctx context.Context, tx pgx.Tx) (*answer, error) {
	if err := c.admit(ctx); err != nil {
		return nil, err
	}
	sp, found, err := c.claimIn(ctx, tx)
	if sp == nil {
		return found, err
	}
	kept := false
	defer func() { // also when the function panics or calls runtime.Goexit
		if !kept {
			sp.rollback(ctx)
		}
	}()
	result, err := c.run(ctx, tx)
	if err == nil {
		err = sp.record(ctx, c.answer(connOf(tx), result))
	}
	kept = err == nil
	return nil, err
}

// claimIn returns a savepoint that owns the key, or the answer that it found.
func (c *invocation) claimIn(ctx context.Context, tx pgx.Tx) (*savepoint, *answer, error) {
	for again := false; ; {
		sp := &savepoint{tx: tx, args: c.store.keyArgs(c.key)}
		f, err := sp.begin(ctx, &c.store.table)
		if err == nil && f.state == claimed {
			return sp, nil, nil
		}
		if err == nil && f.state == inFlight {
			if err := c.unreachable(ctx, tx, sp.sql, f); err != nil {
				sp.rollback(ctx)
				return nil, nil, err
			}
		}
		sp.rollback(ctx)
		switch {
		case err != nil && c.store.adapt(err, again):
			again = true
			continue
		case err != nil:
			return nil, nil, explain("claim the key", sp.sql.remedied(err))
		case f.state == recorded:
			return nil, f.answer, nil
		case f.state == abandoned:
			return nil, nil, sp.incomplete(ctx)
		}
		if err := c.wait(ctx, ErrInProgress); err != nil {
			return nil, nil, err
		}
	}
}

// The name is this process's own: a function that set or released a savepoint of the
// same name would decide what is undone. A DoTx inside fn may use it again: PostgreSQL
// then means the innermost, which is released before fn returns. One name for all calls
// lets pgx prepare each of these once a connection.
var (
	savepointName = "idempotency_claim_" + strings.ToLower(rand.Text())
	savepointSQL  = "savepoint " + savepointName
	rollbackToSQL = "rollback to savepoint " + savepointName
	releaseSQL    = "release savepoint " + savepointName
)

// A savepoint holds a claim inside a transaction that is the caller's.
type savepoint struct {
	tx    pgx.Tx
	sql   *statements
	args  keyArgs
	owned claim
	isSet bool // else its name may mean the savepoint of an outer DoTx
}

// begin looks the table up, sets the savepoint and claims the key. A claim that has
// succeeded while ctx ended is an error: its function is not run.
func (sp *savepoint) begin(ctx context.Context, t *table) (f finding, err error) {
	err = graced(ctx, connOf(sp.tx), func(ctx context.Context) (err error) {
		if err = checkSentIn(ctx, sp.tx, sp.args); err != nil {
			return err
		}
		if sp.sql, err = t.statements(ctx, sp.tx); err == nil {
			f, err = sp.claim(ctx)
		}
		return err
	})
	if err == nil && f.state == claimed {
		err = ctx.Err()
	}
	return f, err
}

// claim sets the savepoint and claims the key.
func (sp *savepoint) claim(ctx context.Context) (finding, error) {
	if err := sp.set(ctx); err != nil {
		return finding{}, err
	}
	if sp.sql.distributed {
		f, err := sp.claimThere(ctx)
		sp.owned = f.claim
		return f, err
	}
	f, err := readClaim(sp.tx.QueryRow(ctx, sp.sql.claimInTx, sp.args.claimInTx()...))
	if err == nil && f.state != claimed {
		f, err = planned(ctx, sp.tx, readFound, sp.sql.readInTx, sp.args.read())
	}
	if err == nil && f.state == expired {
		f, err = planned(ctx, sp.tx, readClaim, sp.sql.takeOver, sp.args.takeOver())
		f.seen = true
	}
	if err == nil && f.elsewhere {
		err = sp.sql.refuse(ctx, sp.tx)
	}
	sp.owned = f.claim
	return f, err
}

// set sends the savepoint by itself, not in a batch with the claim: pgx prepares
// a statement that it has not cached ahead of the batch, and if that failed (no
// such table) the caller's transaction would be broken, with no savepoint to go
// back to.
func (sp *savepoint) set(ctx context.Context) error {
	_, err := sp.tx.Exec(ctx, savepointSQL)
	sp.isSet = err == nil
	return err
}

// incomplete is the error of a row that has no result.
func (sp *savepoint) incomplete(ctx context.Context) error {
	var own bool
	if err := sp.tx.QueryRow(ctx, sp.sql.owns, sp.sql.lockArgs(sp.args)...).Scan(&own); err != nil {
		return explain("claim the key", sp.sql.remedied(err))
	}
	if own { // with a context, or a Store, that is not the function's
		return fmt.Errorf("%w: it is a function of the same transaction that made this call", ErrInProgress)
	}
	if err := sp.sql.checkAbandoned(ctx, sp.tx, sp.args.read()); err != nil {
		return err
	}
	return ErrAbandoned
}

// record asks for the role as well, every time: Do would run its function once more
// to ask, but this transaction is the caller's.
func (sp *savepoint) record(ctx context.Context, out *answer) (err error) {
	// A nil error of fn is recorded, whatever the context says by now.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitBound)
	defer cancel()
	if err := checkSentIn(ctx, sp.tx, sp.args); err != nil { // the function can have changed client_encoding
		return explain("record the result", err)
	}
	var role string
	var batch pgx.Batch
	batch.Queue(roleSQL).QueryRow(func(row pgx.Row) error { return row.Scan(&role) })
	sp.sql.queueStillHere(&batch, sp.owned)
	batch.Queue(sp.sql.record, sp.args.record(sp.owned, out)...)
	batch.Queue(releaseSQL)
	err = sp.tx.SendBatch(ctx, &batch).Close()
	return sp.sql.explainRecord(err, role)
}

// rollback undoes everything since the savepoint, the advisory lock included.
// Where that fails (the function has left a query open), nothing of it may be
// committed: the connection is closed.
func (sp *savepoint) rollback(ctx context.Context) {
	if !sp.isSet {
		return
	}
	sp.isSet = false
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackBound)
	defer cancel()
	if _, err := sp.tx.Exec(ctx, rollbackToSQL+"; "+releaseSQL); err != nil {
		abort(ctx, sp.tx)
	}
}

func abort(ctx context.Context, tx pgx.Tx) {
	if tx, ok := tx.(sqltx.Tx); ok {
		tx.Abort(ctx)
		return
	}
	_ = tx.Conn().Close(ctx)
}
