package ormtest

import (
	"context"
	"database/sql"
	"testing"

	"github.com/jmoiron/sqlx"
)

// once, when the program starts: for named queries on a transaction of idemsql
func init() { sqlx.BindDriver("", sqlx.DOLLAR) }

func chargeWithSQLX(ctx context.Context, db *sqlx.DB, sqlTx *sql.Tx) (charge Charge, err error) {
	tx := &sqlx.Tx{Tx: sqlTx, Mapper: db.Mapper}
	const insert = "insert into charges (account, cents) values ($1, $2) returning *"
	err = tx.GetContext(ctx, &charge, insert, "alice", 1000)
	return charge, err
}

func TestSQLX(t *testing.T) {
	t.Parallel()
	b := setup(t)
	db := sqlx.NewDb(b.db, "pgx")
	b.once(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		return chargeWithSQLX(ctx, db, tx)
	})
}

func TestNamedQueriesOfSQLX(t *testing.T) {
	t.Parallel()
	b := setup(t)
	db := sqlx.NewDb(b.db, "pgx")
	b.once(func(ctx context.Context, sqlTx *sql.Tx) (Charge, error) {
		c, err := chargeWithSQLX(ctx, db, sqlTx)
		if err != nil {
			return c, err
		}
		tx := &sqlx.Tx{Tx: sqlTx, Mapper: db.Mapper}
		c.Cents = 5
		if _, err := tx.NamedExecContext(ctx, "update charges set cents = :cents where id = :id", c); err != nil {
			return c, err
		}
		stmt, err := tx.PreparexContext(ctx, "update charges set cents = cents * $2 where id = $1 returning *")
		if err != nil {
			return c, err
		}
		if err := stmt.GetContext(ctx, &c, c.ID, 200); err != nil {
			return c, err
		}
		var all []Charge
		err = tx.SelectContext(ctx, &all, "select * from charges")
		if len(all) != 1 {
			t.Errorf("%v", all)
		}
		return c, err
	})
}
