package ormtest

import (
	"context"
	"database/sql"
	"strings"
	"testing"

	"github.com/pgidem/idempotency/idemsql/ormtest/sqlc"
)

func chargeWithSQLC(ctx context.Context, tx *sql.Tx) (Charge, error) {
	made, err := sqlc.New(tx).InsertCharge(ctx, sqlc.InsertChargeParams{Account: "alice", Cents: 1000})
	return Charge(made), err
}

func TestSQLC(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.once(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		c, err := chargeWithSQLC(ctx, tx)
		if err != nil {
			return c, err
		}
		all, err := sqlc.New(tx).ChargesOf(ctx, "alice")
		if len(all) != 1 {
			t.Errorf("%v", all)
		}
		return c, err
	})
}

func TestQueriesOfSQLCPreparedOnTheTransaction(t *testing.T) {
	t.Parallel()
	setup(t).once(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		q, err := sqlc.Prepare(ctx, tx)
		if err != nil {
			return Charge{}, err
		}
		defer q.Close()
		made, err := q.InsertCharge(ctx, sqlc.InsertChargeParams{Account: "alice", Cents: 1000})
		return Charge(made), err
	})
}

// emit_prepared_queries: Queries that were prepared on the *sql.DB.
func TestPreparedQueriesOfSQLCAreRefusedWithTx(t *testing.T) {
	t.Parallel()
	b := setup(t)
	q, err := sqlc.Prepare(t.Context(), b.db)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	_, _, err = b.do(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		_, err := q.WithTx(tx).InsertCharge(ctx, sqlc.InsertChargeParams{Account: "alice"})
		return Charge{}, err
	})
	if err == nil || !strings.Contains(err.Error(), "statement from different database used") {
		t.Errorf("got %v", err)
	}
	b.charges(0)
}
