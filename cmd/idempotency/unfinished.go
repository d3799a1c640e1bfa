package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/keytable"
)

// An operation is one of a procedure that has begun and has not ended: a retry, or
// Store.Complete, goes on with it.
type operation struct {
	Procedure    string   `json:"procedure"`
	StartedAt    instant  `json:"started_at"`
	ProgressedAt instant  `json:"progressed_at"`
	DueAt        instant  `json:"due_at"`
	Done         []string `json:"done"`            // steps and calls, as "step create"
	Begun        string   `json:"begun,omitempty"` // whose outcome is not known, since ProgressedAt
	Attempts     int32    `json:"attempts"`
	Error        *string  `json:"error,omitempty"` // null: none, or not for this role to read

	unsure bool // Begun can have ended: this role may not see that
}

// operations is what this role may read of the table of the operations that have not
// ended.
type operations struct {
	readable        bool // it is there, and may be read
	error, outcomes bool // as well
}

const operationsSQL = `
select has_column_privilege(t, 'error'::text, 'select'::text), has_column_privilege(t, 'results'::text, 'select'::text),
	not exists (select from pg_catalog.unnest(array['id', 'scope', 'name', 'labels', 'attempts', 'started_at', 'progressed_at', 'due_at']::text[]) c (name)
		where not has_column_privilege(t, c.name, 'select'::text))
from (select 'idempotency_operations'::regclass::oid) x (t)`

// operations holds the table as reading does that of the keys. Before the migration that
// makes it there are none.
func (d *database) operations(ctx context.Context, tx pgx.Tx) (o operations, err error) {
	var there bool // to hold what is not there would end the transaction
	if err := tx.QueryRow(ctx, d.on(`select to_regclass('idempotency_operations'::text) is not null`)).Scan(&there); err != nil || !there {
		return o, err
	}
	table, err := d.trusted(ctx, tx, keytable.Operations, keytable.Reading)
	switch {
	case err != nil:
		return o, err
	case len(table.Mistyped()) > 0:
		return o, d.unfit(keytable.Operations, table)
	case len(table.Missing()) > 0: // of another release: it is not read
		return o, nil
	}
	err = tx.QueryRow(ctx, d.on(operationsSQL)).Scan(&o.error, &o.outcomes, &o.readable)
	return o, err
}

// stateSQL is the state of a row. A claim without a result is of an operation that has not
// ended, or nothing is known of it any more.
func (o operations) stateSQL(now string) string {
	open := `'abandoned'`
	if o.readable {
		open = `case when exists (select from idempotency_operations o where o.id = idempotency_keys.id and o.scope = idempotency_keys.scope) then 'unfinished' else 'abandoned' end`
	}
	return `(case when completed_at is null then ` + open + ` when expires_at <= ` + now + ` then 'expired' else 'done' end)::text`
}

func (o operations) sql() string {
	message, ended := `error`, `pg_catalog.cardinality(results)`
	if !o.error {
		message = `null::text`
	}
	if !o.outcomes {
		ended = `null::integer`
	}
	return `
select name, labels, ` + ended + `, attempts, ` + message + `,
	extract(epoch from started_at)::text, extract(epoch from progressed_at)::text, extract(epoch from due_at)::text
from idempotency_operations
where id = $1::text and scope = $2::text`
}

// findOperation makes a record that seems to be abandoned an unfinished one, if the key has
// an operation that has not ended.
func (d *database) findOperation(ctx context.Context, tx pgx.Tx, rec *record) error {
	o, err := d.operations(ctx, tx)
	if err != nil || !o.readable {
		return err
	}
	op := new(operation)
	var labels []string
	var ended *int
	err = tx.QueryRow(ctx, d.on(o.sql()), rec.ID, rec.Scope).
		Scan(&op.Procedure, &labels, &ended, &op.Attempts, &op.Error, &op.StartedAt, &op.ProgressedAt, &op.DueAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	op.Done = labels
	if n := len(labels) - 1; err == nil && n >= 0 && (ended == nil || *ended == n) {
		op.Done, op.Begun, op.unsure = labels[:n], labels[n], ended == nil
	}
	rec.State, rec.Operation = unfinished, op
	return err
}

// lines are for people.
func (op *operation) lines(now instant) [][]string {
	lines := [][]string{
		{"procedure:", plain(op.Procedure)},
		{"started:", op.StartedAt.in(now)},
		{"progressed:", op.ProgressedAt.in(now)},
	}
	for _, label := range op.Done {
		lines = append(lines, []string{"done:", plain(label)})
	}
	if op.Begun != "" {
		outcome := ": its outcome is not known"
		if op.unsure {
			outcome = ": this role may not see whether it has ended (select on the column results)"
		}
		lines = append(lines, []string{"begun:", plain(op.Begun) + outcome})
	}
	if op.Attempts > 0 {
		lines = append(lines, []string{"attempts:", fmt.Sprintf("%d of Store.Complete have failed, the next is due %s", op.Attempts, op.DueAt.in(now))})
	}
	if op.Error != nil {
		lines = append(lines, []string{"error:", plain(*op.Error)})
	}
	return lines
}

// progress says where an operation is that somebody works at.
func (op *operation) progress() string {
	done := "nothing"
	if len(op.Done) > 0 {
		done = strings.Join(op.Done, ", ")
	}
	text := fmt.Sprintf("procedure %s has done: %s", op.Procedure, done)
	if op.Begun != "" {
		text += "; it has begun: " + op.Begun
	}
	return plain(text)
}

// A backlog is what stats says of the operations that have not ended.
type backlog struct {
	Operations int64    `json:"operations"`
	InCalls    *int64   `json:"in_calls"` // null: this role may not read the column results
	Failed     int64    `json:"failed"`   // Store.Complete has tried in vain
	Oldest     *instant `json:"oldest_progressed,omitempty"`
}

func (o operations) backlogSQL() string {
	inCalls := `null::bigint`
	if o.outcomes {
		inCalls = `count(*) filter (where pg_catalog.cardinality(labels) > pg_catalog.cardinality(results))`
	}
	return `select count(*), ` + inCalls + `, count(*) filter (where attempts > 0), extract(epoch from min(progressed_at))::text from idempotency_operations`
}

// backlog is nil where the role may not see it.
func (d *database) backlog(ctx context.Context, tx pgx.Tx, o operations) (*backlog, error) {
	if !o.readable {
		return nil, nil
	}
	b := new(backlog)
	err := tx.QueryRow(ctx, d.on(o.backlogSQL())).Scan(&b.Operations, &b.InCalls, &b.Failed, &b.Oldest)
	return b, err
}

func (b *backlog) text(now instant) string {
	parts := []string{count(b.Operations)}
	if b.InCalls != nil && *b.InCalls > 0 {
		parts = append(parts, count(*b.InCalls)+" in a call whose outcome is not known")
	}
	if b.Failed > 0 {
		parts = append(parts, count(b.Failed)+" that Store.Complete has tried in vain")
	}
	if b.Oldest != nil {
		parts = append(parts, "the oldest has not progressed since "+b.Oldest.in(now))
	}
	return strings.Join(parts, ", ") + " (list -state unfinished)"
}

// changeOperation calls do for an operation of a procedure that has not ended. Each of its
// transactions looks at both tables first.
func (d *database) changeOperation(ctx context.Context, scope, id string, do func(context.Context, *idempotency.Store, idempotency.Key) error) error {
	return d.useTable(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
		store, err := d.store(pool, nil)
		if err != nil {
			return err
		}
		rec := record{Scope: scope, ID: id}
		err = do(d.changing(ctx, keytable.Writing, idempotency.ErrNotFound), store, idempotency.Key{Scope: scope, ID: id})
		switch {
		case errors.Is(err, idempotency.ErrNotFound):
			return exitError{exitNotFound, "no procedure with " + rec.key() + " has begun and not ended: get tells what became of it"}
		case errors.Is(err, idempotency.ErrInProgress):
			rec.State = inProgress
			if rec.Holders, err = d.holders(ctx, pool, scope, id); err == nil {
				err = rec.stillHeld()
			}
		}
		return err
	})
}
