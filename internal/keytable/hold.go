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

// Hold keeps the table as it is until tx ends, and returns ErrMissing where there is none.
// Describe it in tx after that, and work with it in tx. What is described without a lock
// can be another table when the next statement names it: the owner of the schema can
// replace it, and commit that when the statement already waits for the old one. tx has to
// be at READ COMMITTED, or Describe sees what was there before the lock.
//
// Held for writing, nobody can put a trigger on it or refer to it (chapter 13.3.1 of the
// manual: CREATE TRIGGER waits for ROW EXCLUSIVE). Only the schema can still be renamed:
// see StrangerByName.
func Hold(ctx context.Context, tx pgx.Tx, schema, name string, use Use) error {
	err := lock(ctx, tx, schema, name, use)
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
