package ormtest

import (
	"context"
	"database/sql"
	"testing"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
)

func chargeWithBun(ctx context.Context, db *bun.DB, tx *sql.Tx) (Charge, error) {
	charge := Charge{Account: "alice", Cents: 1000}
	_, err := db.NewInsert().Conn(tx).Model(&charge).Returning("id").Exec(ctx)
	return charge, err
}

func TestBun(t *testing.T) {
	t.Parallel()
	b := setup(t)
	db := bun.NewDB(b.db, pgdialect.New())
	b.once(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		return chargeWithBun(ctx, db, tx)
	})
}

type txKey struct{}

// txOfContext is for code that takes a bun.IDB: bun asks it for every query.
type txOfContext struct{}

func (txOfContext) ResolveConn(ctx context.Context, _ bun.Query) bun.IConn {
	if tx, ok := ctx.Value(txKey{}).(*sql.Tx); ok {
		return tx
	}
	return nil // the pool
}

func (txOfContext) Close() error { return nil }

func insertCharge(ctx context.Context, db bun.IDB, charge *Charge) error {
	_, err := db.NewInsert().Model(charge).Returning("id").Exec(ctx)
	return err
}

func TestBunWithAConnResolver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	db := bun.NewDB(b.db, pgdialect.New(), bun.WithConnResolver(txOfContext{}))
	b.once(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		charge := Charge{Account: "alice", Cents: 1000}
		err := insertCharge(context.WithValue(ctx, txKey{}, tx), db, &charge)
		return charge, err
	})
	if err := insertCharge(t.Context(), db, &Charge{Account: "bob"}); err != nil {
		t.Errorf("outside of a function: %v", err)
	}
	b.charges(2)
}

func TestBunTxMadeOfTheSqlTxPanics(t *testing.T) {
	t.Parallel()
	b := setup(t)
	defer func() {
		if recover() == nil {
			t.Error("it works now: docs/sql.md says otherwise")
		}
		b.charges(0)
	}()
	_, _, _ = b.do(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		return Charge{}, insertCharge(ctx, bun.Tx{Tx: tx}, &Charge{Account: "alice"})
	})
}
