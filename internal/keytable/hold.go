package keytable

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A Use is what a table is held for.
type Use bool

const (
	Reading Use = false
	Writing Use = true
)

// ErrNoTable says that what has the name cannot be held.
var ErrNoTable = errors.New("not a table")

// Hold keeps the table as it is until tx ends, describes it, and returns ErrMissing where
// there is none. Work with it in tx. What is described without a lock can be another table
// when the next statement names it: the owner of the schema can replace it, and commit that
// when the statement already waits for the old one. tx has to be at READ COMMITTED, or
// what is described is what was there before the lock.
//
// Held for writing, nobody can put a trigger on it or refer to it (chapter 13.3 of the
// manual: CREATE TRIGGER waits for ROW EXCLUSIVE). Held for reading, its owner can still
// create an index or extended statistics, whose expressions the planner runs: so where the
// table is trusted only for being inert, these wait, too. That needs a tx that is not read
// only; in one that is, as on a standby, the table is not taken for inert. Only the schema
// can still be renamed: see StrangerByName.
func Hold(ctx context.Context, tx pgx.Tx, schema, name string, use Use, options ...any) (t Table, err error) {
	if err := LockError(lock(ctx, tx, schema, name, use)); err != nil {
		return t, err
	}
	t, err = Describe(ctx, tx, schema, name, options...)
	if err != nil || use == Writing || !t.Inert() {
		return t, err
	}
	var readOnly bool
	if err := tx.QueryRow(ctx, readOnlySQL, pgx.QueryExecModeExec).Scan(&readOnly); err != nil {
		return t, err
	}
	if readOnly {
		for i := range t.Strangers {
			t.Strangers[i].Inert = false
		}
		return t, nil
	}
	_, err = tx.Exec(ctx, "lock table "+pgx.Identifier{schema, name}.Sanitize()+" in share update exclusive mode", pgx.QueryExecModeExec)
	if err := LockError(err); err != nil {
		return t, err
	}
	return Describe(ctx, tx, schema, name, options...)
}

const readOnlySQL = `select current_setting('transaction_read_only'::text)::bool`

// Inert reports whether those who read trust the table only because it can run nothing.
func (t Table) Inert() bool {
	return t.StrangerByName(Reading) == nil && t.StrangerByName(Writing) != nil
}

// LockError is ErrMissing or ErrNoTable where the error of LOCK TABLE means that. What
// PostgreSQL says there has no position, by which remedy.Missing knows an error of a
// statement itself.
func LockError(err error) error {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch e.Code {
		case "42P01", "3F000":
			return ErrMissing
		case "42809":
			return ErrNoTable
		}
	}
	return err
}

// tableSQL is asked first, since a role may lack the right to lock what is no table.
const tableSQL = `
select c.relkind in ('r', 'p') from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1::text::name and c.relname = $2::text::name`

// lock locks the children, too, for who writes. To parse a statement locks what it names,
// and needs no right to read all of it, as LOCK TABLE does; it plans nothing, so that it
// runs nothing of what is there.
func lock(ctx context.Context, tx pgx.Tx, schema, name string, use Use) error {
	table := pgx.Identifier{schema, name}.Sanitize()
	if use == Reading {
		_, err := tx.Conn().PgConn().Prepare(ctx, "", "select from "+table, nil)
		return err
	}
	var is bool
	err := tx.QueryRow(ctx, tableSQL, pgx.QueryExecModeExec, schema, name).Scan(&is)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return ErrMissing
	case err != nil:
		return err
	case !is:
		return ErrNoTable
	}
	_, err = tx.Exec(ctx, "lock table "+table+" in row exclusive mode", pgx.QueryExecModeExec)
	return err
}
