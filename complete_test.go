package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
	"github.com/pgidem/idempotency/internal/remedy"
)

// in is j in a subtest.
func (j *journey) in(t testing.TB) *journey {
	b := *j.bundle
	b.TB = t
	return &journey{&b, j.p}
}

// next calls again until there is an answer.
func (j *journey) next(id string) receipt {
	j.Helper()
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		got, _, err := j.ride(id)
		if err == nil {
			return got
		}
		if time.Since(start) > 30*time.Second {
			j.Fatal("no answer: ", err)
		}
	}
}

func TestCompleteEndsWhatAClientHasAbandoned(t *testing.T) {
	t.Parallel()
	j := setupRides(t, idempotency.Config{})
	j.at(seam{stage: "charged"}, "a", syscall.SIGKILL, pgproxy.Drop, 0)
	j.eventually("the server has noticed", func() bool {
		return query[int](j.bundle, "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'") == 0
	})
	all := j.unfinished()
	if len(all) != 1 {
		t.Fatal(all)
	}
	u := all[0]
	if u.Key != rideKey("a") || u.Procedure != "take ride" || u.Begun != "call charge" || fmt.Sprint(u.Done) != "[step create]" ||
		!strings.Contains(string(u.Input), `"Rider":"a"`) || u.Attempts != 0 || u.Error != "" ||
		time.Since(u.StartedAt) > time.Minute || u.ProgressedAt.Before(u.StartedAt) || time.Since(u.DueAt) > time.Minute {
		t.Errorf("%+v", u)
	}
	if n, err := j.store.Complete(t.Context(), time.Hour, takeRide); n != 0 || err != nil {
		t.Error(n, err)
	}
	j.completes(0, procedureOf()) // of another name
	j.completes(1, procedureOf(), takeRide)
	j.once(1)
	if _, replayed, err := j.ride("a"); !replayed || err != nil {
		t.Error(replayed, err)
	}
	j.completes(0, takeRide)
	if _, err := j.store.Complete(t.Context(), 0, takeRide, takeRide); err == nil || !strings.Contains(err.Error(), `two procedures have the name "take ride"`) {
		t.Error(err)
	}
}

func TestOperationThatNeverSucceedsIsInNobodysWay(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	broken, calls := true, map[string]int{}
	var order []string
	p := idempotency.Procedure[string, int]{Name: "p", Run: func(ctx context.Context, op *idempotency.Op, in string) (int, error) {
		return idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) {
			calls[in]++
			order = append(order, in)
			if broken || in == "never" {
				return 0, fmt.Errorf("no answer to %s: \xff\x00%s", in, strings.Repeat("é", 1000))
			}
			return 1, nil
		})
	}}
	for _, id := range []string{"never", "later", "last"} {
		b.key.ID = id
		if _, _, err := p.Do(t.Context(), b.store, b.key, id); err == nil {
			t.Fatal("no error")
		}
	}
	broken, order = false, nil
	began := time.Now()
	n, err := b.store.Complete(t.Context(), 0, p)
	if n != 2 || err == nil || !strings.Contains(err.Error(), `completing procedure "p": no answer to never`) {
		t.Error(n, err)
	}
	if fmt.Sprint(order) != "[never later last]" {
		t.Errorf("tried in the order %v", order)
	}
	all := b.unfinished()
	due := func(want time.Duration) {
		t.Helper()
		if at := b.unfinished()[0].DueAt; at.Before(began.Add(want-time.Second)) || at.After(time.Now().Add(want+time.Second)) {
			t.Errorf("due %v after the attempt began, want %v", at.Sub(began), want)
		}
	}
	due(time.Second)
	b.exec("update idempotency_operations set due_at = now() + interval '1 minute'")
	b.completes(0, p) // it is not due
	if len(all) != 1 || all[0].Attempts != 1 || !strings.HasPrefix(all[0].Error, "no answer to never: é") || len(all[0].Error) > 1000 || calls["never"] != 2 {
		t.Fatalf("%d calls, %+v", calls["never"], all)
	}
	for attempts, want := range map[int]time.Duration{3: 8 * time.Second, 11: 2048 * time.Second, 12: time.Hour, 1_000_000: time.Hour} {
		b.exec("update idempotency_operations set due_at = now(), attempts = $1", attempts)
		began = time.Now()
		if _, err := b.store.Complete(t.Context(), 0, p); err == nil {
			t.Error("no error")
		}
		due(want)
	}
	// The oldest attempt comes first.
	b.key.ID = "new"
	broken = true
	_, _, _ = p.Do(t.Context(), b.store, b.key, "new")
	broken, order = false, nil
	b.exec("update idempotency_operations set due_at = now() - interval '1 minute' where id = 'new'")
	b.exec("update idempotency_operations set due_at = now() where id = 'never'")
	_, _ = b.store.Complete(t.Context(), 0, p)
	if fmt.Sprint(order) != "[new never]" {
		t.Errorf("tried in the order %v", order)
	}
}

func TestPendingReadsPageByPage(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec(`insert into idempotency_operations (id, scope, number, started_at, progressed_at, due_at, name, input, labels, results)
		select 'id ' || i % 50, 'scope ' || i, gen_random_uuid(), now(), now() - interval '1 hour', now() - i / 120 * interval '1 second', 'p', '1', '{}', '{}' from generate_series(0, 349) i`)
	seen := map[idempotency.Key]bool{}
	last := time.Time{}
	for _, u := range b.unfinished() {
		if seen[u.Key] || u.DueAt.Before(last) {
			t.Errorf("%+v after %v", u, last)
		}
		seen[u.Key], last = true, u.DueAt
	}
	if len(seen) != 350 {
		t.Errorf("%d operations", len(seen))
	}
	for _, err := range b.store.Pending(t.Context(), 2*time.Hour) {
		t.Error("one that has progressed since: ", err)
	}
	n := 0
	for _, err := range b.store.Pending(t.Context(), 30*time.Minute) { // begun just now, and progressed before
		b.wantErr(err, nil)
		n++
	}
	if n != 350 {
		t.Errorf("%d operations have not progressed for half an hour", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range b.store.Pending(ctx, 0) {
		b.wantErr(err, context.Canceled)
	}
}

func TestTwoCompletersBesideRetriesEndEachOperationOnce(t *testing.T) {
	t.Parallel()
	j := setupRides(t, idempotency.Config{})
	j.p.lose.Store(100)
	const rides = 30
	for i := range rides {
		if _, _, err := j.ride(fmt.Sprint(i)); err == nil {
			t.Fatal("no error")
		}
	}
	j.p.lose.Store(0)
	j.p.delay.Store(int64(5 * time.Millisecond))
	var ended atomic.Int64
	var all sync.WaitGroup
	for range 2 {
		store := j.storeOn(j.anotherPool(), idempotency.Config{})
		all.Go(func() {
			n, err := store.Complete(t.Context(), 0, takeRide)
			if err != nil {
				t.Error(err)
			}
			ended.Add(int64(n))
		})
	}
	for i := range rides {
		all.Go(func() {
			_, replayed, err := j.ride(fmt.Sprint(i))
			if err != nil {
				t.Error(err)
			}
			if !replayed {
				ended.Add(1)
			}
		})
	}
	all.Wait()
	j.once(rides)
	if ended.Load() != rides || j.p.overlaps.Load() > 0 {
		t.Errorf("%d ended, %d overlaps", ended.Load(), j.p.overlaps.Load())
	}
}

func TestOneCompleterOfAFleetIsAtWork(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for i := range 4 {
		b.key.ID = fmt.Sprint(i)
		b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	}
	var inside, most, calls atomic.Int64
	p := procedureOf(ok("a"), func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) {
			most.Store(max(most.Load(), inside.Add(1)))
			time.Sleep(200 * time.Millisecond) // others give up this one, and would take the next
			inside.Add(-1)
			calls.Add(1)
			return 1, nil
		})
		return err
	})
	ctx, cancel := context.WithCancel(t.Context())
	var fleet sync.WaitGroup
	for range 3 {
		store := b.storeOn(b.anotherPool(), idempotency.Config{})
		fleet.Go(func() {
			if err := store.CompleteEvery(ctx, 10*time.Millisecond, 0, p); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	b.eventually("all are completed", func() bool { return calls.Load() == 4 && len(b.unfinished()) == 0 })
	cancel()
	fleet.Wait()
	if most.Load() != 1 || calls.Load() != 4 {
		t.Errorf("%d at a time, %d calls", most.Load(), calls.Load())
	}
	b.exec("drop table idempotency_operations")
	if err := b.store.CompleteEvery(t.Context(), time.Hour, 0, p); err == nil || !strings.Contains(err.Error(), "idempotency_operations") {
		t.Error(err)
	}
	if err := b.store.CompleteEvery(t.Context(), 0, 0, p); err == nil || !strings.Contains(err.Error(), "interval") {
		t.Error(err)
	}
}

func TestCompleteStopsWithItsContextAndCountsNoAttempt(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for i := range 2 {
		b.key.ID = fmt.Sprint(i)
		b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	}
	ctx, cancel := context.WithCancel(t.Context())
	p := procedureOf(ok("a"), func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) { cancel(); return 0, errNoAnswer })
		return err
	})
	_, err := b.store.Complete(ctx, 0, p)
	b.wantErr(err, context.Canceled)
	for _, u := range b.unfinished() {
		if u.Attempts != 0 {
			t.Errorf("%+v", u)
		}
	}
}

func TestCompleteWorksAtOneOperationForAMinute(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	var left time.Duration
	b.completes(1, procedureOf(ok("a"), func(ctx context.Context, op *idempotency.Op) error {
		end, _ := ctx.Deadline()
		left = time.Until(end)
		_, err := idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) { return 1, nil })
		return err
	}))
	if left <= 0 || left > time.Minute {
		t.Errorf("it has %v left", left)
	}
}

// Each result that the attempt brings is there already.
func TestAttemptThatOthersAreAheadOfIsNoFailure(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	overtaken := false
	p := idempotency.Procedure[int, int]{Name: "p", Run: func(ctx context.Context, op *idempotency.Op, in int) (int, error) {
		for i := range 20 {
			if _, err := idempotency.Call(ctx, op, fmt.Sprint(i), func(context.Context, string) (int, error) {
				if !overtaken {
					return 0, errNoAnswer
				}
				b.exec(`update idempotency_operations set results = results || '1'::bytea`)
				return 1, nil
			}); err != nil {
				return 0, err
			}
		}
		return in, nil
	}}
	_, _, err := p.Do(t.Context(), b.store, b.key, 7)
	b.wantErr(err, errNoAnswer)
	overtaken = true
	b.completes(0, p)
	if all := b.unfinished(); len(all) != 1 || all[0].Attempts != 0 || len(all[0].Done) != 10 {
		t.Errorf("%+v", all)
	}
}

func TestCompleteWaitsForNoPlaceAmongTheCallsUnderWay(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{}, pgtest.MaxConns(2)) // one place
	b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	inside, leave, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	release := sync.OnceFunc(func() { close(leave) })
	defer release()
	go func() {
		_, _, err := procedureOf(func(ctx context.Context, op *idempotency.Op) error {
			_, err := idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) { close(inside); <-leave; return 1, nil })
			return err
		}).Do(context.Background(), b.store, idempotency.Key{Scope: "s", ID: "holder"}, 1)
		ended <- err
	}()
	receive(b, inside)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var calls atomic.Int64
	n, err := b.store.Complete(ctx, 0, procedureOf(ok("a"), answers("c", &calls)))
	if n != 0 || err != nil || calls.Load() != 0 {
		t.Errorf("completed %d with %d calls, %v", n, calls.Load(), err)
	}
	for _, u := range b.unfinished() {
		if u.Attempts != 0 {
			t.Errorf("%+v", u)
		}
	}
	release()
	b.wantErr(receive(b, ended), nil)
}

func TestCompleteEveryGoesOnAfterLostConnections(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	store, proxy := b.through(idempotency.Config{})
	var lost, calls atomic.Int64
	proxy.SetRule(func(pgproxy.Message) pgproxy.Verdict { lost.Add(1); return pgproxy.Drop })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- store.CompleteEvery(ctx, time.Millisecond, 0, procedureOf(ok("a"), answers("c", &calls)))
	}()
	b.eventually("connections are lost", func() bool { return lost.Load() >= 10 })
	proxy.SetRule(nil)
	b.eventually("it is completed", func() bool { return len(b.unfinished()) == 0 })
	cancel()
	b.wantErr(receive(b, ended), context.Canceled)
}

// Its turn is a transaction that is silent meanwhile.
func TestCompleterKeepsItsTurnWhileAnOperationTakesLongerThanMaxIdle(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{MaxIdle: time.Second})
	for _, id := range []string{"first", "second"} {
		b.key.ID = id
		b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	}
	var calls atomic.Int64
	slow := func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Step(ctx, op, "d", func(ctx context.Context, tx pgx.Tx) (int, error) {
			_, err := tx.Exec(ctx, "select pg_sleep(1.5)")
			return 1, err
		})
		return err
	}
	purge := b.begin(pgx.TxOptions{}) // the turn of a purge is not in the way of a completer
	if _, err := purge.Exec(t.Context(), "select pg_advisory_xact_lock('idempotency_keys'::regclass::oid::integer, 0)"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- b.store.CompleteEvery(ctx, time.Hour, 0, procedureOf(ok("a"), answers("c", &calls), slow))
	}()
	b.eventually("both are completed", func() bool { return len(b.unfinished()) == 0 })
	cancel()
	b.wantErr(receive(b, ended), context.Canceled)
}

func TestCompleterThatHasLostItsTurnGoesOnWithNoOtherOperation(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{}, pgtest.Direct)
	for _, id := range []string{"first", "second"} {
		b.key.ID = id
		b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	}
	store := b.storeOn(b.anotherPool(pgtest.Direct, named("completer")), idempotency.Config{})
	var calls atomic.Int64
	p := procedureOf(ok("a"), func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) {
			if calls.Add(1) == 1 {
				if n := query[int](b, `select count(pg_terminate_backend(pid, 10000)) from pg_stat_activity where datname = current_database()
					and application_name = 'completer' and query like '%idempotency.turn%'`); n != 1 {
					t.Errorf("%d transactions have the turn", n)
				}
			}
			return 1, nil
		})
		return err
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- store.CompleteEvery(ctx, time.Hour, 0, p) }()
	b.eventually("the first one is completed", func() bool { return len(b.unfinished()) <= 1 })
	b.eventually("its connections are given back", func() bool { return idempotency.PoolOf(store).Stat().AcquiredConns() == 0 })
	cancel()
	b.wantErr(receive(b, ended), context.Canceled)
	if calls.Load() != 1 {
		t.Errorf("%d calls", calls.Load())
	}
}

func TestSettleAndDiscardWaitForNoAttemptThatIsAtWork(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	other := b.storeOn(b.anotherPool(), idempotency.Config{Wait: -1})
	during := func(context.Context, string) (int, error) {
		b.wantErr(b.store.Settle(t.Context(), b.key, "c", 1), idempotency.ErrInProgress)
		b.wantErr(b.store.Discard(t.Context(), b.key), idempotency.ErrInProgress)
		for _, store := range []*idempotency.Store{b.store, other} {
			if n, err := store.Complete(t.Context(), 0, procedureOf()); n != 0 || err != nil {
				t.Error(n, err)
			}
		}
		_, _, err := procedureOf(ok("a"), fails("c")).Do(t.Context(), other, b.key, 7)
		b.wantErr(err, idempotency.ErrInProgress)
		return 1, nil
	}
	b.wantErr(b.proceed(ok("a"), func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "c", during)
		return err
	}), nil)
	b.charged(1)
}

// Complete has read its page, and comes to an operation when it is not one any more.
func TestOperationThatIsGoneIsNotBegunAnew(t *testing.T) {
	t.Parallel()
	for name, goes := range map[string]func(b *bundle, key idempotency.Key){
		"discarded": func(b *bundle, key idempotency.Key) { b.wantErr(b.store.Discard(context.Background(), key), nil) },
		"ended by its client": func(b *bundle, key idempotency.Key) {
			_, _, err := procedureOf(ok("a")).Do(context.Background(), b.store, key, 7)
			b.wantErr(err, idempotency.ErrStepsChanged)
			b.exec("delete from idempotency_operations where id = $1", key.ID)
			b.exec("update idempotency_keys set result = '1', completed_at = now(), expires_at = now() + interval '1 hour' where id = $1", key.ID)
		},
		"deleted by other means": func(b *bundle, key idempotency.Key) { b.exec("delete from idempotency_keys where id = $1", key.ID) },
		"expired, and the rest is left": func(b *bundle, key idempotency.Key) {
			b.exec("update idempotency_keys set result = '1', completed_at = now(), expires_at = now() where id = $1", key.ID)
		},
		"recorded, and the rest is left": func(b *bundle, key idempotency.Key) {
			b.exec("update idempotency_keys set result = '1', completed_at = now(), expires_at = now() + interval '1 hour' where id = $1", key.ID)
		},
		"begun anew by its client": func(b *bundle, key idempotency.Key) {
			b.exec("update idempotency_operations set number = gen_random_uuid() where id = $1", key.ID)
		},
	} {
		b := setup(t, idempotency.Config{})
		for _, id := range []string{"first", "second"} {
			b.key.ID = id
			b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
		}
		calls := 0
		p := procedureOf(ok("a"), func(ctx context.Context, op *idempotency.Op) error {
			_, err := idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) {
				if calls++; calls == 1 {
					goes(b, b.key)
				}
				return 1, nil
			})
			return err
		})
		b.completes(1, p)
		if calls != 1 {
			t.Errorf("%s: %d calls", name, calls)
		}
		b.charged(2)
		if n := query[int](b, "select count(*) from idempotency_operations"); n != 0 && name != "begun anew by its client" {
			t.Errorf("%s: %d are left", name, n)
		}
	}
}

func TestFailureIsNotRecordedWithAnOperationThatWasBegunSince(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.wantErr(b.proceed(fails("c")), errNoAnswer)
	store, proxy := b.through(idempotency.Config{})
	var once sync.Once
	records := bound("set attempts = attempts + 1")
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if records(m) {
			once.Do(func() {
				b.wantErr(b.store.Discard(context.Background(), b.key), nil)
				b.wantErr(b.proceed(fails("c")), errNoAnswer)
			})
		}
		return pgproxy.Pass
	})
	_, err := store.Complete(t.Context(), 0, procedureOf(fails("c")))
	b.wantErr(err, errNoAnswer)
	if u := b.unfinished(); len(u) != 1 || u[0].Attempts != 0 || u[0].Error != "" {
		t.Errorf("%+v", u)
	}
	_, err = b.store.Complete(t.Context(), 0, procedureOf(fails("c")))
	b.wantErr(err, errNoAnswer)
	if u := b.unfinished(); len(u) != 1 || u[0].Attempts != 1 {
		t.Errorf("%+v", u) // else nothing is recorded at all
	}
}

// Somebody has deleted the key, and not the operation.
func TestOperationThatBeginsInThePlaceOfTheRestOfAnotherKeepsNothingOfIt(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	old := procedureOf(ok("a"), ok("b"), fails("c"))
	_, _, err := old.Do(t.Context(), b.store, b.key, 7)
	b.wantErr(err, errNoAnswer)
	_, err = b.store.Complete(t.Context(), 0, old)
	b.wantErr(err, errNoAnswer)
	b.exec("update idempotency_operations set started_at = '2000-01-01', progressed_at = '2000-01-01'")
	b.exec("delete from idempotency_keys")
	b.key.Fingerprint[0]++
	another := procedureOf(fails("d"))
	another.Name = "another"
	_, _, err = another.Do(t.Context(), b.store, b.key, 8)
	b.wantErr(err, errNoAnswer)
	all := b.unfinished()
	if len(all) != 1 {
		t.Fatalf("%+v", all)
	}
	u := all[0]
	if u.Procedure != "another" || string(u.Input) != "8" || len(u.Done) != 0 || u.Begun != "call d" || u.Attempts != 0 || u.Error != "" ||
		u.Key.Fingerprint != b.key.Fingerprint || u.StartedAt.Year() == 2000 || u.ProgressedAt.Year() == 2000 || time.Until(u.DueAt) > 0 {
		t.Errorf("%+v", u)
	}
}

func TestDiscardLeavesARecordAlone(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	b.exec("delete from idempotency_keys")
	b.executes(1)
	b.wantErr(b.store.Discard(t.Context(), b.key), nil)
	b.replays(1)
}

func TestPanicOfAnOperationIsInNobodysWay(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for _, id := range []string{"first", "second"} {
		b.key.ID = id
		b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	}
	calls := 0
	p := procedureOf(ok("a"), func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) {
			if calls++; calls == 1 {
				panic("poison")
			}
			return 1, nil
		})
		return err
	})
	n, err := b.store.Complete(t.Context(), 0, p)
	if n != 1 || err == nil || !strings.Contains(err.Error(), "panic: poison") {
		t.Error(n, err)
	}
	if all := b.unfinished(); len(all) != 1 || all[0].Attempts != 1 || !strings.Contains(all[0].Error, "panic: poison") {
		t.Errorf("%+v", all)
	}
}

func TestFailureOfAnAttemptDoesNotEndTheCompleter(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for _, id := range []string{"first", "second", "third"} {
		b.key.ID = id
		b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	}
	var calls atomic.Int64
	p := procedureOf(ok("a"), func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) {
			switch calls.Add(1) {
			case 1: // an error that says that trying again cannot help, of another table
				_, err := b.pool.Exec(ctx, "select * from idempotency_operations_of_others")
				return 0, remedied(err)
			case 2: // an error of somebody else
				return 0, fmt.Errorf("elsewhere: %w", idempotency.ErrInProgress)
			}
			return 1, nil
		})
		return err
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.store.CompleteEvery(ctx, time.Hour, 0, p) }()
	b.eventually("all are tried", func() bool { return calls.Load() == 3 && len(b.unfinished()) == 2 })
	b.eventually("the failures are recorded", func() bool {
		all := b.unfinished()
		return all[0].Attempts == 1 && all[1].Attempts == 1
	})
	cancel()
	b.wantErr(receive(b, ended), context.Canceled)
}

// remedied is err as an error of a Store on another schema, where no migration has run.
func remedied(err error) error { return remedy.Of(err, "") }

func TestErrorThatTheDatabaseCannotHoldIsRecorded(t *testing.T) {
	t.Parallel()
	b := &bundle{TB: t, pool: pgtest.Encoded(t, "LATIN1", param("client_encoding", "UTF8")), key: idempotency.Key{Scope: "s", ID: "i"}}
	b.exec("create table charges (id bigint generated always as identity, key text not null, amount int not null)")
	b.store = b.storeOn(b.pool, idempotency.Config{})
	p := procedureOf(func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) { return 0, errors.New("日本 says no") })
		return err
	})
	_, _, _ = p.Do(t.Context(), b.store, b.key, 1)
	_, _ = b.store.Complete(t.Context(), 0, p)
	if all := b.unfinished(); len(all) != 1 || all[0].Attempts != 1 || !strings.HasSuffix(all[0].Error, " says no") {
		t.Errorf("%+v", all)
	}
}

func TestCompleterNeedsTwoConnections(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{}, pgtest.MaxConns(1))
	if err := b.store.CompleteEvery(t.Context(), time.Hour, 0, procedureOf()); err == nil || !strings.Contains(err.Error(), "two are needed") {
		t.Error(err)
	}
	if err := b.store.CompleteEvery(t.Context(), 0, 0, procedureOf()); err == nil || !strings.Contains(err.Error(), "interval") {
		t.Error(err)
	}
	b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	var calls atomic.Int64
	b.completes(1, procedureOf(ok("a"), answers("c", &calls)))
}

func TestPauseAfterAFailedAttemptDoublesUpToAnHour(t *testing.T) {
	t.Parallel()
	for attempts, want := range map[int]time.Duration{0: time.Second, 1: 2 * time.Second, 11: 2048 * time.Second, 12: time.Hour, 1000: time.Hour} {
		if got := idempotency.PauseAfter(attempts); got != want {
			t.Errorf("after %d attempts: %v, want %v", attempts, got, want)
		}
	}
}

// A seam is a moment of a ride: the nth statement that is sent or answered, on a new
// connection, or a stage at the provider.
type seam struct {
	n     int64
	stage string
}

func (s seam) String() string { return fmt.Sprint(s.stage, s.n) }

// counts a message that begins or ends a statement.
func counts(m pgproxy.Message) bool {
	return m.FromServer && m.Tag != "" || !m.FromServer && (m.Type == 'B' || m.Type == 'Q')
}

// seams are those of a ride on a new connection: every third, or all in make test-long.
func (j *journey) seams() (all []seam) {
	j.Helper()
	store, proxy := j.through(idempotency.Config{})
	var n atomic.Int64
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if counts(m) {
			n.Add(1)
		}
		return pgproxy.Pass
	})
	if _, _, err := j.rideOn(store, "to count", 20); err != nil {
		j.Fatal(err)
	}
	for i := int64(1); i <= n.Load(); i += long[int64](3, 1) {
		all = append(all, seam{n: i})
	}
	return append(all, seam{stage: "received"}, seam{stage: "charged"})
}

// rule calls hit at the seam, once.
func (s seam) rule(hit func() pgproxy.Verdict) (rule func(pgproxy.Message) pgproxy.Verdict, passed func() bool) {
	var n atomic.Int64
	return func(m pgproxy.Message) pgproxy.Verdict {
		if s.n > 0 && counts(m) && n.Add(1) == s.n {
			return hit()
		}
		return pgproxy.Pass
	}, func() bool { return n.Load() >= s.n }
}

// at starts a worker that takes a ride, and sends it a signal at the seam.
func (j *journey) at(s seam, id string, signal syscall.Signal, verdict pgproxy.Verdict, maxIdle time.Duration) *process {
	j.Helper()
	_, proxy := j.through(idempotency.Config{})
	worker := make(chan *process, 1)
	reached := make(chan struct{})
	hit := func() pgproxy.Verdict {
		(<-worker).signal(signal)
		close(reached)
		return verdict
	}
	rule, _ := s.rule(hit)
	proxy.SetRule(rule)
	if s.stage != "" {
		var once atomic.Bool
		j.p.onStage(id, func(stage string) {
			if stage == s.stage && once.CompareAndSwap(false, true) {
				hit()
			}
		})
	}
	w := j.spawn(job{Port: proxy.Port(), Callers: 1, Provider: j.p.URL, Rides: []string{id}, MaxIdle: maxIdle, Once: true})
	worker <- w
	select {
	case <-reached:
	case <-time.After(30 * time.Second):
		j.Fatal("the worker never reached the seam")
	}
	return w
}

func TestRideKilledAtEverySeamIsTakenOnce(t *testing.T) {
	t.Parallel()
	j := setupRides(t, idempotency.Config{})
	seams := j.seams()
	t.Run("kill", func(t *testing.T) {
		for _, s := range seams {
			t.Run(s.String(), func(t *testing.T) {
				t.Parallel()
				j := j.in(t)
				id := "killed at " + s.String()
				j.at(s, id, syscall.SIGKILL, pgproxy.Drop, 0)
				start := time.Now()
				j.next(id)
				t.Logf("the next call had its answer after %v", time.Since(start).Round(time.Millisecond))
			})
		}
	})
	j.once(len(seams) + 1)
	if j.p.overlaps.Load() > 0 {
		t.Errorf("%d times two were in one call", j.p.overlaps.Load())
	}
}

// What a frozen process has handed to the kernel still arrives.
func TestRideFrozenAtEverySeamIsTakenOnceAndTheThawedOneChangesNothing(t *testing.T) {
	t.Parallel()
	j := setupRides(t, idempotency.Config{})
	seams := j.seams()
	t.Run("freeze", func(t *testing.T) {
		for _, s := range seams {
			t.Run(s.String(), func(t *testing.T) {
				t.Parallel()
				j := j.in(t)
				id := "frozen at " + s.String()
				w := j.at(s, id, syscall.SIGSTOP, pgproxy.Pass, 500*time.Millisecond)
				got := j.next(id)
				w.signal(syscall.SIGCONT)
				if r := w.report(); r.Err == "" && r.Receipt != got {
					t.Errorf("the thawed process got %+v, and the next call %+v", r, got)
				}
			})
		}
	})
	j.once(len(seams) + 1)
}

func TestRideCutOffAtEverySeamIsTakenOnceByTheSameCall(t *testing.T) {
	t.Parallel()
	for name, verdict := range map[string]pgproxy.Verdict{"before": pgproxy.Drop, "behind": pgproxy.PassAndCut} {
		j := setupRides(t, idempotency.Config{})
		seams := j.seams()
		for _, s := range seams {
			if s.stage != "" {
				continue
			}
			id := fmt.Sprint("cut ", name, s)
			store, proxy := j.through(idempotency.Config{})
			rule, passed := s.rule(func() pgproxy.Verdict { return verdict })
			proxy.SetRule(rule)
			first, _, err := j.rideOn(store, id, 20)
			if err != nil {
				t.Errorf("%s: %v", id, err)
			}
			if !passed() {
				t.Errorf("%s: the seam was not passed", id)
			}
			if got := j.next(id); got != first {
				t.Errorf("%s: %+v, then %+v", id, first, got)
			}
		}
		rides := len(seams) - 1
		j.once(rides)
		if int(j.p.requests.Load()) != rides {
			t.Errorf("%s: %d requests for %d rides: a call that had returned was made again", name, j.p.requests.Load(), rides)
		}
	}
}

func TestFiftyDuplicatesOfARideInTwoProcessesTakeItOnce(t *testing.T) {
	t.Parallel()
	j := setupRides(t, idempotency.Config{})
	j.p.delay.Store(int64(50 * time.Millisecond))
	j.p.lose.Store(30)
	var workers []*process
	for range 2 {
		workers = append(workers, j.spawn(job{Callers: 25, Provider: j.p.URL, Rides: []string{"a"}}))
	}
	var first receipt
	for _, w := range workers {
		for range 25 {
			r := w.report()
			if first == (receipt{}) {
				first = r.Receipt
			}
			if r.Err != "" || r.Receipt != first {
				t.Errorf("%+v, others got %+v", r, first)
			}
		}
	}
	j.once(1)
	if j.p.overlaps.Load() > 0 {
		t.Error("two at a time in one call")
	}
}

// Two processes take the same rides, are killed and started again, and lose their
// connections and the provider's answers.
func TestRidesInAStormOfKillsAreTakenOnce(t *testing.T) {
	t.Parallel()
	j := setupRides(t, idempotency.Config{})
	j.p.delay.Store(int64(5 * time.Millisecond))
	j.p.lose.Store(20)
	_, proxy := j.through(idempotency.Config{})
	rides, kills, cuts := 0, 0, 0
	for end := time.Now().Add(long(3*time.Second, 10*time.Minute)); time.Now().Before(end); {
		var batch []string
		for range 6 {
			rides++
			batch = append(batch, fmt.Sprint("storm ", rides))
		}
		var workers [2]*process
		spawn := func(i int) {
			workers[i] = j.spawn(job{Port: proxy.Port(), Callers: 2, Provider: j.p.URL, Rides: batch})
		}
		spawn(0)
		spawn(1)
		for range 6 {
			time.Sleep(time.Duration(rand.N(150)) * time.Millisecond)
			i := rand.N(2)
			if rand.N(3) == 0 {
				proxy.CutAll()
				cuts++
				continue
			}
			_ = workers[i].cmd.Process.Kill()
			_ = workers[i].cmd.Wait()
			kills++
			spawn(i)
		}
		for _, w := range workers {
			for range 2 * len(batch) {
				if r := w.report(); r.Err != "" {
					t.Errorf("%+v", r)
				}
			}
		}
	}
	j.once(rides)
	t.Logf("%d rides, %d kills, %d cuts, %d requests at the provider", rides, kills, cuts, j.p.requests.Load())
}

// holdSecondBegin holds the BEGIN behind the first step up until release is closed, and
// counts all of them.
func holdSecondBegin(proxy *pgproxy.Proxy) (held, release chan struct{}, begins *atomic.Int64) {
	held, release, begins = make(chan struct{}), make(chan struct{}), new(atomic.Int64)
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if bound("begin")(m) && begins.Add(1) == 2 {
			close(held)
			<-release
		}
		return pgproxy.Pass
	})
	return held, release, begins
}

// Between the commit of a step and the transaction of the next one nobody has the lock.
// What was recorded meanwhile must be found out by comparing, not by the lock.
func TestStepThatAnotherAttemptHasMadeMeanwhileIsNotMadeAgain(t *testing.T) {
	t.Parallel()
	for name, part := range map[string]func(calls *atomic.Int64) part{
		"step": func(*atomic.Int64) part { return ok("b") },
		"call": func(calls *atomic.Int64) part { return answers("b", calls) },
	} {
		b := setup(t, idempotency.Config{})
		var calls atomic.Int64
		store, proxy := b.through(idempotency.Config{})
		held, release, _ := holdSecondBegin(proxy)
		first := make(chan error, 1)
		go func() {
			_, _, err := procedureOf(ok("a"), part(&calls), fails("c")).Do(t.Context(), store, b.key, 7)
			first <- err
		}()
		<-held
		if b.pool.Config().ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol {
			close(release) // the two are one message, and nothing can come between them
		} else {
			b.eventually("the first step is committed", func() bool { return len(b.unfinished()) == 1 })
			b.wantErr(b.proceed(ok("a"), part(&calls), fails("c")), errNoAnswer)
			close(release)
		}
		b.wantErr(receive(b, first), errNoAnswer)
		if n := int(calls.Load()) + query[int](b, "select count(*) from charges"); n != 2 {
			t.Errorf("%s: %d effects, want 2", name, n)
		}
	}
}

// The other attempt is one of another release, which asks for something else.
func TestStepThatAnotherReleaseHasPassedMeanwhileIsNotMade(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	if b.pool.Config().ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol {
		t.Skip("nothing can come between the commit of a step and the next one")
	}
	store, proxy := b.through(idempotency.Config{})
	held, release, _ := holdSecondBegin(proxy)
	first := make(chan error, 1)
	go func() {
		_, _, err := procedureOf(ok("a"), ok("b")).Do(t.Context(), store, b.key, 7)
		first <- err
	}()
	receive(b, held)
	b.eventually("the first step is committed", func() bool { return len(b.unfinished()) == 1 })
	b.wantErr(b.proceed(ok("a"), fails("x")), errNoAnswer)
	close(release)
	b.wantErr(receive(b, first), idempotency.ErrStepsChanged)
	b.charged(1)
	var calls atomic.Int64
	b.wantErr(b.proceed(ok("a"), answers("x", &calls)), nil)
}

// Nobody has the lock between the commit of a step and the call.
func TestCallThatAnotherAttemptIsInIsNotMadeAsWell(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	if b.pool.Config().ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol {
		t.Skip("nothing can come between the commit of a step and the call")
	}
	store, proxy := b.through(idempotency.Config{})
	var calls atomic.Int64
	inside, leave := make(chan struct{}), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(leave) })
	defer goOn()
	p := procedureOf(ok("a"), func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) {
			if calls.Add(1) == 1 {
				close(inside)
			}
			<-leave
			return 1, nil
		})
		return err
	})
	held, release, begins := holdSecondBegin(proxy)
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, _, err := p.Do(context.Background(), store, b.key, 7)
		first <- err
	}()
	receive(b, held)
	b.eventually("the step is committed", func() bool { return len(b.unfinished()) == 1 })
	go func() {
		_, _, err := p.Do(context.Background(), b.store, b.key, 7)
		second <- err
	}()
	receive(b, inside)
	close(release)
	b.eventually("the first one begins anew", func() bool { return begins.Load() > 2 || calls.Load() > 1 })
	goOn()
	b.wantErr(receive(b, first), nil)
	b.wantErr(receive(b, second), nil)
	if calls.Load() != 1 {
		t.Errorf("%d calls", calls.Load())
	}
	b.charged(1)
}
