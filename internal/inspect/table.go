package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/condition"
	"github.com/pgidem/idempotency/internal/keytable"
	"github.com/pgidem/idempotency/internal/remedy"
)

// A Querier is a pool, or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// A Table is the table of the keys of one database, and that of the operations beside it.
type Table struct {
	Schema string       // that was asked for, or none: as the search_path has it
	Found  string       // the schema that the table has
	Use    keytable.Use // what the table is trusted for

	bounded bool // no statement reads more than it has to
}

// Reading calls do in a transaction in which the table is what it was found to be: what
// somebody has put in its place since would run. It is read only, but where another table
// may have to be held as an inert one: see keytable.Hold.
func (t *Table) Reading(ctx context.Context, pool *pgxpool.Pool, do func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, pool, readCommitted, func(tx pgx.Tx) error {
		if err := t.hold(ctx, tx); err != nil {
			return err
		}
		return do(tx)
	})
}

var readCommitted = pgx.TxOptions{IsoLevel: pgx.ReadCommitted}

func (t *Table) hold(ctx context.Context, tx pgx.Tx) error {
	table, err := t.HeldKeys(ctx, tx, keytable.Reading)
	if err == nil && !table.Inert() {
		_, err = tx.Exec(ctx, readOnlySQL)
	}
	return err
}

const readOnlySQL = `set transaction read only`

// Purging is the context for a Store's methods that delete what has expired, each
// transaction of which looks at the table first. They name no other.
func (t *Table) Purging(ctx context.Context) context.Context {
	return condition.With(ctx, func(ctx context.Context, tx pgx.Tx) (operations bool, err error) {
		_, err = t.HeldKeys(ctx, tx, keytable.Writing)
		return false, err
	})
}

// Changing is the context for the methods that change one key, each transaction of which
// looks at both tables first. That of the operations is held for use. Where it is missing,
// the error is absent, or it is not read: whatever gets its name from now on has not been
// looked at.
func (t *Table) Changing(ctx context.Context, use keytable.Use, absent error) context.Context {
	return condition.With(ctx, func(ctx context.Context, tx pgx.Tx) (operations bool, err error) {
		return t.holdBoth(ctx, tx, use, absent)
	})
}

func (t *Table) holdBoth(ctx context.Context, tx pgx.Tx, use keytable.Use, absent error) (operations bool, err error) {
	if _, err := t.HeldKeys(ctx, tx, keytable.Writing); err != nil {
		return false, err
	}
	there, err := keytable.Holds(ctx, tx, t.Found, keytable.Operations) // to hold what is not there would end the transaction
	if err != nil || !there {
		return false, cmp.Or(err, absent)
	}
	_, err = t.heldTable(ctx, tx, keytable.Operations, use)
	return err == nil, err
}

// HeldKeys holds the table of the keys until tx ends, and returns why it is not worked with.
func (t *Table) HeldKeys(ctx context.Context, tx pgx.Tx, use keytable.Use) (keytable.Table, error) {
	table, err := t.heldTable(ctx, tx, keytable.Name, use)
	if errors.Is(err, keytable.ErrMissing) {
		err = Untrusted(remedy.MissingTable) // the one that somebody makes from now on has not been looked at
	}
	return table, err
}

// heldTable holds a table that has our columns, with our types. For others an operator, or a
// function, that somebody has made can be an exact match.
func (t *Table) heldTable(ctx context.Context, tx pgx.Tx, relation string, use keytable.Use) (table keytable.Table, err error) {
	table, err = t.trusted(ctx, tx, relation, use)
	if err == nil && !table.Fits() {
		err = t.unfit(relation, table)
	}
	return table, err
}

func (t *Table) unfit(relation string, table keytable.Table) error {
	return Untrusted(fmt.Sprintf("%s was not made by this package: %s: rename what is there, or name another schema (-schema)", Qualified(t.Found, relation), table.Unfit()))
}

// trusted is heldTable whatever the columns are.
func (t *Table) trusted(ctx context.Context, tx pgx.Tx, relation string, use keytable.Use) (table keytable.Table, err error) {
	name := Qualified(t.Found, relation)
	table, err = keytable.Hold(ctx, tx, t.Found, relation, use)
	switch {
	case errors.Is(err, keytable.ErrMissing):
		return table, err
	case errors.Is(err, keytable.ErrNoTable), err == nil && !table.IsTable():
		return table, Untrusted(fmt.Sprintf("%s is not a table: rename what is there, name another schema (-schema), and let only trusted roles create in the schema", name))
	case err != nil:
		return table, fmt.Errorf("looking at %s: %w", name, err)
	}
	if stranger := table.StrangerByName(t.Use); stranger != nil {
		return table, Untrusted(fmt.Sprintf("%s: %s", stranger.Found(name), stranger.Remedy()))
	}
	return table, nil
}

// Untrusted is why the table is not worked with.
type Untrusted string

func (e Untrusted) Error() string { return string(e) }

// Qualified is a table's name in SQL.
func Qualified(schema, table string) string {
	if schema == "" {
		return table
	}
	return pgx.Identifier{schema, table}.Sanitize()
}

// On puts the names of the tables into one of the statements of this package.
func (t *Table) On(sql string) string {
	var names []string
	for _, table := range []string{keytable.Name, keytable.Operations} {
		name := Qualified(cmp.Or(t.Found, t.Schema), table)
		names = append(names, "'"+table+"'", keytable.Literal(name), table, name)
	}
	return strings.NewReplacer(names...).Replace(sql)
}
