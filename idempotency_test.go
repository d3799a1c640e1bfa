package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
)

func TestCommittedIsReplayedFromAnyStoreAndPool(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(42)
	b.replays(42)

	b.store = b.storeOn(b.pool, idempotency.Config{})
	b.replays(42)

	b.store = b.storeOn(b.anotherPool(), idempotency.Config{})
	b.replays(42)
	b.effects(1)
}

func TestFirstCallReturnsWhatTheReplayWillReturn(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	type receipt struct {
		Amount int
		secret string
	}
	first, _, err := idempotency.Do(t.Context(), b.store, b.key, func(context.Context, pgx.Tx) (receipt, error) {
		return receipt{Amount: 1, secret: "is not stored"}, nil
	})
	if err != nil || first.secret != "" || first.Amount != 1 {
		t.Errorf("first call: %+v, %v; want the value as JSON keeps it", first, err)
	}
}

func TestNothingOfAnEarlierRunShowsThroughInTheValue(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	d.once(commitOnItsWay, pgproxy.Drop) // of the first run
	type parts struct {
		First, Second []int `json:",omitempty"`
	}
	runs := 0
	got, replayed, err := idempotency.Do(t.Context(), d.store, d.key, func(context.Context, pgx.Tx) (parts, error) {
		if runs++; runs == 1 {
			return parts{First: []int{1}}, nil
		}
		return parts{Second: []int{2}}, nil
	})
	if runs != 2 || replayed || err != nil || got.First != nil || len(got.Second) != 1 {
		t.Errorf("%+v after %d runs, replayed %v, %v", got, runs, replayed, err)
	}
}

func TestSameKeyFromInsideTheFunctionFailsAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{Wait: time.Hour})
	other := b.key
	other.ID = "key-2"
	_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		_, _, err := idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 2))
		b.wantErr(err, idempotency.ErrInProgress)
		_, _, err = idempotency.DoTx(ctx, b.store, tx, b.key, charge(b.key.ID, 2))
		b.wantErr(err, idempotency.ErrInProgress)
		_, _, err = idempotency.DoTx(ctx, b.store, tx, other, func(ctx context.Context, tx pgx.Tx) (int, error) {
			_, _, err := idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 2))
			b.wantErr(err, idempotency.ErrInProgress)
			return 3, nil
		})
		return 1, err
	})
	if err != nil {
		t.Fatal(err)
	}
	b.replays(1)
	b.key = other
	b.replays(3)
}

func TestObserveTellsHowEachOperationWent(t *testing.T) {
	t.Parallel()
	var events []idempotency.Event
	b := setup(t, idempotency.Config{
		Wait: -1,
		Observe: func(_ context.Context, e idempotency.Event) {
			if e.Duration <= 0 {
				t.Errorf("%+v has no duration", e)
			}
			e.Duration, e.Waited = 0, 0
			events = append(events, e)
		},
	})
	failure := errors.New("no")
	ctx := t.Context()
	b.executes(1)
	b.replays(1)
	b.do(func(context.Context, pgx.Tx) (int, error) { return 0, nil })
	b.key.Fingerprint[0] = 1
	b.do(charge(b.key.ID, 1))
	b.key.ID = "key-2"
	b.do(func(context.Context, pgx.Tx) (int, error) { return 0, failure })
	func() {
		defer func() { recover() }()
		b.do(func(context.Context, pgx.Tx) (int, error) { panic("boom") })
	}()
	b.store.Get(ctx, b.key)
	b.key.ID = "key-1"
	for range b.store.All(ctx, b.key.Scope) {
	}
	b.store.Delete(ctx, b.key)
	b.store.Purge(ctx)

	want := []string{
		"Do executed runs=1 deleted=0 <nil>",
		"Do replayed runs=0 deleted=0 <nil>",
		"Do replayed runs=0 deleted=0 <nil>",
		"Do key_reused runs=0 deleted=0 " + idempotency.ErrKeyReused.Error(),
		"Do failed runs=1 deleted=0 no",
		"Do failed runs=1 deleted=0 idempotency: the function panicked or ended its goroutine",
		"Get not_found runs=0 deleted=0 " + idempotency.ErrNotFound.Error(),
		"All done runs=0 deleted=0 <nil>",
		"Delete done runs=0 deleted=1 <nil>",
		"Purge done runs=0 deleted=0 <nil>",
	}
	var got []string
	for _, e := range events {
		got = append(got, fmt.Sprintf("%s %s runs=%d deleted=%d %v", e.Operation, e.Outcome, e.Runs, e.Deleted, e.Err))
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestTransactionBeginsAndCommitsByTheQueriesOfTheConfig(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{TxOptions: pgx.TxOptions{BeginQuery: "START  TRANSACTION\nisolation level serializable;\n", CommitQuery: "End"}})
	value, _, err := idempotency.Do(t.Context(), b.store, b.key, func(ctx context.Context, tx pgx.Tx) (level string, err error) {
		err = tx.QueryRow(ctx, "select current_setting('transaction_isolation')").Scan(&level)
		return level, err
	})
	if value != "serializable" || err != nil {
		t.Errorf("%q, %v", value, err)
	}
}

func TestConfigErrorsNameTheField(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	const most = (1<<31 - 1) * time.Millisecond // of a timeout setting
	for _, c := range []struct {
		refused string // "": it is taken
		cfg     idempotency.Config
	}{
		{"Schema", idempotency.Config{Schema: "a\x00b"}},
		{"Schema", idempotency.Config{Schema: "a\xff"}},
		{"Retention", idempotency.Config{Retention: -time.Second}},
		{"Retention", idempotency.Config{Retention: time.Millisecond - 1}},
		{"", idempotency.Config{Retention: time.Millisecond}},
		{"MaxIdle", idempotency.Config{MaxIdle: time.Millisecond - 1}},
		{"", idempotency.Config{MaxIdle: time.Millisecond}},
		{"", idempotency.Config{MaxIdle: -1}},
		{"", idempotency.Config{MaxIdle: most}},
		{"MaxIdle", idempotency.Config{MaxIdle: most + 1}},
		{"MaxResult", idempotency.Config{MaxResult: -1}},
		{"", idempotency.Config{MaxResult: 256 << 20}},
		{"MaxResult", idempotency.Config{MaxResult: 256<<20 + 1}},
		{"CallWindow", idempotency.Config{CallWindow: -time.Hour}},
		{"CallWindow", idempotency.Config{CallWindow: 23}}, // the hours were forgotten
		{"", idempotency.Config{CallWindow: time.Millisecond}},
		{"TxOptions.AccessMode", idempotency.Config{TxOptions: pgx.TxOptions{AccessMode: pgx.ReadOnly}}},
	} {
		_, err := idempotency.NewWithConfig(b.pool, c.cfg)
		if want := "Config." + c.refused + " "; (err != nil) != (c.refused != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v, want it to say %q", c.cfg, err, want)
		}
	}
	for _, query := range []string{"begin; set local role app", "set local role app", "select 1", ";begin", " ;"} {
		_, err := idempotency.NewWithConfig(b.pool, idempotency.Config{TxOptions: pgx.TxOptions{BeginQuery: query}})
		if refused := strings.TrimSpace(query) != ";"; (err != nil) != refused || refused && !strings.Contains(err.Error(), "Config.TxOptions.BeginQuery ") {
			t.Errorf("BeginQuery %q: %v", query, err)
		}
	}
	for _, query := range []string{"commit; begin", "rollback", "select 1", "prepare transaction 'x'"} {
		_, err := idempotency.NewWithConfig(b.pool, idempotency.Config{TxOptions: pgx.TxOptions{CommitQuery: query}})
		if err == nil || !strings.Contains(err.Error(), "Config.TxOptions.CommitQuery ") {
			t.Errorf("CommitQuery %q: %v", query, err)
		}
	}
	if _, err := idempotency.NewWithConfig(nil, idempotency.Config{}); err == nil {
		t.Error("a nil pool was accepted")
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
			receive(b, ended)
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
	receive(b, k.begun)
	b.wantOutcome(b.doTx(tx, charge(b.key.ID, 2)), outcome{err: idempotency.ErrInProgress})
	b.usable(tx)
	k.goOn <- nil
	receive(b, first)
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
	b.wantOutcome(receive(b, second), outcome{1, true, nil})
	got := receive(b, third)
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

// Its savepoint has the name of the one inside, which must be gone before it is gone back to.
func TestDoTxThatFailsLeavesNothingAlsoWhereOneInsideHasFailedBefore(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	failure := errors.New("no")
	tx := b.begin(pgx.TxOptions{})
	got := b.doTx(tx, func(ctx context.Context, tx pgx.Tx) (int, error) {
		if _, err := charge(b.key.ID, 1)(ctx, tx); err != nil {
			return 0, err
		}
		_, _, err := idempotency.DoTx(ctx, b.store, tx, idempotency.Key{Scope: "inner", ID: "1"}, func(context.Context, pgx.Tx) (int, error) { return 0, failure })
		b.wantErr(err, failure)
		return 0, failure
	})
	b.wantErr(got.err, failure)
	b.commit(tx)
	b.effects(0)
	if n := query[int](b, "select count(*) from idempotency_keys"); n != 0 {
		t.Errorf("%d keys are left", n)
	}
}

// What a replay has set or locked would stay for as long as the caller's transaction.
func TestDoTxThatReplaysLeavesNoLockAndNoSavepoint(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	tx := b.begin(pgx.TxOptions{})
	if _, err := tx.Exec(t.Context(), "savepoint before"); err != nil {
		t.Fatal(err)
	}
	b.wantOutcome(b.doTx(tx, charge(b.key.ID, 2)), outcome{1, true, nil})
	b.unlocked(tx)
	_, err := tx.Exec(t.Context(), idempotency.RollbackToSavepoint)
	if sqlState(err) != "3B001" { // no such savepoint
		t.Errorf("got %v", err)
	}
	tx.Rollback(t.Context())
}

// The savepoint of the one inside cannot be set, and its name means that of the outer one.
func TestDoTxInsideABrokenOneUndoesNothingOfTheOuterOne(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	tx := b.begin(pgx.TxOptions{})
	defer tx.Rollback(t.Context())
	got := b.doTx(tx, func(ctx context.Context, tx pgx.Tx) (int, error) {
		_, _ = tx.Exec(ctx, "select 1/0")
		_, _, err := idempotency.DoTx(ctx, b.store, tx, idempotency.Key{Scope: "s", ID: "inside"}, charge("inside", 1))
		if err == nil {
			t.Error("it was executed")
		}
		return 1, nil
	})
	b.wantErr(got.err, pgx.ErrTxCommitRollback)
	b.usable(tx)
}

func TestDoTxThatExecutesLeavesNoSavepoint(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	tx := b.begin(pgx.TxOptions{})
	defer tx.Rollback(t.Context())
	b.wantOutcome(b.doTx(tx, charge(b.key.ID, 1)), outcome{1, false, nil})
	_, err := tx.Exec(t.Context(), idempotency.RollbackToSavepoint)
	if sqlState(err) != "3B001" { // no such savepoint
		t.Errorf("got %v", err)
	}
}

// now() of an old transaction is before the expiry.
func TestDoTxTakesOverWhatHasExpiredSinceItsTransactionBegan(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	tx := b.begin(pgx.TxOptions{})
	b.exec("update idempotency_keys set expires_at = clock_timestamp()")
	b.wantOutcome(b.doTx(tx, charge(b.key.ID, 2)), outcome{2, false, nil})
	b.commit(tx)
	b.replays(2)
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
