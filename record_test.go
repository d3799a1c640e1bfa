package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
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
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if err := b.store.Delete(ctx, b.key); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s, with a deadline: %v", name, err)
		}
		cancel()
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
	<-frozen
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
	<-ended
}
