package main

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// TestMain lets the test binary be the worker process that the scenes start.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		main()
		return
	}
	pgtest.Main(m)
}

// setup returns a database with the program's tables, and alice with 100.00.
func setup(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := newTables(t)
	execSQL(t, pool, `insert into accounts (id, opening, balance) values ('alice', 10000, 10000)`)
	return pool
}

func newTables(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.New(t)
	if err := createTables(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	return pool
}

func execSQL(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func wantLedger(t *testing.T, pool *pgxpool.Pool, want ledger) {
	t.Helper()
	got, err := readLedger(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("the tables say %+v, want %+v", got, want)
	}
}

// chargeIn runs Charge in a transaction of its own, without idempotency.
func chargeIn(ctx context.Context, pool *pgxpool.Pool, order Order) (receipt Receipt, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) (err error) {
		receipt, err = Charge(ctx, tx, order)
		return err
	})
	return receipt, err
}

func TestTablesCanBeMadeTwice(t *testing.T) {
	t.Parallel()
	if err := createTables(t.Context(), newTables(t)); err != nil {
		t.Fatal(err)
	}
}

func TestChargeTakesTheMoney(t *testing.T) {
	t.Parallel()
	pool := setup(t)
	got, err := chargeIn(t.Context(), pool, Order{"alice", 30_00})
	want := Receipt{Charge: 1, Account: "alice", Amount: 30_00, Balance: 70_00}
	if got != want || err != nil {
		t.Errorf("Charge = %v, %v; want %v", got, err, want)
	}
	wantLedger(t, pool, ledger{Written: 1, Charges: 1, Taken: 30_00, Left: 70_00})
}

func TestRefusalKeepsNothingButTheRefusal(t *testing.T) {
	t.Parallel()
	pool := setup(t)
	got, err := chargeIn(t.Context(), pool, Order{"alice", 100_01})
	want := Receipt{Account: "alice", Amount: 100_01, Balance: 100_00, Refusal: "insufficient funds"}
	if got != want || err != nil {
		t.Errorf("Charge = %v, %v; want %v", got, err, want)
	}
	wantLedger(t, pool, ledger{Written: 1, Left: 100_00, Declines: 1})
}

func TestErrorKeepsNothing(t *testing.T) {
	t.Parallel()
	pool := setup(t)
	service := newService(t, pool)
	for _, order := range []Order{{"carol", 1_00}, {"alice", 0}, {"alice", -1_00}} {
		for range 2 { // the error is not recorded
			receipt, replayed, err := service.Charge(t.Context(), "order", order)
			if _, ok := errors.AsType[*pgconn.PgError](err); !ok || receipt != (Receipt{}) || replayed {
				t.Errorf("Charge(%v) = %v, replayed %v, %v; want the server's error", order, receipt, replayed, err)
			}
		}
	}
	wantLedger(t, pool, ledger{Written: 6, Left: 100_00})
}

func TestChargesThatMeetLoseNothing(t *testing.T) {
	t.Parallel()
	pool := setup(t)
	var wg sync.WaitGroup
	for range 30 { // 20 of them can be paid
		wg.Go(func() {
			if _, err := chargeIn(t.Context(), pool, Order{"alice", 5_00}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	wantLedger(t, pool, ledger{Written: 30, Charges: 20, Taken: 100_00, Left: 0, Declines: 10})
}

func newService(t *testing.T, pool *pgxpool.Pool) *Service {
	t.Helper()
	service, err := NewService(pool, idempotency.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return service
}

func TestKeysOfTwoAccountsDoNotMeet(t *testing.T) {
	t.Parallel()
	pool := setup(t)
	execSQL(t, pool, `insert into accounts (id, opening, balance) values ('bob', 100, 100)`)
	service := newService(t, pool)
	for _, order := range []Order{{"alice", 1_00}, {"bob", 1_00}} {
		receipt, replayed, err := service.Charge(t.Context(), "order-1", order)
		if receipt.Account != order.Account || replayed || err != nil {
			t.Errorf("Charge(%v) = %v, replayed %v, %v", order, receipt, replayed, err)
		}
	}
	wantLedger(t, pool, ledger{Written: 2, Charges: 2, Taken: 2_00, Left: 99_00, Keys: 2})
}

func TestReceiptsAreThoseThatWereGiven(t *testing.T) {
	t.Parallel()
	service := newService(t, setup(t))
	given := make(map[string]Receipt)
	for key, amount := range map[string]Money{"order-1": 60_00, "order-2": 50_00} { // one is refused
		receipt, _, err := service.Charge(t.Context(), key, Order{"alice", amount})
		if err != nil {
			t.Fatal(err)
		}
		given[key] = receipt
	}
	recorded, err := service.Receipts(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	if len(recorded) != 2 || recorded["order-1"] != given["order-1"] || recorded["order-2"] != given["order-2"] {
		t.Errorf("recorded %v, given %v", recorded, given)
	}
}

func TestMoneyReadsAsMoney(t *testing.T) {
	t.Parallel()
	for m, want := range map[Money]string{0: "0.00", 5: "0.05", 12_34: "12.34", -1: "-0.01", -12_00: "-12.00"} {
		if got := m.String(); got != want {
			t.Errorf("Money(%d) is %q, want %q", int64(m), got, want)
		}
	}
}
