package idempotency_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestParallelDuplicatesInOneProcessExecuteOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.storm(100)
	b.effects(1)
}

func TestPoolOfOneFinishesFiftyDuplicates(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.store = b.storeOn(b.anotherPool(pgtest.MaxConns(1)), idempotency.Config{})
	b.storm(50)
	b.effects(1)
}

// Two Stores do not share a gate: they meet in the database, as processes do.
func TestParallelDuplicatesOfManyStoresExecuteOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var wg sync.WaitGroup
	for range 8 {
		other := *b
		other.store = b.storeOn(b.pool, idempotency.Config{})
		wg.Go(func() { other.storm(10) })
	}
	wg.Wait()
	b.effects(1)
}

// storm calls Do n times at once, and expects one value for all.
func (b *bundle) storm(n int) {
	b.Helper()
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			got, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
				if _, err := charge(b.key.ID, 1)(ctx, tx); err != nil {
					return 0, err
				}
				var id int
				err := tx.QueryRow(ctx, "select 1000 + max(id) from charges, pg_sleep(0.02)").Scan(&id)
				return id, err
			})
			if got != 1001 || err != nil {
				b.Errorf("Do = %v, %v; want 1001", got, err)
			}
		})
	}
	wg.Wait()
}

// stores runs a test with a duplicate in the same process, which waits at the
// gate, and with one on another Store, which waits as another process does.
func stores(t *testing.T, cfg idempotency.Config, test func(b *bundle, other *idempotency.Store)) {
	t.Run("same Store", func(t *testing.T) {
		t.Parallel()
		b := setup(t, cfg)
		test(b, b.store)
	})
	t.Run("other Store", func(t *testing.T) {
		t.Parallel()
		b := setup(t, cfg)
		test(b, b.storeOn(b.pool, cfg))
	})
}

func TestDuplicateWaitsForTheFirstAndReturnsItsResult(t *testing.T) {
	t.Parallel()
	stores(t, idempotency.Config{Wait: time.Minute}, func(b *bundle, other *idempotency.Store) {
		k := newBlocker()
		first := b.start(b.Context(), b.store, k.charge(b.key.ID, 1))
		<-k.begun
		second := b.start(b.Context(), other, charge(b.key.ID, 2))
		b.stays(second)
		k.goOn <- nil
		b.wantOutcome(<-first, outcome{1, false, nil})
		b.wantOutcome(<-second, outcome{1, true, nil})
		b.effects(1)
	})
}

// stays checks that a call is still waiting after a while.
func (b *bundle) stays(call <-chan outcome) {
	b.Helper()
	select {
	case got := <-call:
		b.Fatalf("the duplicate did not wait: %+v", got)
	case <-time.After(60 * time.Millisecond):
	}
}

func (b *bundle) wantOutcome(got, want outcome) {
	b.Helper()
	if got.value != want.value || got.replayed != want.replayed || !errors.Is(got.err, want.err) {
		b.Errorf("got %+v, want %+v", got, want)
	}
}

func TestWhenTheFirstFailsExactlyOneWaiterTakesOver(t *testing.T) {
	t.Parallel()
	stores(t, idempotency.Config{Wait: time.Minute}, func(b *bundle, other *idempotency.Store) {
		k := newBlocker()
		first := b.start(b.Context(), b.store, k.charge(b.key.ID, 1))
		<-k.begun
		var waiters []<-chan outcome
		for range 5 {
			waiters = append(waiters, b.start(b.Context(), other, k.charge(b.key.ID, 2)))
		}
		b.stays(waiters[0])
		failure := errors.New("no")
		k.goOn <- failure
		b.wantOutcome(<-first, outcome{err: failure})
		<-k.begun
		select {
		case <-k.begun:
			b.Error("a second waiter took over")
		case <-time.After(100 * time.Millisecond):
		}
		k.goOn <- nil
		executed := 0
		for _, w := range waiters {
			got := <-w
			if got.err != nil || got.value != 2 {
				b.Errorf("waiter got %+v", got)
			}
			if !got.replayed {
				executed++
			}
		}
		if executed != 1 {
			b.Errorf("%d waiters executed", executed)
		}
		b.effects(1)
	})
}

func TestWaiterLeavesAtOnceWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	stores(t, idempotency.Config{Wait: time.Hour}, func(b *bundle, other *idempotency.Store) {
		k := newBlocker()
		first := b.start(b.Context(), b.store, k.charge(b.key.ID, 1))
		<-k.begun
		ctx, cancel := context.WithCancel(b.Context())
		second := b.start(ctx, other, charge(b.key.ID, 2))
		b.stays(second)
		cancel()
		b.wantOutcome(<-second, outcome{err: context.Canceled})
		k.goOn <- nil
		b.wantOutcome(<-first, outcome{1, false, nil})
		b.effects(1)
	})
}

func TestAtTheBoundOfWaitErrInProgressAndTheFirstIsUntouched(t *testing.T) {
	t.Parallel()
	stores(t, idempotency.Config{Wait: 100 * time.Millisecond}, func(b *bundle, other *idempotency.Store) {
		k := newBlocker()
		first := b.start(b.Context(), b.store, k.charge(b.key.ID, 1))
		<-k.begun
		second := b.start(b.Context(), other, charge(b.key.ID, 2))
		b.stays(second)
		b.wantOutcome(<-second, outcome{err: idempotency.ErrInProgress})
		k.goOn <- nil
		b.wantOutcome(<-first, outcome{1, false, nil})
		b.replays(1)
		b.effects(1)
	})
}

func TestNegativeWaitIsErrInProgressAtOnce(t *testing.T) {
	t.Parallel()
	stores(t, idempotency.Config{Wait: -1}, func(b *bundle, other *idempotency.Store) {
		k := newBlocker()
		first := b.start(b.Context(), b.store, k.charge(b.key.ID, 1))
		<-k.begun
		b.wantOutcome(<-b.start(b.Context(), other, charge(b.key.ID, 2)), outcome{err: idempotency.ErrInProgress})
		k.goOn <- nil
		b.wantOutcome(<-first, outcome{1, false, nil})
		b.replays(1)
	})
}

// A replay holds the key's advisory lock until its ROLLBACK has arrived.
func TestNegativeWaitIsNotTurnedAwayByReplays(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{Wait: -1})
	b.executes(1)
	var wg sync.WaitGroup
	for range 4 {
		other := *b
		other.store = b.storeOn(b.pool, idempotency.Config{Wait: -1})
		wg.Go(func() {
			for range 50 {
				other.unknown()
				other.replaysQuietly(1)
			}
		})
	}
	wg.Wait()
}

func (b *bundle) replaysQuietly(amount int) {
	got, replayed, err := b.do(charge(b.key.ID, 99))
	if got != amount || !replayed || err != nil {
		b.Errorf("Do = %v, replayed %v, %v; want a replay of %v", got, replayed, err, amount)
	}
}

func TestOtherFingerprintIsErrKeyReusedWhileInFlightAndAfter(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{Wait: time.Minute})
	b.key.Fingerprint = idempotency.FingerprintOf([]byte("10 euros"))
	wrong := *b
	wrong.key.Fingerprint = idempotency.FingerprintOf([]byte("20 euros"))

	k := newBlocker()
	first := b.start(t.Context(), b.store, k.charge(b.key.ID, 1))
	<-k.begun
	for range 3 {
		_, _, err := wrong.do(charge(b.key.ID, 2))
		b.wantErr(err, idempotency.ErrKeyReused)
	}
	elsewhere := wrong.start(t.Context(), b.storeOn(b.pool, idempotency.Config{}), charge(b.key.ID, 2))
	b.stays(elsewhere)
	k.goOn <- nil
	b.wantOutcome(<-first, outcome{1, false, nil})
	b.wantOutcome(<-elsewhere, outcome{err: idempotency.ErrKeyReused})
	for range 3 {
		_, _, err := wrong.do(charge(b.key.ID, 2))
		b.wantErr(err, idempotency.ErrKeyReused)
		b.unknown()
	}
	none := *b
	none.key.Fingerprint = idempotency.Fingerprint{}
	_, _, err := none.do(charge(b.key.ID, 2))
	b.wantErr(err, idempotency.ErrKeyReused)
	b.replays(1)
	b.effects(1)
}

// A leader that was sent with the wrong request must not answer for the key.
func TestWrongFingerprintsBesideTheTrueRequestNeverMisleadIt(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	wrong := *b
	wrong.key.Fingerprint = idempotency.FingerprintOf([]byte("other"))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				if _, _, err := wrong.do(charge(b.key.ID, 2)); !errors.Is(err, idempotency.ErrKeyReused) {
					t.Errorf("wrong request: %v", err)
				}
			}
		})
		wg.Go(func() {
			for i := range 50 {
				if i%2 == 0 {
					b.unknown()
				}
				b.replaysQuietly(1)
			}
		})
	}
	wg.Wait()
	b.effects(1)
}

func TestExpiredRunsAgainInExactlyOneOfTwentyCallers(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	b.exec("update idempotency_keys set expires_at = now() - interval '1 second'")
	other := b.storeOn(b.pool, idempotency.Config{})
	var calls []<-chan outcome
	for i := range 20 {
		store := b.store
		if i%2 == 1 {
			store = other
		}
		calls = append(calls, b.start(t.Context(), store, charge(b.key.ID, 2)))
	}
	executed := 0
	for _, call := range calls {
		got := <-call
		if got.err != nil || got.value != 2 {
			t.Errorf("got %+v", got)
		}
		if !got.replayed {
			executed++
		}
	}
	if n := query[int](b, "select count(*) from charges where amount = 2"); n != 1 || executed != 1 {
		t.Errorf("%d executions, %d charges", executed, n)
	}
	b.replays(2)
}

func TestExpiredIsTakenOverWithAnyFingerprint(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	b.exec("update idempotency_keys set expires_at = now()")
	b.key.Fingerprint = idempotency.FingerprintOf([]byte("other"))
	b.executes(2)
	b.replays(2)
}

func TestRetentionBeginsWhenTheResultIsRecorded(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{Retention: time.Second})
	_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		_, err := tx.Exec(ctx, "select pg_sleep(0.3)")
		return 1, err
	})
	if err != nil {
		t.Fatal(err)
	}
	rec, err := b.store.Get(t.Context(), b.key)
	if err != nil {
		t.Fatal(err)
	}
	if d := rec.CompletedAt.Sub(rec.CreatedAt); d < 300*time.Millisecond {
		t.Errorf("completed %v after it was created", d)
	}
	if d := rec.ExpiresAt.Sub(rec.CompletedAt); d < time.Second || d > time.Second+50*time.Millisecond {
		t.Errorf("expires %v after it was completed", d)
	}
}

func TestContextOfAnEndedFunctionDoesNotHoldItsKey(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var kept context.Context
	if _, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		kept = ctx
		return 1, nil
	}); err != nil {
		t.Fatal(err)
	}
	_, replayed, err := idempotency.Do(kept, b.store, b.key, charge(b.key.ID, 2))
	if !replayed || err != nil {
		t.Errorf("replayed %v, %v", replayed, err)
	}
}

// locks takes the key's advisory lock in tx, as a call does.
func (b *bundle) locks(tx pgx.Tx) {
	b.Helper()
	var taken bool
	lock, args := b.store.LockOf(b.key)
	err := tx.QueryRow(b.Context(), lock, args...).Scan(&taken)
	if err != nil || !taken {
		b.Fatalf("the advisory lock: %v, %v", taken, err)
	}
}

// A replay holds the advisory lock for a moment. Who takes an expired key over
// in that moment must not do so without the lock: duplicates would wait on the
// index, with their connections and beyond Wait.
func TestExpiredKeyIsTakenOverOnlyWithItsAdvisoryLock(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{Wait: 100 * time.Millisecond})
	b.executes(1)
	b.exec("update idempotency_keys set expires_at = now()")
	holder := b.begin(pgx.TxOptions{})
	b.locks(holder)
	_, _, err := b.do(charge(b.key.ID, 2))
	b.wantErr(err, idempotency.ErrInProgress)
	b.wantOutcome(b.doTx(b.begin(pgx.TxOptions{}), charge(b.key.ID, 2)), outcome{err: idempotency.ErrInProgress})
	if err := holder.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.executes(2)
}
