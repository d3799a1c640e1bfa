package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
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
		receive(b, k.begun)
		second := b.start(b.Context(), other, charge(b.key.ID, 2))
		b.stays(second)
		k.goOn <- nil
		b.wantOutcome(receive(b, first), outcome{1, false, nil})
		b.wantOutcome(receive(b, second), outcome{1, true, nil})
		b.effects(1)
	})
}

func TestWhenTheFirstFailsExactlyOneWaiterTakesOver(t *testing.T) {
	t.Parallel()
	stores(t, idempotency.Config{Wait: time.Minute}, func(b *bundle, other *idempotency.Store) {
		k := newBlocker()
		first := b.start(b.Context(), b.store, k.charge(b.key.ID, 1))
		receive(b, k.begun)
		var waiters []<-chan outcome
		for range 5 {
			waiters = append(waiters, b.start(b.Context(), other, k.charge(b.key.ID, 2)))
		}
		b.stays(waiters[0])
		failure := errors.New("no")
		k.goOn <- failure
		b.wantOutcome(receive(b, first), outcome{err: failure})
		receive(b, k.begun)
		select {
		case <-k.begun:
			b.Error("a second waiter took over")
		case <-time.After(100 * time.Millisecond):
		}
		k.goOn <- nil
		executed := 0
		for _, w := range waiters {
			got := receive(b, w)
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
		receive(b, k.begun)
		ctx, cancel := context.WithCancel(b.Context())
		second := b.start(ctx, other, charge(b.key.ID, 2))
		b.stays(second)
		cancel()
		b.wantOutcome(receive(b, second), outcome{err: context.Canceled})
		k.goOn <- nil
		b.wantOutcome(receive(b, first), outcome{1, false, nil})
		b.effects(1)
	})
}

func TestAtTheBoundOfWaitErrInProgressAndTheFirstIsUntouched(t *testing.T) {
	t.Parallel()
	stores(t, idempotency.Config{Wait: 100 * time.Millisecond}, func(b *bundle, other *idempotency.Store) {
		k := newBlocker()
		first := b.start(b.Context(), b.store, k.charge(b.key.ID, 1))
		receive(b, k.begun)
		second := b.start(b.Context(), other, charge(b.key.ID, 2))
		b.stays(second)
		b.wantOutcome(receive(b, second), outcome{err: idempotency.ErrInProgress})
		k.goOn <- nil
		b.wantOutcome(receive(b, first), outcome{1, false, nil})
		b.replays(1)
		b.effects(1)
	})
}

func TestNegativeWaitIsErrInProgressAtOnce(t *testing.T) {
	t.Parallel()
	stores(t, idempotency.Config{Wait: -1}, func(b *bundle, other *idempotency.Store) {
		k := newBlocker()
		first := b.start(b.Context(), b.store, k.charge(b.key.ID, 1))
		receive(b, k.begun)
		b.wantOutcome(receive(b, b.start(b.Context(), other, charge(b.key.ID, 2))), outcome{err: idempotency.ErrInProgress})
		k.goOn <- nil
		b.wantOutcome(receive(b, first), outcome{1, false, nil})
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

func TestOtherFingerprintIsErrKeyReusedWhileInFlightAndAfter(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{Wait: time.Minute})
	b.key.Fingerprint = idempotency.FingerprintOf([]byte("10 euros"))
	wrong := *b
	wrong.key.Fingerprint = idempotency.FingerprintOf([]byte("20 euros"))

	k := newBlocker()
	first := b.start(t.Context(), b.store, k.charge(b.key.ID, 1))
	receive(b, k.begun)
	for range 3 {
		_, _, err := wrong.do(charge(b.key.ID, 2))
		b.wantErr(err, idempotency.ErrKeyReused)
	}
	elsewhere := wrong.start(t.Context(), b.storeOn(b.pool, idempotency.Config{}), charge(b.key.ID, 2))
	b.stays(elsewhere)
	k.goOn <- nil
	b.wantOutcome(receive(b, first), outcome{1, false, nil})
	b.wantOutcome(receive(b, elsewhere), outcome{err: idempotency.ErrKeyReused})
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
		got := receive(b, call)
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
	const retention = time.Minute
	b := setup(t, idempotency.Config{Retention: retention})
	_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		_, err := tx.Exec(ctx, "select pg_sleep(0.3)")
		return 1, err
	})
	if err != nil {
		t.Fatal(err)
	}
	statement := idempotency.Key{Scope: "s", ID: "a statement"}
	if _, _, err := idempotency.QueryRow[int](t.Context(), b.store, statement, "select length(pg_sleep(0.3)::text)"); err != nil {
		t.Fatal(err)
	}
	for _, key := range []idempotency.Key{b.key, statement} {
		rec, err := b.store.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if d := rec.CompletedAt.Sub(rec.CreatedAt); d < 300*time.Millisecond {
			t.Errorf("%s: completed %v after it was created", key.ID, d)
		}
		if d := rec.ExpiresAt.Sub(rec.CompletedAt); d < retention || d > retention+50*time.Millisecond {
			t.Errorf("%s: expires %v after it was completed", key.ID, d)
		}
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

// follow starts n duplicates, and returns when they wait at the gate.
func (b *bundle) follow(n int) (waiters []<-chan outcome) {
	b.Helper()
	before := b.store.Waiting(b.key)
	for range n {
		waiters = append(waiters, b.start(context.Background(), b.store, charge(b.key.ID, 99)))
	}
	b.joined(before + n)
	return waiters
}

// claims counts those that a proxy sees, from now on, once the predicate holds.
func claims(proxy *pgproxy.Proxy, from func(pgproxy.Message) bool) *atomic.Int64 {
	var begun atomic.Bool
	var n atomic.Int64
	claim := bound(claimText)
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if from(m) {
			begun.Store(true)
		}
		if begun.Load() && claim(m) {
			n.Add(1)
		}
		return pgproxy.Pass
	})
	return &n
}

// asksAgain waits for a claim that was begun later than now: the next one can be on
// its way already.
func (b *bundle) asksAgain(proxy *pgproxy.Proxy) {
	b.Helper()
	more := claims(proxy, func(pgproxy.Message) bool { return true })
	b.eventually("the leader asks again", func() bool { return more.Load() >= 2 })
}

func TestWaitersOfAnExecutionGetItsResultWithoutAQuery(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	store, proxy := b.through(idempotency.Config{})
	b.store = store
	k := newBlocker()
	first := b.start(t.Context(), b.store, k.charge(b.key.ID, 1))
	receive(b, k.begun)
	waiters := b.follow(10) // while the function runs
	asked := claims(proxy, func(pgproxy.Message) bool { return true })
	k.goOn <- nil
	b.wantOutcome(receive(b, first), outcome{1, false, nil})
	b.want(waiters, outcome{1, true, nil})
	if asked.Load() != 0 {
		t.Errorf("%d more claims", asked.Load())
	}
	b.effects(1)
}

func TestWaitersOfACallElsewhereGetItsResultWithTheLeadersQuery(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	store, proxy := b.through(idempotency.Config{Wait: time.Minute})
	b.store = store
	k := newBlocker()
	first := b.start(t.Context(), b.storeOn(b.pool, idempotency.Config{}), k.charge(b.key.ID, 1))
	receive(b, k.begun)
	leader := b.start(t.Context(), b.store, charge(b.key.ID, 2))
	waiters := append(b.follow(10), leader)
	b.asksAgain(proxy)
	k.goOn <- nil
	b.wantOutcome(receive(b, first), outcome{1, false, nil})
	asked := claims(proxy, func(pgproxy.Message) bool { return true })
	b.want(waiters, outcome{1, true, nil})
	if asked.Load() > 1 {
		t.Errorf("%d claims of the leader and 10 waiters after the result was there", asked.Load())
	}
	b.effects(1)
}

// heldCommit makes the COMMIT of a charge wait, on the server, until release is
// called.
func (b *bundle) heldCommit() (release func()) {
	b.Helper()
	b.exec(`create function hold() returns trigger language plpgsql as $$ begin perform pg_advisory_xact_lock(1, 1); return null; end $$`)
	b.exec(`create constraint trigger hold after insert on charges deferrable initially deferred for each row execute function hold()`)
	holder := b.begin(pgx.TxOptions{})
	if _, err := holder.Exec(context.Background(), "select pg_advisory_xact_lock(1, 1)"); err != nil {
		b.Fatal(err)
	}
	return func() {
		if err := holder.Rollback(context.Background()); err != nil {
			b.Error(err)
		}
	}
}

// inDoubt starts a call that loses its connection in a COMMIT which the server
// goes on with until release is called, and returns when the call asks what
// became of it.
func (d *doubt) inDoubt() (call <-chan outcome, release func()) {
	d.Helper()
	release = d.heldCommit()
	asks := make(chan struct{})
	var cut, asked atomic.Bool
	commit, claim := commitComplete(), bound(claimText)
	d.proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		switch {
		case m.Type == pgproxy.CancelRequest:
			return pgproxy.Drop
		case cut.Load() && claim(m) && asked.CompareAndSwap(false, true):
			close(asks)
		case commit(m) && cut.CompareAndSwap(false, true):
			return pgproxy.CutClient
		}
		return pgproxy.Pass
	})
	call = d.start(context.Background(), d.store, d.charge)
	receive(d, asks)
	return call, release
}

func TestWaitersOfACallInDoubtGetWhatItFindsWithoutAQuery(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	first, release := d.inDoubt()
	waiters := d.follow(10)
	d.asksAgain(d.proxy)
	asked := claims(d.proxy, sent("pg_logical_emit_message")) // it has found the record
	release()
	d.wantOutcome(receive(d, first), outcome{1, true, nil})
	d.want(waiters, outcome{1, true, nil})
	if asked.Load() != 0 {
		t.Errorf("%d more claims", asked.Load())
	}
	d.effects(1)
}

func TestCallInDoubtTurnsAwayThoseThatDoNotWait(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	d.store, d.proxy = d.through(idempotency.Config{Wait: -1})
	first, release := d.inDoubt()
	duplicate := d.start(t.Context(), d.store, charge(d.key.ID, 2))
	d.wantOutcome(receive(d, duplicate), outcome{err: idempotency.ErrInProgress})
	release()
	d.wantOutcome(receive(d, first), outcome{1, true, nil})
	d.effects(1)
}

// A call that leads compares fingerprints for the key while it owns the row: in
// its second run, too, and not in between.
func TestFingerprintIsComparedInTheSecondRunAndNotBeforeIt(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string]bool{"after a lost connection": false, "after a commit in doubt": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := setupDoubt(t)
			d.store, d.proxy = d.through(idempotency.Config{Wait: time.Minute})
			held, asks, goOn := atomic.Bool{}, make(chan struct{}), make(chan struct{})
			letGo := sync.OnceFunc(func() { close(goOn) })
			defer letGo()
			claim, cut := bound(claimText), bound("select 'cut here'")
			if lost {
				cut = commitOnItsWay
			}
			d.proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
				switch {
				case cut(m) && d.runs.Load() == 1:
					return pgproxy.Drop
				case claim(m) && d.runs.Load() == 1 && held.CompareAndSwap(false, true):
					close(asks)
					<-goOn
				}
				return pgproxy.Pass
			})
			k := newBlocker()
			first := d.start(t.Context(), d.store, func(ctx context.Context, tx pgx.Tx) (int, error) {
				n := int(d.runs.Add(1))
				if n == 1 {
					if _, err := tx.Exec(ctx, "select 'cut here'"); err != nil {
						return 0, err
					}
					return charge(d.key.ID, n)(ctx, tx)
				}
				return k.charge(d.key.ID, n)(ctx, tx)
			})
			receive(d, asks)
			wrong := *d.bundle
			wrong.key.Fingerprint = idempotency.FingerprintOf([]byte("other"))
			early := wrong.start(t.Context(), d.store, charge(d.key.ID, 9))
			d.stays(early)
			letGo()
			receive(d, k.begun)
			d.wantOutcome(receive(d, early), outcome{err: idempotency.ErrKeyReused})
			late := wrong.start(t.Context(), d.store, charge(d.key.ID, 9))
			d.wantOutcome(receive(d, late), outcome{err: idempotency.ErrKeyReused})
			k.goOn <- nil
			d.wantOutcome(receive(d, first), outcome{2, false, nil})
			d.effects(1)
		})
	}
}

// A replay that is on its way out holds the advisory lock, which does not prove
// that a call is in flight. Those that do not want to wait ask again.
func TestNegativeWaitOutlastsAReplayThatHoldsTheLockOfAnExpiredKey(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.leavesOnSecondClaim()
	b.executes(2)
}

// The moment for which it asks again begins when the key is known to be held, and not with
// the call, which can have waited for a connection before.
func TestNegativeWaitOutlastsAReplayAlsoAfterAWaitForAConnection(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.leavesOnSecondClaim(pgtest.MaxConns(1))
	pool := idempotency.PoolOf(b.store)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	waits := pool.Stat().EmptyAcquireCount()
	call := b.start(t.Context(), b.store, charge(b.key.ID, 2))
	time.Sleep(3 * idempotency.ImpatientBound) // the call waits meanwhile, or has not begun
	conn.Release()
	b.wantOutcome(receive(b, call), outcome{2, false, nil})
	if pool.Stat().EmptyAcquireCount() == waits {
		t.Log("the call did not wait for the connection")
	}
}

// leavesOnSecondClaim makes the key an expired one whose lock a replay holds, until the
// bundle's Store, which does not wait, asks for it a second time.
func (b *bundle) leavesOnSecondClaim(opts ...pgtest.Option) {
	b.Helper()
	b.executes(1)
	b.exec("update idempotency_keys set expires_at = now()")
	replay := b.begin(pgx.TxOptions{})
	b.locks(replay)
	store, proxy := b.through(idempotency.Config{Wait: -1}, opts...)
	b.store = store
	b.onSecondClaim(proxy, func() {
		if err := replay.Rollback(context.Background()); err != nil {
			b.Error(err)
		}
	})
}

// onSecondClaim calls f before the second claim's transaction begins: the first one
// has found the key taken.
func (b *bundle) onSecondClaim(proxy *pgproxy.Proxy, f func()) {
	var claims atomic.Int64
	begin := bound("begin")
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if begin(m) && claims.Add(1) == 2 {
			f()
		}
		return pgproxy.Pass
	})
	b.Cleanup(func() {
		if claims.Load() < 2 {
			b.Error("the key was not asked for again")
		}
	})
}

// Another call can have the key between two runs of this one.
func TestCallThatFindsARecordAfterItsConflictReplaysIt(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var event idempotency.Event
	store, proxy := b.through(idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) { event = e }})
	b.onSecondClaim(proxy, func() {
		b.wantOutcome(receive(b, b.start(t.Context(), b.store, charge(b.key.ID, 1))), outcome{1, false, nil})
	})
	got := receive(b, b.start(t.Context(), store, func(context.Context, pgx.Tx) (int, error) { return 2, &pgconn.PgError{Code: "40001"} }))
	b.wantOutcome(got, outcome{1, true, nil})
	if event.Outcome != "replayed" || event.Runs != 1 {
		t.Errorf("%+v", event)
	}
	b.effects(1)
}

func TestEventCountsTheWaitForACallElsewhere(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var event idempotency.Event
	store, proxy := b.through(idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) { event = e }})
	k := newBlocker()
	first := b.start(t.Context(), b.store, k.charge(b.key.ID, 1))
	receive(b, k.begun)
	b.onSecondClaim(proxy, func() { k.goOn <- nil })
	b.wantOutcome(receive(b, b.start(t.Context(), store, charge(b.key.ID, 2))), outcome{1, true, nil})
	b.wantOutcome(receive(b, first), outcome{1, false, nil})
	if event.Waited < time.Millisecond { // half of the first pause
		t.Errorf("waited for %v", event.Waited)
	}
}

// Once a call has returned a result, no call is in progress for the next one.
func TestNegativeWaitRightAfterAReplayIsAReplay(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	k := newBlocker()
	first := b.start(t.Context(), b.store, k.charge(b.key.ID, 1))
	receive(b, k.begun)
	store, proxy := b.through(idempotency.Config{Wait: -1})
	b.store = store
	goOn := make(chan struct{})
	b.onSecondClaim(proxy, func() {
		k.goOn <- nil
		b.wantOutcome(receive(b, first), outcome{1, false, nil})
		proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
			if m.Type == 'Q' && m.SQL == "rollback" {
				<-goOn
			}
			return pgproxy.Pass
		})
	})
	defer close(goOn)
	b.replays(1) // its ROLLBACK hangs
	b.unknown()
	b.replays(1)
}

func TestNegativeWaitIsErrInProgressAtOnceBesideACallThatAsksAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	k := newBlocker()
	first := b.start(t.Context(), b.store, k.charge(b.key.ID, 1))
	receive(b, k.begun)
	store, proxy := b.through(idempotency.Config{Wait: -1})
	b.store = store
	asks, goOn := make(chan struct{}), make(chan struct{})
	b.onSecondClaim(proxy, func() { close(asks); <-goOn })
	second := b.start(t.Context(), b.store, charge(b.key.ID, 2))
	receive(b, asks)
	got := b.start(t.Context(), b.store, charge(b.key.ID, 3))
	select {
	case got := <-got:
		b.wantOutcome(got, outcome{err: idempotency.ErrInProgress})
	case <-time.After(20 * time.Second):
		t.Error("the call waits")
	}
	close(goOn)
	b.wantOutcome(receive(b, second), outcome{err: idempotency.ErrInProgress})
	k.goOn <- nil
	b.wantOutcome(receive(b, first), outcome{1, false, nil})
}

// Replays of one key hold one connection at a time: the next call waits for the
// ROLLBACK, for a moment.
func TestReplaysOfOneKeyTakeTurnsWithTheirRollbacks(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	var waited atomic.Int64
	store, proxy := b.through(idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) { waited.Store(int64(e.Waited)) }})
	b.store = store
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if m.Type == 'Q' && m.SQL == "rollback" {
			time.Sleep(200 * time.Millisecond)
		}
		return pgproxy.Pass
	})
	for range 50 { // a slow machine can be late for the moment
		b.unknown()
		b.replays(1)
		b.unknown()
		b.replays(1)
		if time.Duration(waited.Load()) > 20*time.Millisecond {
			return
		}
	}
	t.Error("no call has waited for the ROLLBACK of a replay")
}

func TestHungRollbackOfAReplayDoesNotKeepTheNextCallWaiting(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	store, proxy := b.through(idempotency.Config{})
	b.store = store
	goOn := make(chan struct{})
	var rollbacks, givenUp atomic.Int64
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		switch {
		case m.Type == pgproxy.CancelRequest: // after the bound of a ROLLBACK
			givenUp.Add(1)
		case m.Type == 'Q' && m.SQL == "rollback" && rollbacks.Add(1) == 1:
			<-goOn
		}
		return pgproxy.Pass
	})
	defer close(goOn)
	b.replays(1)
	b.unknown()
	b.replays(1)
	if givenUp.Load() != 0 || rollbacks.Load() == 0 {
		t.Error("the second call has waited until the ROLLBACK was given up")
	}
}

func TestKeyIsKnownOnceItWasRecordedOrSeenRecordedAndNotWhenItWasTried(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{Wait: -1})
	other := *b
	other.store = b.storeOn(b.pool, idempotency.Config{})

	failed := errors.New("declined")
	_, _, err := b.do(func(context.Context, pgx.Tx) (int, error) { return 0, failed })
	b.wantErr(err, failed)
	b.wantKnown("after a function that failed", false)

	k := newBlocker()
	running := other.start(t.Context(), other.store, k.charge(b.key.ID, 1))
	receive(b, k.begun)
	_, _, err = b.do(charge(b.key.ID, 2))
	b.wantErr(err, idempotency.ErrInProgress)
	b.wantKnown("while a call elsewhere runs", false)
	other.wantKnown("before its COMMIT", false)
	k.goOn <- nil
	b.wantOutcome(receive(b, running), outcome{1, false, nil})
	other.wantKnown("when it was recorded", true)
	b.wantKnown("recorded elsewhere", false)

	b.replays(1)
	b.wantKnown("when it was seen recorded", true)
	third := *b
	third.store = b.storeOn(b.pool, idempotency.Config{})
	third.wantKnown("by another Store", false) // it can be one of another table
	neighbour := *b
	neighbour.key.Scope = "customer-2"
	neighbour.wantKnown("of another scope", false)
	if err := b.store.Delete(t.Context(), b.key); err != nil {
		t.Fatal(err)
	}
	b.wantKnown("after Delete", false)
}

// It is not the Store who commits, and the caller may not.
func TestDoTxNeitherAsksNorFillsTheMemory(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	tx := b.begin(pgx.TxOptions{})
	b.wantOutcome(b.doTx(tx, charge(b.key.ID, 1)), outcome{1, false, nil})
	b.wantOutcome(b.doTx(tx, charge(b.key.ID, 2)), outcome{1, true, nil})
	b.commit(tx)
	b.wantKnown("after DoTx", false)
	b.replays(1)
	tx = b.begin(pgx.TxOptions{})
	if _, err := tx.Exec(t.Context(), "delete from idempotency_keys"); err != nil {
		t.Fatal(err)
	}
	b.wantOutcome(b.doTx(tx, charge(b.key.ID, 3)), outcome{3, false, nil})
	b.commit(tx)
}

func TestKnownKeyIsAnsweredByWhatTheTableSays(t *testing.T) {
	t.Parallel()
	for name, happens := range map[string]struct {
		sql  string
		want outcome // zero: the function runs
	}{
		"expired":                         {sql: "update idempotency_keys set expires_at = clock_timestamp()"},
		"deleted":                         {sql: "delete from idempotency_keys"},
		"renewed elsewhere":               {sql: "update idempotency_keys set result = '7'", want: outcome{7, true, nil}},
		"committed without a result":      {sql: "update idempotency_keys set result = null, completed_at = null, expires_at = null", want: outcome{err: idempotency.ErrAbandoned}},
		"recorded with other fingerprint": {sql: `update idempotency_keys set fingerprint = decode(repeat('ab', 32), 'hex')`, want: outcome{err: idempotency.ErrKeyReused}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			b.executes(1)
			b.replays(1)
			b.exec(happens.sql)
			b.wantKnown("before the call", true)
			want := happens.want
			if want == (outcome{}) {
				want = outcome{value: 2}
			}
			b.wantOutcome(receive(b, b.start(t.Context(), b.store, charge(b.key.ID, 2))), want)
			if want.err == nil && !want.replayed {
				b.replays(2)
			}
		})
	}
}

func TestKnownKeyWhoseRecordIsGoneIsForgotten(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	b.exec("delete from idempotency_keys")
	failed := errors.New("declined")
	_, _, err := b.do(func(context.Context, pgx.Tx) (int, error) { return 0, failed })
	b.wantErr(err, failed)
	b.wantKnown("after a call that has not found it", false)
}

// The advisory lock of another replay, and the row lock of whoever looks at the record.
func TestReplayOfAKnownKeyWaitsForNoLock(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{Wait: -1})
	b.executes(1)
	tx := b.begin(pgx.TxOptions{})
	b.locks(tx)
	if _, err := tx.Exec(t.Context(), "select from idempotency_keys for update"); err != nil {
		t.Fatal(err)
	}
	b.replays(1)
}

// The first call's answer is too old for those that came after its question; the next
// one's is for all of them.
func TestCallsThatWaitForAKnownKeyDoNotEachAskForIt(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	store, proxy := b.through(idempotency.Config{})
	b.store = store
	b.replays(1)
	read, reached, goOn := bound("select fingerprint"), make(chan struct{}), make(chan struct{})
	var asked atomic.Int64
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if read(m) && asked.Add(1) == 1 {
			close(reached)
			<-goOn
		}
		return pgproxy.Pass
	})
	first := b.start(t.Context(), b.store, charge(b.key.ID, 2))
	receive(b, reached)
	waiters := b.follow(20)
	close(goOn)
	b.want(append(waiters, first), outcome{1, true, nil})
	if n := asked.Load(); n != 2 {
		t.Errorf("the key was asked for %d times, want 2", n)
	}
}

func TestLostConnectionWhileAKnownKeyIsAskedForIsNoError(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	store, proxy := b.through(idempotency.Config{}, pgtest.MaxConns(1))
	b.store = store
	b.replays(1)
	b.replays(1)
	cuts := 0
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if !m.FromServer && (m.Type == 'S' || m.Type == 'Q') && cuts == 0 {
			cuts++
			return pgproxy.Drop
		}
		return pgproxy.Pass
	})
	b.replays(1)
	if cuts == 0 {
		t.Error("the connection was not cut")
	}
}

func TestContextEndsTheQuestionForAKnownKey(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	tx := b.begin(pgx.TxOptions{})
	if _, err := tx.Exec(t.Context(), "lock table idempotency_keys"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	got := receive(b, b.start(ctx, b.store, charge(b.key.ID, 2)))
	b.wantErr(got.err, context.DeadlineExceeded)
	b.commit(tx)
	b.replays(1)
}

// A storm of duplicates waits in the process, without connections, while other
// keys go on. Its times are logged and not judged: see the ratio beside them.
func TestStormOnOneKeyExecutesOnceAndHoldsNoConnections(t *testing.T) {
	for _, fn := range []time.Duration{0, 200 * time.Millisecond} {
		t.Run(fmt.Sprint("function of ", fn), func(t *testing.T) {
			b := setup(t, idempotency.Config{})
			pool := b.anotherPool(pgtest.MaxConns(16))
			b.store = b.storeOn(pool, idempotency.Config{Wait: time.Minute})
			callers := long(2000, 10000)

			distinct := b.distinctKeys(func() { time.Sleep(500 * time.Millisecond) })
			goroutines := runtime.NumGoroutine()
			var most atomic.Int32
			during := b.distinctKeys(func() {
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						got, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
							most.Store(max(most.Load(), pool.Stat().AcquiredConns()))
							time.Sleep(fn)
							most.Store(max(most.Load(), pool.Stat().AcquiredConns()))
							return charge(b.key.ID, 1)(ctx, tx)
						})
						if got != 1 || err != nil {
							t.Errorf("Do = %v, %v", got, err)
						}
					})
				}
				wg.Wait()
			})
			b.effects(1)
			t.Logf("%d duplicates; distinct keys: p99 %v without the storm, %v beside it (%.1f times)",
				callers, distinct, during, float64(during)/float64(distinct))
			// The leader's, and one for each of the eight distinct callers.
			if most.Load() > 9 {
				t.Errorf("%d connections were in use while the duplicates waited, want 9 at most", most.Load())
			}
			b.eventually("the goroutines are gone", func() bool { return runtime.NumGoroutine() <= goroutines+5 })
		})
	}
}

// distinctKeys calls Do for distinct keys on 8 goroutines while work runs, and
// returns the 99th percentile of their latencies.
func (b *bundle) distinctKeys(work func()) time.Duration {
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var latencies []time.Duration
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				key := idempotency.Key{Scope: "distinct", ID: fmt.Sprint(distinctID.Add(1))}
				start := time.Now()
				if _, _, err := idempotency.Do(context.Background(), b.store, key, charge(key.ID, 2)); err != nil {
					b.Error(err)
				}
				mu.Lock()
				latencies = append(latencies, time.Since(start))
				mu.Unlock()
			}
		})
	}
	work()
	cancel()
	wg.Wait()
	slices.Sort(latencies)
	return latencies[len(latencies)*99/100]
}

var distinctID atomic.Int64

func TestManyHotKeysFromManyProcessesEachExecuteOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	keys := long(10, 50)
	var processes []*process
	for range 4 {
		processes = append(processes, b.spawn(job{Amount: 1, Callers: 3, Keys: keys, Hang: "briefly"}))
	}
	executed := 0
	for _, p := range processes {
		for range 3 * keys {
			r := p.report()
			if r.Err != "" || r.Value != 1 {
				t.Errorf("got %+v", r)
			}
			if !r.Replayed {
				executed++
			}
		}
	}
	if executed != keys {
		t.Errorf("%d executions of %d keys", executed, keys)
	}
	if n := query[int](b, "select count(*) from charges"); n != keys {
		t.Errorf("%d charges of %d keys", n, keys)
	}
}

// Under SERIALIZABLE, calls for distinct keys conflict no more than their
// business writes do by themselves.
func TestDistinctKeysDoNotConflictUnderSerializable(t *testing.T) {
	onOneServer(t, "Citus has no SERIALIZABLE")
	t.Parallel()
	serializable := pgx.TxOptions{IsoLevel: pgx.Serializable}
	b := setup(t, idempotency.Config{})
	var runs, calls, bareFailed atomic.Int64
	store := b.storeOn(b.pool, idempotency.Config{TxOptions: serializable, Observe: func(_ context.Context, e idempotency.Event) {
		runs.Add(int64(e.Runs))
		calls.Add(1)
	}})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range long(100, 300) {
				key := idempotency.Key{Scope: "s", ID: fmt.Sprintf("%d-%d", w, i)}
				if _, _, err := idempotency.Do(t.Context(), store, key, charge(key.ID, 1)); err != nil {
					t.Error(err)
				}
				err := pgx.BeginTxFunc(t.Context(), b.pool, serializable, func(tx pgx.Tx) error {
					_, err := charge(key.ID, 1)(t.Context(), tx)
					return err
				})
				if err != nil {
					bareFailed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	again := runs.Load() - calls.Load()
	t.Logf("%d calls: %d functions run again; %d of as many bare transactions failed", calls.Load(), again, bareFailed.Load())
	if again > bareFailed.Load() {
		t.Errorf("%d false conflicts", again)
	}
}

// Conflicts of the business writes themselves are retried, to the end.
func TestSerializationFailuresOfTheFunctionAreRunAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{TxOptions: pgx.TxOptions{IsoLevel: pgx.Serializable}})
	b.exec("create table counter (n int)")
	b.exec("insert into counter values (0)")
	var wg sync.WaitGroup
	var done atomic.Int64
	for w := range 4 {
		wg.Go(func() {
			for i := range 10 {
				key := idempotency.Key{Scope: "s", ID: fmt.Sprintf("%d-%d", w, i)}
				_, _, err := idempotency.Do(t.Context(), b.store, key, func(ctx context.Context, tx pgx.Tx) (int, error) {
					var n int
					if err := tx.QueryRow(ctx, "select n from counter").Scan(&n); err != nil {
						return 0, err
					}
					_, err := tx.Exec(ctx, "update counter set n = $1", n+1)
					return n + 1, err
				})
				switch {
				case err == nil:
					done.Add(1)
				case sqlState(err) != "40001":
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := query[int64](b, "select n from counter"); n != done.Load() {
		t.Errorf("counted %d of %d successful calls", n, done.Load())
	}
	t.Logf("%d of 40 calls on one hot row succeeded", done.Load())
}

func TestConflictThatNeverEndsIsGivenUpWithItsErrorAndNothingHeld(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	runs := 0
	_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		runs++
		_, err := tx.Exec(ctx, "do $$ begin raise 'conflict' using errcode = '40001'; end $$")
		return 0, err
	})
	if sqlState(err) != "40001" || runs != 10 {
		t.Errorf("%d runs, %v", runs, err)
	}
	b.effects(0)
	b.executes(1)
}

// Callers that met once do not meet again.
func TestPauseBetweenTwoQuestionsIsCutByChance(t *testing.T) {
	t.Parallel()
	full := []time.Duration{2, 4, 8, 16, 32, 64, 100, 100}
	uncut := 0
	for range 100 {
		for i, pause := range idempotency.Pauses(len(full)) {
			longest := full[i] * time.Millisecond
			if pause <= longest/2 || pause > longest {
				t.Errorf("pause %d is %v, want more than a half of %v, and no more than that", i, pause, longest)
			}
			if pause == longest {
				uncut++
			}
		}
	}
	if uncut > 10 {
		t.Errorf("%d of 800 pauses are as long as they can be", uncut)
	}
}
