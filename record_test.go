package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/condition"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestGetReturnsTheRecord(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{Retention: time.Hour})
	_, err := b.store.Get(t.Context(), b.key)
	b.wantErr(err, idempotency.ErrNotFound)

	b.key.Fingerprint = idempotency.FingerprintOf([]byte("10 euros"))
	k := newBlocker()
	first := b.start(t.Context(), b.store, k.charge(b.key.ID, 7))
	receive(b, k.begun)
	_, err = b.store.Get(t.Context(), b.key)
	b.wantErr(err, idempotency.ErrNotFound)
	k.goOn <- nil
	receive(b, first)

	rec, err := b.store.Get(t.Context(), idempotency.Key{Scope: b.key.Scope, ID: b.key.ID})
	if err != nil {
		t.Fatal(err)
	}
	if rec.Key != b.key || string(rec.Result) != "7" {
		t.Errorf("got %+v", rec)
	}
	if rec.CompletedAt.Before(rec.CreatedAt) || rec.ExpiresAt.Sub(rec.CompletedAt).Round(time.Second) != time.Hour {
		t.Errorf("times %v, %v, %v", rec.CreatedAt, rec.CompletedAt, rec.ExpiresAt)
	}

	b.exec("update idempotency_keys set expires_at = now()")
	_, err = b.store.Get(t.Context(), b.key)
	b.wantErr(err, idempotency.ErrNotFound)
}

func TestAllReturnsTheLiveRecordsOfOneScopeInOrder(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.store = b.storeOn(b.anotherPool(pgtest.MaxConns(1)), idempotency.Config{})
	b.exec(`insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after)
		select to_char(i, 'FM0000'), case when i % 2 = 0 then 'even' else 'odd' end, '1', now(), now() + interval '1 hour', now()
		from generate_series(1, 1000) i`)
	b.exec("update idempotency_keys set expires_at = now() where id = '0004'")
	want := 2
	for rec, err := range b.store.All(t.Context(), "even") {
		if err != nil {
			t.Fatal(err)
		}
		if want == 4 {
			want += 2
		}
		if rec.Key.ID != fmt.Sprintf("%04d", want) || rec.Key.Scope != "even" {
			t.Fatalf("got %+v, want %d", rec.Key, want)
		}
		// No connection is held meanwhile, even of a pool of one.
		if _, err := b.store.Get(t.Context(), rec.Key); err != nil {
			t.Fatal(err)
		}
		want += 2
	}
	if want != 1002 {
		t.Errorf("ended before %d", want)
	}
	for range b.store.All(t.Context(), "even") {
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range b.store.All(ctx, "even") {
		b.wantErr(err, context.Canceled)
	}
}

func TestDeleteForgetsARecord(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.wantErr(b.store.Delete(t.Context(), b.key), idempotency.ErrNotFound)
	b.executes(1)
	if err := b.store.Delete(t.Context(), b.key); err != nil {
		t.Fatal(err)
	}
	b.executes(2)
}

// The command looks at the tables in the transaction that deletes.
func TestNothingIsDeletedThatTheConditionRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.wantErr(b.proceed(fails("c")), errNoAnswer)
	says := func(operations bool, err error) context.Context {
		return condition.With(t.Context(), func(context.Context, pgx.Tx) (bool, error) { return operations, err })
	}
	refusal := errors.New("another table")
	b.wantErr(b.store.Delete(says(true, refusal), b.key), refusal)
	_, err := b.store.Purge(says(true, refusal))
	b.wantErr(err, refusal)
	b.wantErr(b.store.Delete(says(true, nil), b.key), idempotency.ErrUnfinished)
	if b.rows() != 1 {
		t.Errorf("%d rows", b.rows())
	}
	b.wantErr(b.store.Delete(says(false, nil), b.key), nil) // it must not name the table of operations
	if b.rows() != 0 {
		t.Errorf("%d rows", b.rows())
	}
}

func TestDeleteIsErrInProgressWhileACallHoldsTheKey(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for _, name := range []string{"a new key", "an expired one"} {
		k := newBlocker()
		call := b.start(t.Context(), b.store, k.charge(b.key.ID, 1))
		receive(b, k.begun)
		if err := b.store.Delete(t.Context(), b.key); !errors.Is(err, idempotency.ErrInProgress) {
			t.Errorf("%s: %v", name, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if err := b.store.Delete(ctx, b.key); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s, with a deadline: %v", name, err)
		}
		cancel()
		k.goOn <- nil
		b.wantOutcome(receive(b, call), outcome{1, false, nil})
		b.exec("update idempotency_keys set expires_at = now()")
	}
}

// A row lock without the advisory lock is what a call on a distributed table, or
// of a version to come, may hold.
func TestDeleteIsErrInProgressBehindARowLockAlone(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	tx := b.begin(pgx.TxOptions{})
	if _, err := tx.Exec(t.Context(), "select from idempotency_keys for update"); err != nil {
		t.Fatal(err)
	}
	b.wantErr(b.store.Delete(t.Context(), b.key), idempotency.ErrInProgress)
}

func TestDeleteIsNotTurnedAwayByReplays(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for range 30 {
		b.executes(1)
		b.replays(1)
		if err := b.store.Delete(t.Context(), b.key); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDeleteAsksAgainForAKeyThatIsHeldForAMoment(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	holder := b.begin(pgx.TxOptions{})
	b.locks(holder)
	store, proxy := b.through(idempotency.Config{})
	var asked atomic.Int64
	asks := bound("pg_try_advisory_xact_lock")
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if asks(m) && asked.Add(1) == 2 {
			_ = holder.Rollback(context.Background())
		}
		return pgproxy.Pass
	})
	b.wantErr(store.Delete(t.Context(), b.key), nil)
	if asked.Load() != 2 {
		t.Errorf("it has asked %d times", asked.Load())
	}
}

// freezes starts a call that freezes with the answer to a statement.
func (b *bundle) freezes(statement string, call func(context.Context, *idempotency.Store) error) {
	b.Helper()
	store, proxy := b.through(idempotency.Config{MaxIdle: 200 * time.Millisecond})
	frozen, thaw := make(chan struct{}), make(chan struct{})
	var reached, stopped atomic.Bool
	matches := bound(statement)
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		switch {
		case matches(m):
			reached.Store(true)
		case reached.Load() && m.FromServer && m.Type == 'Z' && stopped.CompareAndSwap(false, true):
			close(frozen) // the answer does not arrive, and so nothing follows
			<-thaw
		}
		return pgproxy.Pass
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- call(ctx, store) }()
	b.Cleanup(func() {
		cancel()
		close(thaw)
		if err := <-ended; err == nil {
			b.Error("the thawed one has succeeded")
		}
	})
	receive(b, frozen)
}

// A process can freeze between the statements of a Delete or a Purge, as with
// Ctrl-Z. It must not hold the key for as long as it is frozen.
func TestFrozenDeleteAndPurgeFreeTheKeyAfterMaxIdle(t *testing.T) {
	t.Parallel()
	t.Run("Delete", func(t *testing.T) {
		t.Parallel()
		b := setup(t, idempotency.Config{})
		b.freezes("pg_try_advisory_xact_lock", func(ctx context.Context, s *idempotency.Store) error { return s.Delete(ctx, b.key) })
		b.executes(1)
	})
	t.Run("Purge", func(t *testing.T) {
		t.Parallel()
		b := setup(t, idempotency.Config{})
		b.executes(1)
		b.exec("update idempotency_keys set expires_at = now(), purge_after = now()")
		b.freezes("delete from idempotency_keys", func(ctx context.Context, s *idempotency.Store) error {
			_, err := s.Purge(ctx)
			return err
		})
		b.executes(2)
	})
}

func TestFrozenPurgerGivesUpItsTurnAfterMaxIdle(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	b.exec("update idempotency_keys set expires_at = now(), purge_after = now()")
	b.freezes("pg_try_advisory_xact_lock", func(ctx context.Context, s *idempotency.Store) error { return s.PurgeEvery(ctx, time.Hour) })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.store.PurgeEvery(ctx, 20*time.Millisecond) }()
	b.eventually("another one has purged", func() bool { return query[int](b, "select count(*) from idempotency_keys") == 0 })
	cancel()
	receive(b, ended)
}

func TestPurgeDeletesWhatHasExpiredAndReturnsTheCount(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec(`insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after)
		select i::text, 'scope', '1', now(), t, t
		from generate_series(1, 3000) i, lateral (select now() + case when i <= 2500 then '-1 second' else '1 hour' end::interval) x (t)`)
	if n, err := b.store.Purge(t.Context()); n != 2500 || err != nil {
		t.Errorf("Purge = %d, %v", n, err)
	}
	if n := query[int](b, "select count(*) from idempotency_keys"); n != 500 {
		t.Errorf("%d records left", n)
	}
	if n, err := b.store.Purge(t.Context()); n != 0 || err != nil {
		t.Errorf("Purge = %d, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := b.store.Purge(ctx)
	b.wantErr(err, context.Canceled)
}

func TestPurgeThatIsCancelledCountsWhatItHasDeleted(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.expiredRows(5000)
	store, proxy := b.through(idempotency.Config{})
	n, err := store.Purge(cancelledInCommit(t, proxy))
	b.wantErr(err, context.Canceled)
	if left := b.rows(); n != 1000 || left != 4000 {
		t.Errorf("%d counted, %d of 5000 left", n, left)
	}
}

func TestDeleteThatIsCancelledInItsCommitSaysWhatItHasDone(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	store, proxy := b.through(idempotency.Config{})
	if err := store.Delete(cancelledInCommit(t, proxy), b.key); err != nil {
		t.Error(err)
	}
	b.executes(2)
}

// cancelledInCommit is a context that ends when PostgreSQL has committed. The answer comes
// a moment later.
func cancelledInCommit(t *testing.T, proxy *pgproxy.Proxy) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if commitAnswered(m) {
			cancel()
			time.Sleep(200 * time.Millisecond)
		}
		return pgproxy.Pass
	})
	return ctx
}

// Rows can be due for the purge and not have expired: purge_after is of the claim.
func TestPurgeLeavesWhatHasNotExpiredAmongWhatHas(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec(`insert into idempotency_keys (id, scope, purge_after, result, completed_at, expires_at) values
		('open', 's', now() - interval '2 hours', null, null, null),
		('live', 's', now() - interval '2 hours', '1', now(), now() + interval '1 hour'),
		('expired', 's', now() - interval '1 hour', '1', now() - interval '2 hours', now() - interval '1 hour')`)
	if n, err := b.store.Purge(t.Context()); n != 1 || err != nil {
		t.Errorf("purged %d, %v", n, err)
	}
	if left := query[[]string](b, "select array_agg(id order by id) from idempotency_keys"); !slices.Equal(left, []string{"live", "open"}) {
		t.Errorf("%v are left", left)
	}
}

// A batch begins where the one before it ended, which is no number for these.
func TestPurgeRestsForATenthOfASecondAndAsLongAsASlowBatchHasTaken(t *testing.T) {
	t.Parallel()
	for batch, want := range map[time.Duration]time.Duration{
		0:                      100 * time.Millisecond,
		30 * time.Millisecond:  70 * time.Millisecond,
		50 * time.Millisecond:  50 * time.Millisecond,
		51 * time.Millisecond:  51 * time.Millisecond,
		100 * time.Millisecond: 100 * time.Millisecond,
		3 * time.Second:        3 * time.Second,
	} {
		if got := idempotency.RestAfter(batch); got != want {
			t.Errorf("%v after a batch of %v, want %v", got, batch, want)
		}
	}
}

// What a batch has paused before it began is no part of what it has taken.
func TestPausesOfAPurgeDoNotGrow(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var before time.Duration
	var begun time.Time
	batches := 0
	err := b.store.PurgeBy(t.Context(), func(pause time.Duration) bool {
		if took := time.Since(begun) - before; batches > 0 && pause > max(100*time.Millisecond, took) {
			t.Errorf("a pause of %v behind a batch of %v", pause, took)
		}
		before, begun = pause, time.Now()
		time.Sleep(pause + 10*time.Millisecond)
		batches++
		return batches < 5
	})
	b.wantErr(err, nil)
}

func TestTransactionWithATurnMayBeSilentForLonger(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	const most = (1<<31 - 1) * time.Millisecond
	for _, c := range []struct{ maxIdle, want time.Duration }{{-1, -1}, {0, 2 * time.Minute}, {time.Second, 61 * time.Second}, {most - time.Second, most}, {most, most}} {
		store := b.storeOn(b.pool, idempotency.Config{MaxIdle: c.maxIdle})
		if got := store.MaxIdleWith(time.Minute); got != c.want {
			t.Errorf("MaxIdle %v: %v, want %v", c.maxIdle, got, c.want)
		}
	}
}

func TestPurgeDeletesMoreThanABatchOfRowsOfTheBeginningOfTime(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.expiredRows(2500)
	b.exec("update idempotency_keys set purge_after = case when id::int <= 1200 then '-infinity' else '4000-01-01 BC' end::timestamptz")
	n, err := b.store.Purge(t.Context())
	if n != 2500 || b.rows() != 0 || err != nil {
		t.Errorf("purged %d, %v; %d rows are left", n, err, b.rows())
	}
}

// emptied waits until no row is left.
func (b *bundle) emptied() {
	b.Helper()
	for start := time.Now(); b.rows() > 0; time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 30*time.Second {
			b.Fatalf("%d rows are left", b.rows())
		}
	}
}

// purging runs PurgeEvery until stop is called, which returns its error.
func (b *bundle) purging(store *idempotency.Store) (stop func() error) {
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- store.PurgeEvery(ctx, 10*time.Millisecond) }()
	return func() error { cancel(); return <-done }
}

func TestPurgeEveryPurgesAgainAndAgainUntilItsContextEnds(t *testing.T) {
	t.Parallel()
	var deleted atomic.Int64
	b := setup(t, idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) { deleted.Add(e.Deleted) }})
	stop := b.purging(b.store)
	for range 3 {
		b.expiredRows(1500)
		b.emptied()
	}
	// The rows are gone a moment before the purge is told so.
	for start := time.Now(); deleted.Load() < 4500 && time.Since(start) < 30*time.Second; {
		time.Sleep(5 * time.Millisecond)
	}
	b.wantErr(stop(), context.Canceled)
	if deleted.Load() != 4500 {
		t.Errorf("%d were reported", deleted.Load())
	}
}

func TestOnePurgerOfAFleetDeletesWhileTheOthersStandBy(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var standingBy, worked atomic.Int64
	store := b.storeOn(b.pool, idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) {
		switch {
		case e.Outcome == "standing_by" && e.Err == nil && e.Deleted == 0:
			standingBy.Add(1)
		case e.Outcome == "done":
			worked.Add(1)
		case e.Outcome != "failed": // by its context, at the end
			t.Errorf("event %+v", e)
		}
	}})
	working := b.begin(pgx.TxOptions{})
	if _, err := working.Exec(t.Context(), "select pg_advisory_xact_lock('idempotency_keys'::regclass::oid::integer, 0)"); err != nil {
		t.Fatal(err)
	}
	b.expiredRows(100)
	stop := b.purging(store)
	b.eventually("it has stood by", func() bool { return standingBy.Load() >= 3 })
	if n := b.rows(); n != 100 || worked.Load() != 0 {
		t.Errorf("%d rows left, %d rounds are told as done: one that should stand by has worked", n, worked.Load())
	}
	if err := working.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.emptied()
	b.eventually("it has told of its work", func() bool { return worked.Load() > 0 })
	b.wantErr(stop(), context.Canceled)
}

// One that has worked, and then meets another, has done something.
func TestPurgeThatLosesItsTurnHasDoneWhatItHasDeleted(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.expiredRows(3000)
	other := b.begin(pgx.TxOptions{})
	events := make(chan idempotency.Event, 100)
	store, proxy := b.through(idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) { events <- e }})
	deleted, turn := answered("DELETE 1000", 1), make(chan struct{})
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if deleted(m) { // the turn is free with the end of this transaction: the other waits for it
			go func() {
				defer close(turn)
				if _, err := other.Exec(context.Background(), "select pg_advisory_xact_lock('idempotency_keys'::regclass::oid::integer, 0)"); err != nil {
					t.Error(err)
				}
			}()
			b.eventually("the other waits", func() bool {
				return query[bool](b, "select exists (select from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database()))")
			})
		}
		return pgproxy.Pass
	})
	stop := b.purging(store)
	receive(b, turn)
	if e := <-events; e.Outcome != "done" || e.Deleted != 1000 || e.Err != nil {
		t.Errorf("event %+v", e)
	}
	if e := <-events; e.Outcome != "standing_by" || e.Deleted != 0 {
		t.Errorf("event %+v", e)
	}
	if err := other.Rollback(t.Context()); err != nil {
		t.Error(err)
	}
	b.wantErr(stop(), context.Canceled)
}

func TestFleetOfPurgersIsNoFasterThanOne(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.expiredRows(20_000) // 20 batches, with 100 ms between them
	start := time.Now()
	for range 4 {
		stop := b.purging(b.store)
		defer func() { b.wantErr(stop(), context.Canceled) }()
		time.Sleep(30 * time.Millisecond) // into the pause of the others
	}
	b.emptied()
	if took := time.Since(start); took < 1200*time.Millisecond {
		t.Errorf("20,000 records took %v: more than one purger was at work", took)
	}
}

// The turn may just have been another's, who has not paused yet.
func TestPurgerPausesInItsTurnBeforeItsFirstBatch(t *testing.T) {
	onOneServer(t, "the lock of the turn is another one")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.expiredRows(1)
	store, proxy := b.through(idempotency.Config{})
	turns, deletes := bound("::integer, 0)"), bound("delete from idempotency_keys")
	var turn time.Time
	paused := make(chan time.Duration, 1)
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		switch {
		case turns(m) && turn.IsZero():
			turn = time.Now()
		case deletes(m) && !turn.IsZero():
			select {
			case paused <- time.Since(turn):
			default:
			}
		}
		return pgproxy.Pass
	})
	stop := b.purging(store)
	if got := receive(b, paused); got < 100*time.Millisecond {
		t.Errorf("it has deleted %v after it took the turn", got)
	}
	proxy.SetRule(nil)
	b.wantErr(stop(), context.Canceled)
}

func TestPurgerMayPauseForLongerThanMaxIdle(t *testing.T) {
	t.Parallel()
	var failures atomic.Int64
	b := setup(t, idempotency.Config{MaxIdle: 60 * time.Millisecond, Observe: func(_ context.Context, e idempotency.Event) {
		if e.Outcome == "failed" && !errors.Is(e.Err, context.Canceled) {
			failures.Add(1)
		}
	}})
	b.expiredRows(10_000) // 9 pauses of 100 ms
	stop := b.purging(b.store)
	b.emptied()
	b.wantErr(stop(), context.Canceled)
	if n := failures.Load(); n > 4 { // a busy machine can be as slow as MaxIdle by itself
		t.Errorf("%d of 9 pauses failed", n)
	}
}

func TestPurgeEveryGoesOnAfterLostConnections(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var failures atomic.Int64
	store, proxy := b.through(idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) {
		if e.Outcome == "failed" {
			failures.Add(1)
		}
	}})
	proxy.SetRule(func(pgproxy.Message) pgproxy.Verdict { return pgproxy.Drop })
	b.expiredRows(100)
	stop := b.purging(store)
	for failures.Load() < 3 {
		time.Sleep(time.Millisecond)
	}
	proxy.SetRule(nil)
	b.emptied()
	b.wantErr(stop(), context.Canceled)
}

func TestPurgeEveryReturnsWhatTryingAgainCannotMend(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	store := b.storeOn(b.pool, idempotency.Config{Schema: "nowhere"})
	if err := store.PurgeEvery(t.Context(), time.Hour); err == nil || !strings.Contains(err.Error(), "migrate up") {
		t.Errorf("got %v", err)
	}
	if err := store.PurgeEvery(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "interval") {
		t.Errorf("got %v", err)
	}
}

func TestPurgePassesOverAKeyThatIsBeingTakenOver(t *testing.T) {
	onOneServer(t, "a purge of all nodes waits for a row that is locked")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	b.exec("update idempotency_keys set expires_at = now(), purge_after = now()")
	k := newBlocker()
	call := b.start(t.Context(), b.store, k.charge(b.key.ID, 2))
	receive(b, k.begun)
	if n, err := b.store.Purge(t.Context()); n != 0 || err != nil {
		t.Errorf("Purge = %d, %v", n, err)
	}
	k.goOn <- nil
	b.wantOutcome(receive(b, call), outcome{2, false, nil})
	if n, err := b.store.Purge(t.Context()); n != 0 || err != nil {
		t.Errorf("Purge = %d, %v", n, err)
	}
	b.replays(2)
}

func TestPurgesBesideCallsDeleteNothingLive(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	var purges, calls sync.WaitGroup
	for range 2 {
		purges.Go(func() {
			for ctx.Err() == nil {
				if _, err := b.store.Purge(ctx); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 4 {
		calls.Go(func() {
			for j := range 50 {
				other := *b
				other.key.ID = fmt.Sprint("key-", i)
				b.exec("update idempotency_keys set expires_at = now(), purge_after = now() where id = $1", other.key.ID)
				if got, _, err := other.do(charge(other.key.ID, j)); got != j || err != nil {
					t.Errorf("Do = %v, %v; want %v", got, err, j)
				}
				other.replaysQuietly(j)
			}
		})
	}
	calls.Wait()
	cancel()
	purges.Wait()
}

// Of many expired rows the purgers delete each once, and none that a call has
// taken over since it was selected.
func TestThreePurgersOnManyRowsBesideTakeOvers(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	rows := long(20_000, 1_000_000)
	b.exec(`insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after)
		select 'key-' || i, $1, '0', t, t, t from generate_series(1, $2) i, lateral (select now() - random() * interval '1 hour') x (t)`,
		b.key.Scope, rows)
	ctx, cancel := context.WithCancel(t.Context())
	var purges, calls sync.WaitGroup
	var purged atomic.Int64
	for range 3 {
		purges.Go(func() {
			n, err := b.store.Purge(t.Context())
			if err != nil {
				t.Error(err)
			}
			purged.Add(n)
		})
	}
	var called sync.Map
	for range 4 {
		calls.Go(func() {
			for ctx.Err() == nil {
				other := *b
				other.key.ID = fmt.Sprint("key-", 1+rand.IntN(rows))
				if got, _, err := other.do(charge(other.key.ID, 1)); got != 1 || err != nil {
					t.Errorf("Do = %v, %v", got, err)
				}
				called.Store(other.key.ID, true)
				other.replaysQuietly(1)
			}
		})
	}
	purges.Wait()
	cancel()
	calls.Wait()
	keys := 0
	called.Range(func(any, any) bool { keys++; return true })
	t.Logf("%d of %d rows purged, %d keys called", purged.Load(), rows, keys)
	if n := query[int](b, "select count(*) from charges"); n != keys {
		t.Errorf("%d charges of %d keys", n, keys)
	}
	if _, err := b.store.Purge(t.Context()); err != nil { // what a caller had locked
		t.Error(err)
	}
	if n := query[int](b, "select count(*) from idempotency_keys"); n != keys {
		t.Errorf("%d records are left of %d keys called", n, keys)
	}
}

type tracedKey struct{}

// traced is a Config whose origin is the one in the operation's context, and
// which keeps the last event.
func traced(last *idempotency.Event, seen *[]any) idempotency.Config {
	return idempotency.Config{
		Trace: func(ctx context.Context, operation string) (context.Context, string) {
			origin, _ := ctx.Value(tracedKey{}).(string)
			return context.WithValue(ctx, tracedKey{}, operation+" of "+origin), origin
		},
		Observe: func(ctx context.Context, e idempotency.Event) {
			*last = e
			*seen = append(*seen, ctx.Value(tracedKey{}))
		},
	}
}

func TestReplayNamesTheOriginOfTheCallThatExecuted(t *testing.T) {
	t.Parallel()
	var last idempotency.Event
	var seen []any
	b := setup(t, traced(&last, &seen))
	call := func(origin string) (insideFn any) {
		ctx := context.WithValue(t.Context(), tracedKey{}, origin)
		_, _, err := idempotency.Do(ctx, b.store, b.key, func(ctx context.Context, tx pgx.Tx) (int, error) {
			insideFn = ctx.Value(tracedKey{})
			return charge(b.key.ID, 1)(ctx, tx)
		})
		if err != nil {
			t.Fatal(err)
		}
		return insideFn
	}
	if got := call("first"); got != "Do of first" {
		t.Errorf("the function's context is of %v", got)
	}
	if last.Outcome != "executed" || last.Origin != "first" {
		t.Errorf("executed: %+v", last)
	}
	call("second")
	if last.Outcome != "replayed" || last.Origin != "first" {
		t.Errorf("replayed: %+v", last)
	}
	if rec, err := b.store.Get(t.Context(), b.key); rec.Origin != "first" || err != nil {
		t.Errorf("Get = %+v, %v", rec, err)
	}
	for rec := range b.store.All(t.Context(), b.key.Scope) {
		if rec.Origin != "first" {
			t.Errorf("All: %+v", rec)
		}
	}
	if want := []any{"Do of first", "Do of second", "Get of ", "All of "}; len(seen) != len(want) || seen[1] != want[1] || seen[3] != want[3] {
		t.Errorf("Observe got the contexts %v", seen)
	}
}

func TestWaiterIsGivenTheOriginOfTheCallItWaitedFor(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	origins := make(chan string, 2)
	b.store = b.storeOn(b.pool, idempotency.Config{
		Trace: func(ctx context.Context, _ string) (context.Context, string) {
			origin, _ := ctx.Value(tracedKey{}).(string)
			return ctx, origin
		},
		Observe: func(_ context.Context, e idempotency.Event) { origins <- e.Origin },
	})
	k := newBlocker()
	first := b.start(context.WithValue(t.Context(), tracedKey{}, "first"), b.store, k.charge(b.key.ID, 1))
	receive(b, k.begun)
	second := b.start(context.WithValue(t.Context(), tracedKey{}, "second"), b.store, k.charge(b.key.ID, 2))
	b.stays(second)
	k.goOn <- nil
	b.wantOutcome(receive(b, first), outcome{1, false, nil})
	b.wantOutcome(receive(b, second), outcome{1, true, nil})
	for range 2 {
		if got := receive(b, origins); got != "first" {
			t.Errorf("origin %q", got)
		}
	}
}

func TestStepsAndCallsThatRunAreOperationsWithinTheirProcedure(t *testing.T) {
	t.Parallel()
	var events []string
	b := setup(t, idempotency.Config{
		ObserveKeys: true,
		Trace: func(ctx context.Context, operation string) (context.Context, string) {
			outer, _ := ctx.Value(tracedKey{}).(string)
			return context.WithValue(ctx, tracedKey{}, operation+" of "+outer), operation
		},
		Observe: func(ctx context.Context, e idempotency.Event) {
			events = append(events, fmt.Sprintf("%v, %s: %s %v", ctx.Value(tracedKey{}), e.Name, e.Outcome, e.Err))
			if e.Key.ID != "key-1" || e.Origin == "" || e.Duration <= 0 {
				t.Errorf("%+v", e)
			}
		},
	})
	var inside any
	broken := true
	refuses := func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "b", func(ctx context.Context, _ string) (int, error) {
			if inside = ctx.Value(tracedKey{}); broken {
				return 0, fmt.Errorf("%w: %w", errNoAnswer, idempotency.ErrInProgress) // of a nested one
			}
			return 1, nil
		})
		return err
	}
	panics := func(ctx context.Context, op *idempotency.Op) error {
		defer func() { recover() }()
		_, err := idempotency.Step(ctx, op, "c", func(ctx context.Context, _ pgx.Tx) (int, error) {
			if inside = ctx.Value(tracedKey{}); broken {
				panic("boom")
			}
			return 1, nil
		})
		return err
	}
	seen := func(want ...string) {
		t.Helper()
		if !slices.Equal(events, want) {
			t.Errorf("%s\nwant\n%s", strings.Join(events, "\n"), strings.Join(want, "\n"))
		}
		events = nil
	}
	noAnswer := fmt.Errorf("%w: %w", errNoAnswer, idempotency.ErrInProgress).Error()
	const ended = "idempotency: the function panicked or ended its goroutine"
	b.wantErr(b.proceed(ok("a"), refuses), errNoAnswer)
	seen("Step of Procedure of , a: executed <nil>", "Call of Procedure of , b: failed "+noAnswer, "Procedure of , p: failed "+noAnswer)
	if inside != "Call of Procedure of " {
		t.Errorf("the context of a call's function is of %v", inside)
	}
	broken = false
	b.wantErr(b.proceed(ok("a"), refuses, fails("x")), errNoAnswer)
	seen("Call of Procedure of , b: executed <nil>", "Call of Procedure of , x: failed no answer", "Procedure of , p: failed no answer")
	b.wantErr(b.store.Discard(t.Context(), b.key), nil)
	events, broken = nil, true
	if err := b.proceed(panics); err == nil || err.Error() != ended {
		t.Error(err)
	}
	seen("Step of Procedure of , c: failed "+ended, "Procedure of , p: failed "+ended)
	if inside != "Step of Procedure of " {
		t.Errorf("the context of a step's function is of %v", inside)
	}
	broken = false
	b.wantErr(b.proceed(panics), nil)
	seen("Step of Procedure of , c: executed <nil>", "Procedure of , p: executed <nil>")
	b.wantErr(b.proceed(panics), nil)
	seen("Procedure of , p: replayed <nil>")
}

func TestOriginIsKeptByDoTx(t *testing.T) {
	t.Parallel()
	var last idempotency.Event
	var seen []any
	b := setup(t, traced(&last, &seen))
	for _, origin := range []string{"first", "second"} {
		err := pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error {
			_, _, err := idempotency.DoTx(context.WithValue(t.Context(), tracedKey{}, origin), b.store, tx, b.key, charge(b.key.ID, 1))
			return err
		})
		if err != nil || last.Origin != "first" {
			t.Errorf("%v, %+v", err, last)
		}
	}
}

func TestOriginThatCannotBeStoredIsLeftOutAndFailsNothing(t *testing.T) {
	t.Parallel()
	for _, origin := range []string{"", "a\x00b", "\xff", strings.Repeat("x", 256)} {
		var last idempotency.Event
		var seen []any
		b := setup(t, traced(&last, &seen))
		ctx := context.WithValue(t.Context(), tracedKey{}, origin)
		_, _, err := idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 1))
		if err != nil || last.Origin != "" {
			t.Errorf("%q: %v, %+v", origin, err, last)
		}
		if n := query[int](b, "select count(*) from idempotency_keys where origin is null"); n != 1 {
			t.Errorf("%q was stored", origin)
		}
	}
}

func TestEventsHoldNoKeyUnlessAsked(t *testing.T) {
	t.Parallel()
	for _, asked := range []bool{false, true} {
		var events []idempotency.Event
		b := setup(t, idempotency.Config{
			ObserveKeys: asked,
			Observe:     func(_ context.Context, e idempotency.Event) { events = append(events, e) },
		})
		b.executes(1)
		b.do(func(context.Context, pgx.Tx) (int, error) { return 0, errors.New("no") })
		b.store.Delete(t.Context(), b.key)
		for _, e := range events {
			if (e.Key == b.key) != asked || !asked && e.Key != (idempotency.Key{}) {
				t.Errorf("asked %v: %+v", asked, e)
			}
		}
	}
}

func TestFunctionThatDoesNotFindARecordHasFailed(t *testing.T) {
	t.Parallel()
	var last idempotency.Event
	var seen []any
	b := setup(t, traced(&last, &seen))
	_, _, err := idempotency.Do(t.Context(), b.store, b.key, func(ctx context.Context, _ pgx.Tx) (int, error) {
		_, err := b.store.Get(ctx, idempotency.Key{Scope: "other", ID: "other"})
		return 0, err
	})
	if b.wantErr(err, idempotency.ErrNotFound); last.Outcome != "failed" {
		t.Errorf("%+v", last)
	}
}

// What another call found is no finding of this one: its key is neither held nor
// used again, and its outcome is known.
func TestErrorOfAnotherCallIsAFailureOfTheFunction(t *testing.T) {
	t.Parallel()
	var last idempotency.Event
	var seen []any
	b := setup(t, traced(&last, &seen))
	for _, other := range []error{idempotency.ErrInProgress, idempotency.ErrKeyReused, idempotency.ErrOutcomeUnknown, idempotency.ErrNotFound} {
		refuse := func(context.Context, pgx.Tx) (int, error) { return 0, fmt.Errorf("another call: %w", other) }
		_, _, err := b.do(refuse)
		if b.wantErr(err, other); last.Operation != "Do" || last.Outcome != "failed" {
			t.Errorf("%v: %+v", other, last)
		}
		tx := b.begin(pgx.TxOptions{})
		got := b.doTx(tx, refuse)
		if b.wantErr(got.err, other); last.Operation != "DoTx" || last.Outcome != "failed" {
			t.Errorf("%v: %+v", other, last)
		}
		tx.Rollback(t.Context())
	}
}

// A picky value can be written, and is read with an error that another call could have.
type picky int

func (*picky) UnmarshalJSON([]byte) error { return idempotency.ErrInProgress }

func TestReplayThatCannotBeReadIsAFailureWhateverItsErrorSays(t *testing.T) {
	t.Parallel()
	var last idempotency.Event
	var seen []any
	b := setup(t, traced(&last, &seen))
	b.executes(1)
	_, replayed, err := idempotency.Do(t.Context(), b.store, b.key, func(context.Context, pgx.Tx) (picky, error) { return 1, nil })
	if !errors.Is(err, idempotency.ErrUndecodable) || replayed || last.Outcome != "failed" {
		t.Errorf("%v, %v, %+v", replayed, err, last)
	}
}

func TestConfigOfAStoreHasItsDefaults(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{MaxResult: 7})
	if c := b.store.Config(); c.MaxResult != 7 || c.Retention.Hours() != 24 || c.Wait.Seconds() != 10 || c.MaxIdle.Minutes() != 1 {
		t.Errorf("got %+v", c)
	}
}

func TestEventsCostNoAllocationUnlessAskedFor(t *testing.T) {
	for _, asked := range []bool{false, true} {
		var kept []*idempotency.Event
		b := setup(t, idempotency.Config{})
		if asked {
			b.store = b.storeOn(b.pool, idempotency.Config{
				Observe: func(_ context.Context, e idempotency.Event) { kept = append(kept[:0], &e) },
			})
		}
		allocs := testing.AllocsPerRun(100, func() { b.store.Observed(t.Context()) })
		if (allocs > 0) != asked {
			t.Errorf("asked %v: %v allocations", asked, allocs)
		}
	}
}
