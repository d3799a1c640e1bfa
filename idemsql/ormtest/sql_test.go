package ormtest

import (
	"context"
	"database/sql"
	"testing"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemsql"
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
