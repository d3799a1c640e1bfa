package idempotency_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

func (b *bundle) begin(opts pgx.TxOptions) pgx.Tx {
	b.Helper()
	tx, err := b.pool.BeginTx(context.Background(), opts)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { tx.Rollback(context.Background()) })
	return tx
}

func (b *bundle) doTx(tx pgx.Tx, fn func(context.Context, pgx.Tx) (int, error)) outcome {
	value, replayed, err := idempotency.DoTx(context.Background(), b.store, tx, b.key, fn)
	return outcome{value, replayed, err}
}

func (b *bundle) commit(tx pgx.Tx) {
	b.Helper()
	if err := tx.Commit(context.Background()); err != nil {
		b.Fatal(err)
	}
}

// usable runs a statement of the caller's own in tx.
func (b *bundle) usable(tx pgx.Tx) {
	b.Helper()
	if _, err := tx.Exec(context.Background(), "insert into charges (key, amount) values ('the caller', 0)"); err != nil {
		b.Fatalf("the transaction is not usable: %v", err)
	}
}

func TestDoTxCompletesWhenTheCallerCommits(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	tx := b.begin(pgx.TxOptions{})
	b.usable(tx)
	b.wantOutcome(b.doTx(tx, charge(b.key.ID, 1)), outcome{1, false, nil})
	b.wantOutcome(b.doTx(tx, charge(b.key.ID, 2)), outcome{1, true, nil}) // in the same transaction
	b.usable(tx)
	b.effects(0)
	b.commit(tx)
	b.effects(1)
	b.replays(1)

	tx = b.begin(pgx.TxOptions{})
	b.usable(tx)
	b.wantOutcome(b.doTx(tx, charge(b.key.ID, 2)), outcome{1, true, nil})
	b.usable(tx)
	b.commit(tx)
	b.effects(1)
}

func TestDoTxVanishesWhenTheCallerRollsBack(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	tx := b.begin(pgx.TxOptions{})
	b.wantOutcome(b.doTx(tx, charge(b.key.ID, 1)), outcome{1, false, nil})
	tx.Rollback(t.Context())
	b.effects(0)
	b.executes(2)
}

func TestDoTxAfterAnErrorLeavesNothingAndTheTransactionUsable(t *testing.T) {
	t.Parallel()
	failure := errors.New("no")
	for name, fail := range map[string]func(context.Context, pgx.Tx) (int, error){
		"an error": func(context.Context, pgx.Tx) (int, error) { return 0, failure },
		"a broken query": func(ctx context.Context, tx pgx.Tx) (int, error) {
			_, err := tx.Exec(ctx, "select nothing")
			return 0, err
		},
		"a swallowed one": func(ctx context.Context, tx pgx.Tx) (int, error) { tx.Exec(ctx, "select nothing"); return 1, nil },
		"its row removed": func(ctx context.Context, tx pgx.Tx) (int, error) {
			_, err := tx.Exec(ctx, "delete from idempotency_keys")
			return 1, err
		},
		"savepoints of nearly the same name": func(ctx context.Context, tx pgx.Tx) (int, error) {
			_, err := tx.Exec(ctx, "savepoint idempotency_claim; savepoint idempotency_claim_")
			return 0, errors.Join(failure, err)
		},
		"a panic":          func(context.Context, pgx.Tx) (int, error) { panic("boom") },
		"a runtime.Goexit": func(context.Context, pgx.Tx) (int, error) { runtime.Goexit(); return 0, nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			tx := b.begin(pgx.TxOptions{})
			b.usable(tx)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				defer func() { recover() }()
				got := b.doTx(tx, func(ctx context.Context, tx pgx.Tx) (int, error) {
					if _, err := charge(b.key.ID, 1)(ctx, tx); err != nil {
						return 0, err
					}
					return fail(ctx, tx)
				})
				if got.err == nil {
					t.Error("no error")
				}
			}()
			<-ended
			b.usable(tx)
			b.commit(tx) // the caller ignores our error
			b.effects(0)
			b.executes(2)
		})
	}
}

func TestDoTxErrorsOfOtherCallsLeaveTheTransactionUsable(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{Wait: 50 * time.Millisecond})
	b.executes(1)
	tx := b.begin(pgx.TxOptions{})
	wrong := *b
	wrong.key.Fingerprint = idempotency.FingerprintOf([]byte("other"))
	b.wantOutcome(wrong.doTx(tx, charge(b.key.ID, 2)), outcome{err: idempotency.ErrKeyReused})
	b.usable(tx)

	b.key.ID = "key-2"
	k := newBlocker()
	first := b.start(t.Context(), b.store, k.charge(b.key.ID, 1))
	<-k.begun
	b.wantOutcome(b.doTx(tx, charge(b.key.ID, 2)), outcome{err: idempotency.ErrInProgress})
	b.usable(tx)
	k.goOn <- nil
	<-first
	b.commit(tx)
	b.effects(1)
}

func TestOtherCallsWaitForTheTransactionOfDoTx(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{Wait: time.Minute})
	tx := b.begin(pgx.TxOptions{})
	b.wantOutcome(b.doTx(tx, charge(b.key.ID, 1)), outcome{1, false, nil})
	second := b.start(t.Context(), b.store, charge(b.key.ID, 2))
	third := make(chan outcome, 1)
	tx3 := b.begin(pgx.TxOptions{})
	go func() { third <- b.doTx(tx3, charge(b.key.ID, 3)) }()
	b.stays(second)
	b.stays(third)
	b.commit(tx)
	b.wantOutcome(<-second, outcome{1, true, nil})
	got := <-third
	switch isolation {
	case "repeatable read", "serializable": // its snapshot is older than the record
		if sqlState(got.err) != "40001" {
			t.Errorf("got %+v", got)
		}
	default:
		b.wantOutcome(got, outcome{1, true, nil})
	}
	b.effects(1)
}

func TestDoTxTakesOverAnExpiredKey(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	b.exec("update idempotency_keys set expires_at = now()")
	tx := b.begin(pgx.TxOptions{})
	b.wantOutcome(b.doTx(tx, charge(b.key.ID, 2)), outcome{2, false, nil})
	b.commit(tx)
	b.replays(2)
}

func TestDoTxHands40001ToTheCallersRetryLoop(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	tx := b.begin(pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	b.usable(tx) // the snapshot is taken
	b.executes(1)
	got := b.doTx(tx, charge(b.key.ID, 2))
	if sqlState(got.err) != "40001" {
		t.Errorf("got %+v", got)
	}
	tx.Rollback(t.Context())
	b.effects(1)
}

func TestDoTxRefusesCommitAndRollbackAndAllowsNestedTransactions(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	tx := b.begin(pgx.TxOptions{})
	got := b.doTx(tx, func(ctx context.Context, tx pgx.Tx) (int, error) {
		defer tx.Rollback(ctx)
		if tx.Commit(ctx) == nil {
			t.Error("Commit was not refused")
		}
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			_, err := charge(b.key.ID, 1)(ctx, tx)
			return err
		})
		return 1, err
	})
	b.wantOutcome(got, outcome{1, false, nil})
	b.commit(tx)
	b.effects(1)
}

func TestDoTxInABrokenTransactionRunsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	tx := b.begin(pgx.TxOptions{})
	tx.Exec(t.Context(), "select nothing")
	got := b.doTx(tx, func(context.Context, pgx.Tx) (int, error) {
		t.Error("the function was run")
		return 0, nil
	})
	if got.err == nil || !strings.Contains(got.err.Error(), "25P02") {
		t.Errorf("got %+v", got)
	}
}

// The rollback to the savepoint fails while a query is open: then nothing of the
// transaction may be committed.
func TestDoTxThatCannotUndoClosesTheConnection(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	tx := b.begin(pgx.TxOptions{})
	var rows pgx.Rows
	got := b.doTx(tx, func(ctx context.Context, tx pgx.Tx) (int, error) {
		if _, err := charge(b.key.ID, 1)(ctx, tx); err != nil {
			return 0, err
		}
		var err error
		rows, err = tx.Query(ctx, "select generate_series(1, 10)")
		return 1, errors.Join(err, errors.New("no"))
	})
	if got.err == nil {
		t.Error("no error")
	}
	rows.Close()
	if err := tx.Commit(t.Context()); err == nil {
		t.Error("the transaction was committed")
	}
	b.executes(2)
	b.effects(1)
}

func TestDoTxRecordsANilErrorWhateverTheContextSays(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	tx := b.begin(pgx.TxOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	value, replayed, err := idempotency.DoTx(ctx, b.store, tx, b.key, func(ctx context.Context, tx pgx.Tx) (int, error) {
		defer cancel()
		return charge(b.key.ID, 1)(ctx, tx)
	})
	b.wantOutcome(outcome{value, replayed, err}, outcome{1, false, nil})
	b.usable(tx)
	b.commit(tx)
	b.effects(1)
	b.replays(1)
}

func TestDoTxWithAnEndedContextStillRollsBackToItsSavepoint(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	tx := b.begin(pgx.TxOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	_, _, err := idempotency.DoTx(ctx, b.store, tx, b.key, func(ctx context.Context, tx pgx.Tx) (int, error) {
		if _, err := charge(b.key.ID, 1)(ctx, tx); err != nil {
			return 0, err
		}
		cancel()
		return 0, ctx.Err()
	})
	b.wantErr(err, context.Canceled)
	b.usable(tx)
	b.commit(tx)
	b.effects(0)
	b.executes(2)
}

// A foreign context, or another Store, hides that the call comes from inside the
// function. Its row has no result yet, but nobody has abandoned it.
func TestKeyOfTheSameTransactionIsInProgressAndNotAbandoned(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	other := b.storeOn(b.pool, idempotency.Config{})
	fn := func(ctx context.Context, tx pgx.Tx) (int, error) {
		_, _, err := idempotency.DoTx(context.Background(), b.store, tx, b.key, charge(b.key.ID, 2))
		b.wantErr(err, idempotency.ErrInProgress)
		_, _, err = idempotency.DoTx(ctx, other, tx, b.key, charge(b.key.ID, 2))
		b.wantErr(err, idempotency.ErrInProgress)
		return charge(b.key.ID, 1)(ctx, tx)
	}
	if got, _, err := b.do(fn); got != 1 || err != nil {
		t.Errorf("Do = %v, %v", got, err)
	}
	b.effects(1)
	if err := b.store.Delete(t.Context(), b.key); err != nil {
		t.Fatal(err)
	}
	b.exec("delete from charges")
	tx := b.begin(pgx.TxOptions{})
	b.wantOutcome(b.doTx(tx, fn), outcome{1, false, nil})
	b.commit(tx)
	b.effects(1)

	// What was abandoned stays so for DoTx.
	b.exec("update idempotency_keys set completed_at = null, expires_at = null, result = null")
	tx = b.begin(pgx.TxOptions{})
	b.wantErr(b.doTx(tx, fn).err, idempotency.ErrAbandoned)
}
