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

// Hold keeps the table as it is until tx ends, and returns ErrMissing where there is none.
// Describe it in tx after that, and work with it in tx. What is described without a lock
// can be another table when the next statement names it: the owner of the schema can
// replace it, and commit that when the statement already waits for the old one. tx has to
// be at READ COMMITTED, or Describe sees what was there before the lock.
//
// Held for writing, nobody can put a trigger on it or refer to it (chapter 13.3.1 of the
// manual: CREATE TRIGGER waits for ROW EXCLUSIVE). Only the schema can still be renamed:
// see StrangerByName.
//
// To parse a statement locks what it names, and needs no right to read it, as LOCK TABLE
// does; it plans nothing, so that it runs nothing of what is there.
func Hold(ctx context.Context, tx pgx.Tx, schema, name string, use Use) error {
	table := pgx.Identifier{schema, name}.Sanitize()
	var err error
	if use == Writing {
		_, err = tx.Exec(ctx, "lock table "+table+" in row exclusive mode", pgx.QueryExecModeExec)
	} else {
		_, err = tx.Conn().PgConn().Prepare(ctx, "", "select from "+table, nil)
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && (e.Code == "42P01" || e.Code == "3F000") {
		return ErrMissing
	}
	return err
}
