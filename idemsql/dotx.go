package idemsql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/bytea"
	"github.com/pgidem/idempotency/internal/sqltx"
)

// DoTx is [idempotency.DoTx] in a transaction that the caller has begun with
// database/sql, by pgx's stdlib, lib/pq or another driver for PostgreSQL: the claim,
// fn's writes and the record become durable with the caller's Commit, and vanish
// with its Rollback. Fn gets tx itself, and must not end it.
//
// The Store's pool and tx have to lead to the same table, which is the caller's to
// see to. Nothing is sent through the pool.
//
// After an error, tx is usable and nothing of fn remains in it. Where that cannot
// be undone, as when fn leaves rows open, DoTx rolls tx back as a whole, and the
// caller's Commit fails with [sql.ErrTxDone]. An error of the driver, such as a
// serialization failure, is found in DoTx's with [errors.As]: as the driver's own,
// and as a *pgconn.PgError with its SQLSTATE.
//
// It costs five round trips, where that of pgx costs three: database/sql has no
// batches. A key beyond ASCII costs two more, to ask for the connection's encoding.
func DoTx[T any](ctx context.Context, s *idempotency.Store, tx *sql.Tx, key idempotency.Key, fn func(ctx context.Context, tx *sql.Tx) (T, error)) (value T, replayed bool, err error) {
	returned := false
	value, replayed, err = idempotency.DoTx(ctx, s, callersTx{sql: tx}, key, func(ctx context.Context, _ pgx.Tx) (T, error) {
		value, err := fn(ctx, tx)
		returned = err == nil
		return value, err
	})
	if returned && errors.Is(err, sql.ErrTxDone) {
		err = fmt.Errorf("%w: the *sql.Tx was ended by the function, or by the end of the context of its BeginTx, before the result was recorded: %w", idempotency.ErrOutcomeUnknown, err)
	}
	return value, replayed, err
}

// A callersTx is a *sql.Tx as DoTx of package idempotency needs it. It uses nothing
// but the *sql.Tx: a *pgx.Conn from below would be used at the same time as
// database/sql uses it, to roll back when the context of BeginTx ends.
type callersTx struct {
	pgx.Tx // nil: DoTx calls no method but those here
	sql    *sql.Tx
}

var _ sqltx.Tx = callersTx{}

// Abort rolls back; the caller's Commit then fails. Where the *sql.Tx is one of Run,
// the connection is closed instead, as with a pgx.Tx.
func (t callersTx) Abort(ctx context.Context) {
	if ours, ok := errors.AsType[notYours](t.sql.Rollback()); ok {
		_ = ours.conn.tx.Conn().Close(ctx)
	}
}

func (t callersTx) Exec(ctx context.Context, query string, args ...any) (pgconn.CommandTag, error) {
	_, err := t.sql.ExecContext(ctx, query, args...)
	return pgconn.CommandTag{}, asPgx(err)
}

func (t callersTx) QueryRow(ctx context.Context, query string, args ...any) pgx.Row {
	return callersRow{t.sql.QueryRowContext(ctx, query, args...)}
}

func (t callersTx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	return &oneByOne{ctx: ctx, tx: t, queries: b.QueuedQueries}
}

type callersRow struct{ row *sql.Row }

func (r callersRow) Scan(into ...any) error {
	for i, dest := range into {
		if b, ok := dest.(*bytea.Bytes); ok { // the driver has decoded it
			into[i] = (*[]byte)(b)
		}
	}
	return asPgx(r.row.Scan(into...))
}

// oneByOne is a batch whose statements are sent when their results are asked for,
// the others by Close. As in a batch, Close sends none after one that failed.
type oneByOne struct {
	pgx.BatchResults // nil: DoTx calls no method but those here
	ctx              context.Context
	tx               callersTx
	queries          []*pgx.QueuedQuery
	err              error
}

func (b *oneByOne) next() *pgx.QueuedQuery {
	q := b.queries[0]
	b.queries = b.queries[1:]
	return q
}

func (b *oneByOne) Exec() (pgconn.CommandTag, error) {
	q := b.next()
	tag, err := b.tx.Exec(b.ctx, q.SQL, q.Arguments...)
	b.err = err
	return tag, err
}

func (b *oneByOne) QueryRow() pgx.Row {
	q := b.next()
	return b.tx.QueryRow(b.ctx, q.SQL, q.Arguments...)
}

func (b *oneByOne) Close() error {
	for b.err == nil && len(b.queries) > 0 {
		if q := b.queries[0]; q.Fn != nil {
			b.err = q.Fn(b)
		} else {
			_, _ = b.Exec()
		}
	}
	b.queries = nil
	return b.err
}

const codeInFailedTransaction = "25P02"

// asPgx adds to an error of a driver what pgx would have said.
func asPgx(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return pgx.ErrNoRows
	}
	coded, ok := errors.AsType[interface {
		error
		SQLState() string
	}](err)
	if !ok {
		return err
	}
	if _, ok := errors.AsType[*pgconn.PgError](err); !ok {
		err = translated{err, described(coded, coded.SQLState())}
	}
	if coded.SQLState() == codeInFailedTransaction {
		return fmt.Errorf("a statement before it failed: %w: %w", pgx.ErrTxCommitRollback, err)
	}
	return err
}

// described has of an error of another driver what tells its causes apart: lib/pq has
// all fields of the message of PostgreSQL, by their letters in its protocol.
func described(err error, code string) *pgconn.PgError {
	e := &pgconn.PgError{Code: code, Message: err.Error()}
	if fields, ok := err.(interface{ Get(field byte) string }); ok {
		position, _ := strconv.ParseInt(fields.Get('P'), 10, 32)
		e.Position = int32(position)
		e.InternalQuery, e.Where, e.Routine = fields.Get('q'), fields.Get('W'), fields.Get('R')
	}
	return e
}

// translated is an error of another driver that is also pgx's.
type translated struct {
	error
	pg *pgconn.PgError
}

func (t translated) Unwrap() []error { return []error{t.error, t.pg} }
