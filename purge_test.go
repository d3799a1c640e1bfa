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
	"github.com/pgidem/idempotency/internal/pgproxy"
)

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
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for ctx.Err() == nil && b.rows() > 4000 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	n, err := b.store.Purge(ctx)
	b.wantErr(err, context.Canceled)
	if left := b.rows(); n == 0 || n == 5000 || left != 5000-int(n) {
		t.Errorf("%d counted, %d of 5000 left", n, left)
	}
}

// expiredRows makes records that have expired.
func (b *bundle) expiredRows(n int) {
	b.Helper()
	b.exec(`insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after)
		select i::text, 'scope', '1', now(), now(), now() - i * interval '1 microsecond' from generate_series(1, $1) i`, n)
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
func TestPurgeDeletesMoreThanABatchOfRowsOfTheBeginningOfTime(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.expiredRows(2500)
	b.exec("update idempotency_keys set purge_after = case when id like '%7' then '4000-01-01 BC' else '-infinity' end::timestamptz")
	n, err := b.store.Purge(t.Context())
	if n != 2500 || b.rows() != 0 || err != nil {
		t.Errorf("purged %d, %v; %d rows are left", n, err, b.rows())
	}
}

func (b *bundle) rows() int {
	b.Helper()
	return query[int](b, "select count(*) from idempotency_keys")
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
	<-turn
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
	<-k.begun
	if n, err := b.store.Purge(t.Context()); n != 0 || err != nil {
		t.Errorf("Purge = %d, %v", n, err)
	}
	k.goOn <- nil
	b.wantOutcome(<-call, outcome{2, false, nil})
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
