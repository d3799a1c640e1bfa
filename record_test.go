package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
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
	<-k.begun
	_, err = b.store.Get(t.Context(), b.key)
	b.wantErr(err, idempotency.ErrNotFound)
	k.goOn <- nil
	<-first

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

func TestDeleteIsErrInProgressWhileACallHoldsTheKey(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for _, name := range []string{"a new key", "an expired one"} {
		k := newBlocker()
		call := b.start(t.Context(), b.store, k.charge(b.key.ID, 1))
		<-k.begun
		if err := b.store.Delete(t.Context(), b.key); !errors.Is(err, idempotency.ErrInProgress) {
			t.Errorf("%s: %v", name, err)
		}
		k.goOn <- nil
		b.wantOutcome(<-call, outcome{1, false, nil})
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

func TestPurgePassesOverAKeyThatIsBeingTakenOver(t *testing.T) {
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
