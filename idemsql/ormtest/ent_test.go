package ormtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"

	"github.com/pgidem/idempotency/idemsql/ormtest/ent"
)

// entTx is the *sql.Tx as a driver of ent, which opens a transaction by itself for
// an update: it is a part of ours.
type entTx struct{ dialect.Driver }

func (t entTx) Tx(context.Context) (dialect.Tx, error) { return t, nil }
func (entTx) Commit() error                            { return nil }
func (entTx) Rollback() error                          { return errors.New("return an error to roll back") }

func entOn(tx *sql.Tx) *ent.Client { // ent is the generated package
	driver := entsql.NewDriver(dialect.Postgres, entsql.Conn{ExecQuerier: tx})
	return ent.NewClient(ent.Driver(entTx{driver}))
}

func chargeWithEnt(ctx context.Context, tx *sql.Tx) (Charge, error) {
	made, err := entOn(tx).Charge.Create().SetAccount("alice").SetCents(1000).Save(ctx)
	if err != nil {
		return Charge{}, err
	}
	return Charge{ID: made.ID, Account: made.Account, Cents: made.Cents}, nil
}

func TestEnt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.once(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		c, err := chargeWithEnt(ctx, tx)
		if err != nil {
			return c, err
		}
		if n, err := entOn(tx).Charge.Query().Count(ctx); n != 1 || err != nil {
			return c, fmt.Errorf("%d charges, %w", n, err)
		}
		return c, entOn(tx).Charge.UpdateOneID(c.ID).SetAccount("alice").Exec(ctx)
	})
}

func TestTransactionOfEntInsideIsAPartOfOurs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.once(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		inner, err := entOn(tx).Tx(ctx)
		if err != nil {
			return Charge{}, err
		}
		made, err := inner.Charge.Create().SetAccount("alice").SetCents(1000).Save(ctx)
		if err != nil {
			return Charge{}, err
		}
		if inner.Rollback() == nil {
			t.Error("Rollback, which does nothing, reported success")
		}
		return Charge{ID: made.ID, Account: made.Account, Cents: made.Cents}, inner.Commit()
	})
}

// Without entTx, as one finds it in many places, inserts work and updates panic.
func TestEntOnTheSqlTxAloneCannotUpdate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	defer func() {
		if recover() == nil {
			t.Error("it works now: docs/sql.md says otherwise")
		}
		b.charges(0)
	}()
	_, _, _ = b.do(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		client := ent.NewClient(ent.Driver(entsql.NewDriver(dialect.Postgres, entsql.Conn{ExecQuerier: tx})))
		made, err := client.Charge.Create().SetAccount("alice").SetCents(1000).Save(ctx)
		if err != nil {
			return Charge{}, err
		}
		return Charge{}, client.Charge.UpdateOne(made).AddCents(1).Exec(ctx)
	})
}
