package inspect

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/keytable"
)

// An Operation is one of a procedure that has begun and has not ended: a retry, or
// Store.Complete, goes on with it.
type Operation struct {
	Procedure    string   `json:"procedure"`
	StartedAt    Instant  `json:"started_at"`
	ProgressedAt Instant  `json:"progressed_at"`
	DueAt        Instant  `json:"due_at"`
	Done         []string `json:"done"`            // steps and calls, as "step create"
	Begun        string   `json:"begun,omitempty"` // whose outcome is not known, since ProgressedAt
	Attempts     int32    `json:"attempts"`
	Error        *string  `json:"error,omitempty"` // null: none, or not for this role to read

	Unsure bool `json:"-"` // Begun can have ended: this role may not see that
}

// Operations is what this role may read of the table of the operations that have not
// ended.
type Operations struct {
	readable        bool // it is there, and may be read
	error, outcomes bool // as well
	probed          bool // never read all of it to learn of which keys it has one
}

const operationsSQL = `
select has_column_privilege(t, 'error'::text, 'select'::text), has_column_privilege(t, 'results'::text, 'select'::text),
	not exists (select from pg_catalog.unnest(array['id', 'scope', 'name', 'labels', 'attempts', 'started_at', 'progressed_at', 'due_at']::text[]) c (name)
		where not has_column_privilege(t, c.name, 'select'::text))
from (select 'idempotency_operations'::regclass::oid) x (t)`

// Operations holds the table as reading does that of the keys. Before the migration that
// makes it there are none.
func (t *Table) Operations(ctx context.Context, tx pgx.Tx) (o Operations, err error) {
	o.probed = t.bounded
	var there bool // to hold what is not there would end the transaction
	if err := tx.QueryRow(ctx, t.On(`select to_regclass('idempotency_operations'::text) is not null`)).Scan(&there); err != nil || !there {
		return o, err
	}
	table, err := t.trusted(ctx, tx, keytable.Operations, keytable.Reading)
	switch {
	case err != nil:
		return o, err
	case len(table.Mistyped()) > 0:
		return o, t.unfit(keytable.Operations, table)
	case len(table.Missing()) > 0: // of another release: it is not read
		return o, nil
	}
	err = tx.QueryRow(ctx, t.On(operationsSQL)).Scan(&o.error, &o.outcomes, &o.readable)
	return o, err
}

// stateSQL is the state of a row. A claim without a result is of an operation that has not
// ended, or nothing is known of it any more.
func (o Operations) stateSQL(now string) string {
	open, probed := `'abandoned'`, ``
	if o.probed {
		probed = ` offset 0` // which keeps the planner from making a hash table of all
	}
	if o.readable {
		open = `case when exists (select from idempotency_operations o where o.id = idempotency_keys.id and o.scope = idempotency_keys.scope` + probed + `) then 'unfinished' else 'abandoned' end`
	}
	return `(case when completed_at is null then ` + open + ` when expires_at <= ` + now + ` then 'expired' else 'done' end)::text`
}

func (o Operations) sql() string {
	return `
select ` + o.columns() + `
from idempotency_operations
where id = $1::text and scope = $2::text`
}

// columns are what scanOperation reads.
func (o Operations) columns() string {
	message, ended := `error`, `pg_catalog.cardinality(results)`
	if !o.error {
		message = `null::text`
	}
	if !o.outcomes {
		ended = `null::integer`
	}
	return `name, labels, ` + ended + `, attempts, ` + message + `,
	extract(epoch from started_at)::text, extract(epoch from progressed_at)::text, extract(epoch from due_at)::text`
}

// findOperation makes a record that seems to be abandoned an unfinished one, if the key has
// an operation that has not ended.
func (t *Table) findOperation(ctx context.Context, tx pgx.Tx, rec *Record) error {
	o, err := t.Operations(ctx, tx)
	if err != nil || !o.readable {
		return err
	}
	op, err := scanOperation(tx.QueryRow(ctx, t.On(o.sql()), rec.ID, rec.Scope))
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	rec.State, rec.Operation = Unfinished, op
	return err
}

// scanOperation reads the columns of an operation, and those behind them.
func scanOperation(row pgx.Row, more ...any) (*Operation, error) {
	op := new(Operation)
	var labels []string
	var ended *int
	err := row.Scan(append([]any{&op.Procedure, &labels, &ended, &op.Attempts, &op.Error, &op.StartedAt, &op.ProgressedAt, &op.DueAt}, more...)...)
	op.Done = labels
	if n := len(labels) - 1; err == nil && n >= 0 && (ended == nil || *ended == n) {
		op.Done, op.Begun, op.Unsure = labels[:n], labels[n], ended == nil
	}
	return op, err
}

// A Backlog is what stats says of the operations that have not ended.
type Backlog struct {
	Operations int64    `json:"operations"`
	InCalls    *int64   `json:"in_calls"` // null: this role may not read the column results
	Failed     int64    `json:"failed"`   // Store.Complete has tried in vain
	Oldest     *Instant `json:"oldest_progressed,omitempty"`
}

func (o Operations) backlogSQL() string { return o.backlogSQLOf(`idempotency_operations`) }

func (o Operations) backlogSQLOf(source string) string {
	inCalls := `null::bigint`
	if o.outcomes {
		inCalls = `count(*) filter (where pg_catalog.cardinality(labels) > pg_catalog.cardinality(results))`
	}
	return `select count(*), ` + inCalls + `, count(*) filter (where attempts > 0), extract(epoch from min(progressed_at))::text from ` + source
}

// Backlog is nil where the role may not see it.
func (t *Table) Backlog(ctx context.Context, tx pgx.Tx, o Operations) (*Backlog, error) {
	if !o.readable {
		return nil, nil
	}
	b := new(Backlog)
	err := tx.QueryRow(ctx, t.On(o.backlogSQL())).Scan(&b.Operations, &b.InCalls, &b.Failed, &b.Oldest)
	return b, err
}
