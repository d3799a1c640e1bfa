package ormtest

import (
	"context"
	"database/sql"
	"testing"

	"github.com/jmoiron/sqlx"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemsql"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
	"gorm.io/gorm"
)

func chargeWithSQL(ctx context.Context, store *idempotency.Store, key idempotency.Key) (Charge, bool, error) {
	return idempotency.Do(ctx, store, key, idemsql.Func(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		charge := Charge{Account: "alice", Cents: 1000}
		const insert = "insert into charges (account, cents) values ($1, $2) returning id"
		err := tx.QueryRowContext(ctx, insert, charge.Account, charge.Cents).Scan(&charge.ID)
		return charge, err
	}))
}

func TestDatabaseSQL(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, _, err := chargeWithSQL(t.Context(), b.store, b.key)
	if err != nil {
		t.Fatal(err)
	}
	if again, replayed, err := chargeWithSQL(t.Context(), b.store, b.key); again != first || !replayed || err != nil {
		t.Errorf("%+v, replayed %v, %v; want %+v again", again, replayed, err, first)
	}
	b.charges(1)
}

func chargeInATransaction(ctx context.Context, store *idempotency.Store, key idempotency.Key, db *sql.DB) (Charge, error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return Charge{}, err
	}
	defer tx.Rollback()
	charge, _, err := idemsql.DoTx(ctx, store, tx, key, func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		return chargeWithSQLC(ctx, tx)
	})
	if err != nil {
		return Charge{}, err
	}
	return charge, tx.Commit()
}

func TestDoTxInATransactionOfDatabaseSQL(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, err := chargeInATransaction(t.Context(), b.store, b.key, b.db)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := chargeInATransaction(t.Context(), b.store, b.key, b.db); again != first || err != nil {
		t.Errorf("%+v, %v; want %+v again", again, err, first)
	}
	b.charges(1)
}

// Each ORM can be asked for the *sql.Tx of a transaction that it has begun.
func TestDoTxInATransactionThatAnORMHasBegun(t *testing.T) {
	t.Parallel()
	b := setup(t)
	sqlcCharge := func(ctx context.Context, tx *sql.Tx) (Charge, error) { return chargeWithSQLC(ctx, tx) }
	for name, in := range map[string]func(do func(*sql.Tx) error) error{
		"gorm, PrepareStmt": func(do func(*sql.Tx) error) error {
			return b.gormDB(gorm.Config{PrepareStmt: true}).Transaction(func(g *gorm.DB) error {
				return do(g.Statement.ConnPool.(*gorm.PreparedStmtTX).Tx.(*sql.Tx))
			})
		},
		"gorm": func(do func(*sql.Tx) error) error {
			return b.gormDB(gorm.Config{}).Transaction(func(g *gorm.DB) error { return do(g.Statement.ConnPool.(*sql.Tx)) })
		},
		"sqlx": func(do func(*sql.Tx) error) error {
			tx, err := sqlx.NewDb(b.db, "pgx").BeginTxx(t.Context(), nil)
			if err != nil {
				return err
			}
			defer tx.Rollback()
			if err := do(tx.Tx); err != nil {
				return err
			}
			return tx.Commit()
		},
		"bun": func(do func(*sql.Tx) error) error {
			return bun.NewDB(b.db, pgdialect.New()).RunInTx(t.Context(), nil, func(_ context.Context, tx bun.Tx) error { return do(tx.Tx) })
		},
	} {
		b.key.ID = name
		for i := range 2 {
			if err := in(func(tx *sql.Tx) error {
				_, replayed, err := idemsql.DoTx(t.Context(), b.store, tx, b.key, sqlcCharge)
				if replayed != (i > 0) {
					t.Errorf("%s, call %d: replayed %v", name, i, replayed)
				}
				return err
			}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	b.charges(4)
}
