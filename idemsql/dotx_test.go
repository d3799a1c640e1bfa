package idemsql_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemsql"
)

// What DoTx does in a caller's *sql.Tx, with pgx's stdlib and with lib/pq, is
// tested in the module ormtest.

func TestDoTxCostsFiveRoundTripsOfItsOwn(t *testing.T) {
	t.Parallel()
	c := newCounter(t)
	db := stdlib.OpenDBFromPool(c.onProxy)
	defer db.Close()
	trips := func(id string) int64 {
		before := c.proxy.RoundTrips()
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		if _, _, err := idemsql.DoTx(t.Context(), c.store, tx, idempotency.Key{Scope: "s", ID: id}, charge); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		return c.proxy.RoundTrips() - before
	}
	for i := range 3 {
		trips(fmt.Sprint(i))
	}
	if got := trips("x"); got != 8 {
		t.Errorf("%d round trips, want 8: begin, savepoint, claim, the function's one, role, record, release, commit", got)
	}
	trips("x") // prepares the read
	if got := trips("x"); got != 7 {
		t.Errorf("a replay: %d round trips, want 7: begin, savepoint, claim, plan, read, rollback to savepoint, commit", got)
	}
}

func TestDoTxInsideAFunctionOfDo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.executes(func(ctx context.Context, tx *sql.Tx) (int64, error) {
		inner := b.key
		inner.ID = "inner"
		for i := range 2 {
			if _, replayed, err := idemsql.DoTx(ctx, b.store, tx, inner, charge); replayed != (i > 0) || err != nil {
				return 0, fmt.Errorf("call %d: replayed %v, %w", i, replayed, err)
			}
		}
		inner.ID = "failed"
		_, _, err := idemsql.DoTx(ctx, b.store, tx, inner, func(ctx context.Context, tx *sql.Tx) (int64, error) {
			id, _ := charge(ctx, tx)
			return id, errRollBack
		})
		if !errors.Is(err, errRollBack) {
			return 0, err
		}
		return charge(ctx, tx)
	})
	b.charges(2)
	b.records(2)
}

// What cannot be undone inside must not be committed outside, whatever the outer
// function makes of the error.
func TestRowsLeftOpenInsideDoTxAreNotCommittedByTheOuterFunction(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	runs := 0
	_, _, err := b.do(ctx, func(ctx context.Context, tx *sql.Tx) (int64, error) {
		if runs++; runs > 1 {
			return 0, errRollBack
		}
		inner := b.key
		inner.ID = "inner"
		_, _, err := idemsql.DoTx(ctx, b.store, tx, inner, func(ctx context.Context, tx *sql.Tx) (int64, error) {
			leaveRowsOpen(t, ctx, tx)
			return 1, nil
		})
		if err == nil {
			t.Error("DoTx returned nil")
		}
		return 1, nil
	})
	b.wantErr(err, errRollBack) // of the second run: the connection of the first is closed
	b.charges(0)
	b.records(0)
}

func TestValueThatJSONWouldLoseFailsTheFirstCallHereToo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	type secret struct{ n int }
	b.fails(func(ctx context.Context, tx *sql.Tx) (int64, error) {
		if _, err := charge(ctx, tx); err != nil {
			return 0, err
		}
		inner := b.key
		inner.ID = "inner"
		_, _, err := idemsql.DoTx(ctx, b.store, tx, inner, func(context.Context, *sql.Tx) (secret, error) { return secret{7}, nil })
		return 0, err
	}, idempotency.ErrUndecodable)
	_, _, err := idempotency.Do(t.Context(), b.store, b.key, idemsql.Func(func(ctx context.Context, tx *sql.Tx) (map[string]any, error) {
		_, err := charge(ctx, tx)
		return map[string]any{"id": int64(9007199254740993)}, err
	}))
	b.wantErr(err, idempotency.ErrUndecodable)
	b.charges(0)
	b.records(0)
}

func TestErrTxDoneOfAnotherTransactionIsNoUnknownOutcome(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ofStdlib(t, b.pool, func(tx *sql.Tx) string {
		_, _, err := idemsql.DoTx(t.Context(), b.store, tx, b.key, func(ctx context.Context, tx *sql.Tx) (int64, error) {
			id, _ := charge(ctx, tx)
			return id, fmt.Errorf("another transaction: %w", sql.ErrTxDone)
		})
		if !errors.Is(err, sql.ErrTxDone) || errors.Is(err, idempotency.ErrOutcomeUnknown) {
			t.Errorf("got %v", err)
		}
		if err := tx.Commit(); err != nil {
			t.Error(err)
		}
		return ""
	})
	b.charges(0)
	b.records(0)
}

func TestRecordThatFailsIsTheErrorOfDoTx(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ofStdlib(t, b.pool, func(tx *sql.Tx) string {
		_, _, err := idemsql.DoTx(t.Context(), b.store, tx, b.key, func(ctx context.Context, tx *sql.Tx) (int64, error) {
			id, err := charge(ctx, tx)
			if err != nil {
				return 0, err
			}
			_, err = tx.ExecContext(ctx, "delete from idempotency_keys")
			return id, err
		})
		if err == nil || !strings.Contains(err.Error(), "row of its own key") {
			t.Errorf("got %v", err)
		}
		if err := tx.Commit(); err != nil { // it is usable
			t.Error(err)
		}
		return ""
	})
	b.charges(0)
	b.records(0)
}
