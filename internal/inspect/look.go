package inspect

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/condition"
	"github.com/pgidem/idempotency/internal/keytable"
	"github.com/pgidem/idempotency/internal/remedy"
)

// Look is Reading with a connection of somebody else's pool, on a table that can be large
// and busy. No statement takes longer than patience, and the planner reads no table from one
// end to the other where there is another way. It leaves nothing in the session: neither a
// setting nor a prepared statement.
func (t Table) Look(ctx context.Context, pool *pgxpool.Pool, patience time.Duration, do func(pgx.Tx, *Table) error) error {
	t.bounded = true
	err := pgx.BeginTxFunc(ctx, pool, readCommitted, func(tx pgx.Tx) error {
		tx = unprepared{tx}
		if err := t.sit(ctx, tx, patience); err != nil {
			return err
		}
		if err := t.hold(ctx, tx); err != nil {
			return err
		}
		return do(tx, &t)
	})
	return remedy.Of(err, t.Schema)
}

// sit makes of the transaction's session one in which the keys are what they are, and finds
// the table.
func (t *Table) sit(ctx context.Context, tx pgx.Tx, patience time.Duration) (err error) {
	if err := unshadowed(ctx, tx); err != nil {
		return err
	}
	milliseconds := strconv.FormatInt(patience.Milliseconds(), 10)
	if _, err := tx.Exec(ctx, boundsSQL, milliseconds); err != nil {
		return err
	}
	if err := legible(ctx, tx.Conn(), "set local"); err != nil {
		return err
	}
	if t.Found = t.Schema; t.Schema == "" {
		if t.Found, err = keytable.Schema(ctx, tx); err != nil {
			return err
		}
	}
	if t.Found == "" {
		return Untrusted(remedy.MissingTable)
	}
	return nil
}

// boundsSQL lets the planner know the values (a generic plan would not make a range of
// them), and neither compile a plan nor take more than one process for it.
const boundsSQL = `
select set_config('statement_timeout'::text, $1::text, true), set_config('enable_seqscan'::text, 'off'::text, true),
	set_config('plan_cache_mode'::text, 'force_custom_plan'::text, true), set_config('jit'::text, 'off'::text, true),
	set_config('max_parallel_workers_per_gather'::text, '0'::text, true)`

// unprepared is a transaction whose statements push none of the program's own out of the
// connection's cache of prepared ones.
type unprepared struct{ pgx.Tx }

func (tx unprepared) args(args []any) []any {
	switch tx.Conn().Config().DefaultQueryExecMode {
	case pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe:
		return append([]any{pgx.QueryExecModeDescribeExec}, args...)
	}
	return args
}

func (tx unprepared) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return tx.Tx.Exec(ctx, sql, tx.args(args)...)
}

func (tx unprepared) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return tx.Tx.Query(ctx, sql, tx.args(args)...)
}

func (tx unprepared) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return tx.Tx.QueryRow(ctx, sql, tx.args(args)...)
}

func (tx unprepared) Begin(ctx context.Context) (pgx.Tx, error) {
	inner, err := tx.Tx.Begin(ctx)
	return unprepared{inner}, err
}

// ErrOther says that a key has another record than the one that was looked at.
var ErrOther = errors.New("another call has taken effect since")

// Deleting is Changing for a record that somebody has looked at: where the key has another
// version of it by now, the error is ErrOther. It is busy while another transaction has the
// row. The row stays locked until the transaction ends, so that it is this one that is
// deleted.
func (t Table) Deleting(ctx context.Context, patience time.Duration, rec Record, busy error) context.Context {
	return condition.With(ctx, func(ctx context.Context, tx pgx.Tx) (operations bool, err error) {
		tx = unprepared{tx}
		if err := t.sit(ctx, tx, patience); err != nil {
			return false, err
		}
		if operations, err = t.holdBoth(ctx, tx, keytable.Reading, nil); err != nil {
			return false, err
		}
		return operations, t.same(ctx, tx, rec, busy)
	})
}

const versionSQL = `
select extract(epoch from purge_after)::text, extract(epoch from completed_at)::text
from idempotency_keys
where id = $1::text and scope = $2::text
for update nowait`

const lockNotAvailable = "55P03"

func (t *Table) same(ctx context.Context, tx pgx.Tx, rec Record, busy error) error {
	var now Record
	err := tx.QueryRow(ctx, t.On(versionSQL), rec.ID, rec.Scope).Scan(&now.purgeAfter, &now.CompletedAt)
	e, refused := errors.AsType[*pgconn.PgError](err)
	switch {
	case errors.Is(err, pgx.ErrNoRows): // Delete says so
		return nil
	case refused && e.Code == lockNotAvailable:
		return busy
	case err == nil && now.Version() != rec.Version():
		return ErrOther
	}
	return err
}

// Version tells the records of a key apart.
func (rec Record) Version() string {
	if rec.version != "" {
		return rec.version
	}
	completed := ""
	if rec.CompletedAt != nil {
		completed = rec.CompletedAt.Exact()
	}
	return rec.purgeAfter.Exact() + " " + completed
}

// Seen is a record of which no more is known than its version.
func Seen(scope, id, version string) Record { return Record{Scope: scope, ID: id, version: version} }
