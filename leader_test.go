package idempotency_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
)

// The tests here are about what the call that leads for a key makes known to the
// calls that wait for it in the same process, and when.

// joined waits until n calls wait at the gate.
func (b *bundle) joined(n int) {
	b.Helper()
	b.eventually("the calls wait at the gate", func() bool { return b.store.Waiting(b.key) == n })
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

func (b *bundle) want(calls []<-chan outcome, want outcome) {
	b.Helper()
	for _, call := range calls {
		b.wantOutcome(<-call, want)
	}
}

// soon is what a call returns that has no reason to wait.
func (b *bundle) soon(call <-chan outcome) outcome {
	b.Helper()
	select {
	case got := <-call:
		return got
	case <-time.After(20 * time.Second):
		b.Fatal("the call waits")
		return outcome{}
	}
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
	<-k.begun
	waiters := b.follow(10) // while the function runs
	asked := claims(proxy, func(pgproxy.Message) bool { return true })
	k.goOn <- nil
	b.wantOutcome(<-first, outcome{1, false, nil})
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
	<-k.begun
	leader := b.start(t.Context(), b.store, charge(b.key.ID, 2))
	waiters := append(b.follow(10), leader)
	b.asksAgain(proxy)
	k.goOn <- nil
	b.wantOutcome(<-first, outcome{1, false, nil})
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
	<-asks
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
	d.wantOutcome(<-first, outcome{1, true, nil})
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
	d.wantOutcome(d.soon(duplicate), outcome{err: idempotency.ErrInProgress})
	release()
	d.wantOutcome(<-first, outcome{1, true, nil})
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
			<-asks
			wrong := *d.bundle
			wrong.key.Fingerprint = idempotency.FingerprintOf([]byte("other"))
			early := wrong.start(t.Context(), d.store, charge(d.key.ID, 9))
			d.stays(early)
			letGo()
			<-k.begun
			d.wantOutcome(d.soon(early), outcome{err: idempotency.ErrKeyReused})
			late := wrong.start(t.Context(), d.store, charge(d.key.ID, 9))
			d.wantOutcome(d.soon(late), outcome{err: idempotency.ErrKeyReused})
			k.goOn <- nil
			d.wantOutcome(<-first, outcome{2, false, nil})
			d.effects(1)
		})
	}
}

// A replay that is on its way out holds the advisory lock, which does not prove
// that a call is in flight. Those that do not want to wait ask again.
func TestNegativeWaitOutlastsAReplayThatHoldsTheLockOfAnExpiredKey(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	b.exec("update idempotency_keys set expires_at = now()")
	replay := b.begin(pgx.TxOptions{})
	b.locks(replay)
	store, proxy := b.through(idempotency.Config{Wait: -1})
	b.store = store
	b.onSecondClaim(proxy, func() {
		if err := replay.Rollback(context.Background()); err != nil {
			t.Error(err)
		}
	})
	b.executes(2)
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

// Once a call has returned a result, no call is in progress for the next one.
func TestNegativeWaitRightAfterAReplayIsAReplay(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	k := newBlocker()
	first := b.start(t.Context(), b.store, k.charge(b.key.ID, 1))
	<-k.begun
	store, proxy := b.through(idempotency.Config{Wait: -1})
	b.store = store
	goOn := make(chan struct{})
	b.onSecondClaim(proxy, func() {
		k.goOn <- nil
		b.wantOutcome(<-first, outcome{1, false, nil})
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
	<-k.begun
	store, proxy := b.through(idempotency.Config{Wait: -1})
	b.store = store
	asks, goOn := make(chan struct{}), make(chan struct{})
	b.onSecondClaim(proxy, func() { close(asks); <-goOn })
	second := b.start(t.Context(), b.store, charge(b.key.ID, 2))
	<-asks
	got := b.start(t.Context(), b.store, charge(b.key.ID, 3))
	select {
	case got := <-got:
		b.wantOutcome(got, outcome{err: idempotency.ErrInProgress})
	case <-time.After(20 * time.Second):
		t.Error("the call waits")
	}
	close(goOn)
	b.wantOutcome(<-second, outcome{err: idempotency.ErrInProgress})
	k.goOn <- nil
	b.wantOutcome(<-first, outcome{1, false, nil})
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
