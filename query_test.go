package idempotency_test

import (
	"fmt"
	"testing"

	"github.com/pgidem/idempotency"
)

type ride struct {
	ID     int64  `json:"id"`
	Key    string `json:"key"`
	Amount int    `json:"amount"`
}

const rideSQL = `insert into charges (key, amount) values ($1, $2) returning id, key, amount`

func TestSmoke(t *testing.T) {
	b := setup(t, idempotency.Config{})
	for i := range 3 {
		got, replayed, err := idempotency.QueryRow[ride](t.Context(), b.store, b.key, rideSQL, b.key.ID, 7)
		fmt.Println(i, got, replayed, err)
	}
	got, replayed, err := idempotency.QueryRow[ride](t.Context(), b.storeOn(b.pool, idempotency.Config{}), b.key, rideSQL, b.key.ID, 7)
	fmt.Println(got, replayed, err)
	b.key.ID = "x"
	rows, replayed, err := idempotency.Query[ride](t.Context(), b.store, b.key, "insert into charges (key, amount) select 'k', g from generate_series(1,3) g returning id, key, amount -- done")
	fmt.Println(rows, replayed, err)
	b.key.ID = "y"
	n, replayed, err := idempotency.QueryRow[int](t.Context(), b.store, b.key, "select 1/$1::int", 0)
	fmt.Println(n, replayed, err)
	n, replayed, err = idempotency.QueryRow[int](t.Context(), b.store, b.key, "select 1/$1::int;", 1)
	fmt.Println(n, replayed, err)
}
