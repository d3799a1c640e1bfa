package idempotency_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// unknown makes the Store forget the key, so that the next call has to claim it.
func (b *bundle) unknown() { b.store.Forget(b.key) }

func (b *bundle) wantKnown(when string, want bool) {
	b.Helper()
	if got := b.store.Knows(b.key); got != want {
		b.Errorf("%s: the key is known: %v, want %v", when, got, want)
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
	<-k.begun
	_, _, err = b.do(charge(b.key.ID, 2))
	b.wantErr(err, idempotency.ErrInProgress)
	b.wantKnown("while a call elsewhere runs", false)
	other.wantKnown("before its COMMIT", false)
	k.goOn <- nil
	b.wantOutcome(<-running, outcome{1, false, nil})
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
			b.wantOutcome(<-b.start(t.Context(), b.store, charge(b.key.ID, 2)), want)
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
	<-reached
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
	got := <-b.start(ctx, b.store, charge(b.key.ID, 2))
	b.wantErr(got.err, context.DeadlineExceeded)
	b.commit(tx)
	b.replays(1)
}
