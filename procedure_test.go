package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestProcedureRunsOnceAndReplays(t *testing.T) {
	t.Parallel()
	j := setupRides(t, idempotency.Config{})
	first, replayed, err := j.ride("a")
	if err != nil || replayed || first.Charge == "" {
		t.Fatal(first, replayed, err)
	}
	for range 2 {
		j.store.Forget(rideKey("a"))
		for range 2 {
			again, replayed, err := j.ride("a")
			if err != nil || !replayed || again != first {
				t.Error(again, replayed, err)
			}
		}
	}
	j.once(1)
	if j.p.requests.Load() != 1 {
		t.Errorf("%d requests", j.p.requests.Load())
	}
}

func TestRefusalIsAValueOfACall(t *testing.T) {
	t.Parallel()
	j := setupRides(t, idempotency.Config{})
	for i := range 3 {
		got, replayed, err := j.rideOn(j.store, "a", 5000)
		if err != nil || !got.Refused || replayed != (i > 0) {
			t.Error(got, replayed, err)
		}
	}
	if n := query[int](j.bundle, "select count(*) from rides where state = 'refused'"); n != 1 || len(j.p.charges) != 0 || j.p.requests.Load() != 1 {
		t.Error(n, j.p.charges, j.p.requests.Load())
	}
}

func TestProcedureGoesOnAfterTheLastRecordedStep(t *testing.T) {
	t.Parallel()
	j := setupRides(t, idempotency.Config{})
	j.p.lose.Store(100)
	for range 2 {
		if _, _, err := j.ride("a"); err == nil {
			t.Fatal("no error")
		}
	}
	j.p.lose.Store(0)
	if _, replayed, err := j.ride("a"); replayed || err != nil {
		t.Error(replayed, err)
	}
	j.once(1)
	if j.p.requests.Load() != 3 {
		t.Errorf("%d requests", j.p.requests.Load())
	}
}

func TestChangedStepsAreRefusedAndNothingIsExecuted(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for name, parts := range map[string][]part{
		"renamed":                {ok("A"), ok("b"), fails("c")},
		"reordered":              {ok("b"), ok("a"), fails("c")},
		"removed":                {ok("b"), fails("c")},
		"inserted":               {ok("x"), ok("a"), ok("b"), fails("c")},
		"ended early":            {ok("a")},
		"begun call renamed":     {ok("a"), ok("b"), fails("C")},
		"begun call left out":    {ok("a"), ok("b")},
		"begun call became step": {ok("a"), ok("b"), ok("c")},
		"step became call":       {fails("a"), ok("b"), fails("c")},
	} {
		b.key.ID = name
		before := query[int](b, "select count(*) from charges")
		b.wantErr(b.proceed(ok("a"), ok("b"), fails("c")), errNoAnswer)
		b.wantErr(b.proceed(parts...), idempotency.ErrStepsChanged)
		b.wantErr(b.proceed(ok("a"), ok("b"), fails("c")), errNoAnswer)
		if n := query[int](b, "select count(*) from charges"); n != before+2 {
			t.Errorf("%s: %d effects, want 2", name, n-before)
		}
	}
	b.key.ID = "other procedure"
	b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	other := procedureOf(ok("a"), fails("c"))
	other.Name = "q"
	_, _, err := other.Do(t.Context(), b.store, b.key, 7)
	b.wantErr(err, idempotency.ErrStepsChanged)
	b.key.ID = "appended"
	var calls atomic.Int64
	b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	b.wantErr(b.proceed(ok("a"), answers("c", &calls), ok("d"), ok("e")), nil)
}

func TestCommitSentInAnyStepIsNeverRunAgain(t *testing.T) {
	t.Parallel()
	commits := func(name, sql string, effects int) part {
		return func(ctx context.Context, op *idempotency.Op) error {
			_, err := idempotency.Step(ctx, op, name, func(ctx context.Context, tx pgx.Tx) (int, error) {
				if _, err := charge("key-1", 1)(ctx, tx); err != nil {
					return 0, err
				}
				for _, sql := range strings.Split(sql, ";") {
					if _, err := tx.Exec(ctx, sql); err != nil {
						return 0, err
					}
				}
				return 1, nil
			})
			return err
		}
	}
	b := setup(t, idempotency.Config{})
	var calls atomic.Int64
	for _, sql := range []string{"commit", "commit;begin", "commit;begin isolation level serializable;select 1"} {
		for name, c := range map[string]struct {
			parts   []part
			effects int
		}{
			"first":                 {[]part{commits("a", sql, 1)}, 1},
			"first of several":      {[]part{commits("a", sql, 1), ok("b")}, 1},
			"second":                {[]part{ok("a"), commits("b", sql, 1)}, 2},
			"between":               {[]part{ok("a"), commits("b", sql, 1), ok("c")}, 2},
			"behind a call":         {[]part{ok("a"), answers("b", &calls), commits("c", sql, 1)}, 2},
			"the first of this run": {[]part{ok("a"), answers("b", &calls), commits("c", sql, 1), ok("d")}, 2},
		} {
			b.key.ID = name + sql
			b.exec("delete from charges")
			if name == "the first of this run" {
				b.wantErr(b.proceed(ok("a"), answers("b", &calls), fails("z")), errNoAnswer)
				b.exec("update idempotency_operations set labels = array['step a', 'call b'] where id = $1", b.key.ID)
			}
			if err := b.proceed(c.parts...); !errors.Is(err, idempotency.ErrOutcomeUnknown) && !strings.Contains(fmt.Sprint(err), "commit") {
				t.Errorf("%s, %s: %v", name, sql, err)
			}
			for range 2 {
				b.wantErr(b.proceed(c.parts...), idempotency.ErrAbandoned)
			}
			b.charged(c.effects)
			if t.Failed() {
				t.Fatalf("%s, %s", name, sql)
			}
		}
	}
}

func TestRollbackSentInAStepKeepsNothingOfIt(t *testing.T) {
	t.Parallel()
	for _, sql := range []string{"rollback", "rollback;begin"} {
		b := setup(t, idempotency.Config{})
		sent := true
		rolls := func(ctx context.Context, op *idempotency.Op) error {
			_, err := idempotency.Step(ctx, op, "b", func(ctx context.Context, tx pgx.Tx) (int, error) {
				if _, err := charge("key-1", 1)(ctx, tx); err != nil || !sent {
					return 1, err
				}
				for _, sql := range strings.Split(sql, ";") {
					if _, err := tx.Exec(ctx, sql); err != nil {
						return 0, err
					}
				}
				return 1, nil
			})
			return err
		}
		if err := b.proceed(ok("a"), rolls, ok("c")); err == nil {
			t.Errorf("%s: no error", sql)
		}
		b.charged(1)
		sent = false
		b.wantErr(b.proceed(ok("a"), rolls, ok("c")), nil)
		b.charged(3)
	}
}

func TestUnfinishedKeyIsRefusedByEverythingElse(t *testing.T) {
	t.Parallel()
	var outcome string
	b := setup(t, idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) { outcome = e.Outcome }})
	b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	for name, do := range map[string]func() error{
		"Do": func() error { return second(b.do(charge("key-1", 1))) },
		"QueryRow": func() error {
			return second(idempotency.QueryRow[int](t.Context(), b.store, b.key, "insert into charges (key, amount) values ('key-1', 1) returning amount"))
		},
		"Query": func() error {
			return second(idempotency.Query[int](t.Context(), b.store, b.key, "insert into charges (key, amount) values ('key-1', 1) returning amount"))
		},
		"Get":    func() error { _, err := b.store.Get(t.Context(), b.key); return err },
		"Delete": func() error { return b.store.Delete(t.Context(), b.key) },
	} {
		if err := do(); !errors.Is(err, idempotency.ErrUnfinished) || outcome != "unfinished" {
			t.Errorf("%s: %s, %v", name, outcome, err)
		}
	}
	tx := b.begin(pgx.TxOptions{})
	defer tx.Rollback(t.Context())
	if _, _, err := idempotency.DoTx(t.Context(), b.store, tx, b.key, charge("key-1", 1)); !errors.Is(err, idempotency.ErrUnfinished) {
		t.Error(err)
	}
	b.usable(tx)
	b.exec("update idempotency_keys set purge_after = now() - interval '1 day'")
	if n, err := b.store.Purge(t.Context()); n != 0 || err != nil {
		t.Error(n, err)
	}
	b.charged(1)
	other := b.key
	other.Fingerprint = idempotency.FingerprintOf([]byte("other"))
	_, _, err := procedureOf(ok("a"), fails("c")).Do(t.Context(), b.store, other, 7)
	b.wantErr(err, idempotency.ErrKeyReused)
	var calls atomic.Int64
	b.wantErr(b.proceed(ok("a"), answers("c", &calls)), nil)
	b.charged(1)
}

func second[T any](_ T, _ bool, err error) error { return err }

func TestWithoutTheTableOfProceduresAllElseWorks(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("drop table idempotency_operations")
	b.executes(1)
	b.replays(1)
	b.exec("insert into idempotency_keys (id, scope, purge_after) values ('key-2', 'customer-1', now())")
	b.key.ID = "key-2"
	b.wantErr(second(b.do(charge("key-1", 1))), idempotency.ErrAbandoned)
	_, err := b.store.Get(t.Context(), b.key)
	b.wantErr(err, idempotency.ErrAbandoned)
	tx := b.begin(pgx.TxOptions{})
	defer tx.Rollback(t.Context())
	_, _, err = idempotency.DoTx(t.Context(), b.store, tx, b.key, charge("key-1", 1))
	b.wantErr(err, idempotency.ErrAbandoned)
	b.usable(tx)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.wantErr(b.store.Delete(t.Context(), b.key), nil)
	if err := b.proceed(ok("a"), fails("c")); err == nil || !strings.Contains(err.Error(), "idempotency_operations") || !strings.Contains(err.Error(), "migrations.Up") {
		t.Error(err)
	}
	b.charged(1)
}

func TestCallThatIsTooOldIsNotMadeAgainUntilItIsSettled(t *testing.T) {
	t.Parallel()
	j := setupRides(t, idempotency.Config{})
	j.p.lose.Store(100)
	if _, _, err := j.ride("a"); err == nil {
		t.Fatal("no error")
	}
	if err := j.store.Settle(t.Context(), rideKey("a"), "other", payment{}); err == nil || !strings.Contains(err.Error(), "does not wait for the outcome of call other") {
		t.Error(err)
	}
	j.wantErr(j.store.Settle(t.Context(), rideKey("b"), "charge", payment{}), idempotency.ErrNotFound)
	j.exec("update idempotency_operations set progressed_at = progressed_at - interval '23 hours 1 minute'")
	for range 2 {
		_, _, err := j.ride("a")
		j.wantErr(err, idempotency.ErrCallExpired)
	}
	if j.p.requests.Load() != 1 {
		t.Errorf("%d requests", j.p.requests.Load())
	}
	_, err := j.store.Complete(t.Context(), 0, takeRide)
	j.wantErr(err, idempotency.ErrCallExpired)
	waits := j.unfinished()[0]
	j.p.mu.Lock()
	_, asked := j.p.answers[waits.CallKey]
	j.p.mu.Unlock()
	if !asked || waits.Attempts != 1 {
		t.Errorf("the provider has not been asked with the key of %+v", waits)
	}
	j.exec("update idempotency_operations set due_at = now() + interval '1 hour'")
	j.wantErr(j.store.Settle(t.Context(), rideKey("a"), waits.Begun, payment{ID: "seen there"}), nil)
	if u := j.unfinished()[0]; time.Until(u.DueAt) > time.Minute || u.Attempts != 0 || u.Error != "" || u.Begun != "" || u.CallKey != "" || time.Since(u.ProgressedAt) > time.Hour {
		t.Errorf("what was settled still waits: %+v", u)
	}
	got, replayed, err := j.ride("a")
	if err != nil || replayed || got.Charge != "seen there" || j.p.requests.Load() != 1 {
		t.Error(got, replayed, err, j.p.requests.Load())
	}
	j.once(1)
	j.wantErr(j.store.Settle(t.Context(), rideKey("a"), "charge", payment{}), idempotency.ErrNotFound)
}

func TestCallIsSettledByItsNameOrByItsLabel(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{MaxResult: 1000})
	for name, by := range map[string][]string{"c": {"c", "call c"}, "call c": {"call c", "call call c"}, "step c": {"step c", "call step c"}} {
		for _, by := range by {
			b.key.ID = name + " by " + by
			b.wantErr(b.proceed(ok("a"), fails(name)), errNoAnswer)
			for _, other := range []string{"a", "step a", "call a", "call call call c"} {
				if err := b.store.Settle(t.Context(), b.key, other, 1); err == nil {
					t.Errorf("call %q was settled by %q", name, other)
				}
			}
			b.wantErr(b.store.Settle(t.Context(), b.key, by, strings.Repeat("x", 2000)), idempotency.ErrTooLarge)
			b.wantErr(b.store.Settle(t.Context(), b.key, by, 1), nil)
			if err := b.store.Settle(t.Context(), b.key, by, 2); err == nil {
				t.Errorf("call %q was settled twice", name)
			}
		}
	}
	b.key.ID = "a step"
	b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	b.exec("update idempotency_operations set labels[2] = 'step c' where id = 'a step'") // it has sent COMMIT
	for _, by := range []string{"c", "step c", "call c"} {
		if err := b.store.Settle(t.Context(), b.key, by, 1); err == nil {
			t.Errorf("a step was settled by %q", by)
		}
	}
}

func TestWindowOfOneCallIsItsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	calls := 0
	within := func(window time.Duration) part {
		return func(ctx context.Context, op *idempotency.Op) error {
			_, err := idempotency.Call(ctx, op.Within(window), "c", func(context.Context, string) (int, error) { calls++; return 0, errNoAnswer })
			return err
		}
	}
	b.wantErr(b.proceed(within(time.Hour)), errNoAnswer)
	b.exec("update idempotency_operations set progressed_at = progressed_at - interval '31 minutes'")
	b.wantErr(b.proceed(within(30*time.Minute)), idempotency.ErrCallExpired)
	b.wantErr(b.proceed(within(time.Hour)), errNoAnswer)
	b.wantErr(b.proceed(within(30*time.Minute)), idempotency.ErrCallExpired) // it was begun when it was begun
	b.wantErr(b.proceed(within(0)), errNoAnswer)                             // Config.CallWindow
	if err := b.proceed(within(-time.Second)); err == nil || !strings.Contains(err.Error(), "has to be positive") {
		t.Error(err)
	}
	if calls != 3 {
		t.Errorf("%d calls", calls)
	}
}

func TestCallThatGetsTooOldWhileItWaitsForItsPlaceIsNotMade(t *testing.T) {
	t.Parallel()
	var waited atomic.Int64 // the longest
	b := setup(t, idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) {
		waited.Store(max(waited.Load(), int64(e.Waited)))
	}}, pgtest.MaxConns(2)) // one place
	var calls atomic.Int64
	asking := make(chan struct{}, 3)
	asks := procedureOf(func(ctx context.Context, op *idempotency.Op) error {
		asking <- struct{}{}
		_, err := idempotency.Call(ctx, op.Within(time.Minute), "c", func(context.Context, string) (int, error) {
			calls.Add(1)
			return 0, errNoAnswer
		})
		return err
	})
	_, _, err := asks.Do(t.Context(), b.store, b.key, 1)
	b.wantErr(err, errNoAnswer)
	receive(b, asking)
	inside, leave := make(chan struct{}), make(chan struct{})
	holds := procedureOf(func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) { close(inside); <-leave; return 1, nil })
		return err
	})
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, _, err := holds.Do(context.Background(), b.store, idempotency.Key{Scope: "s", ID: "holder"}, 1)
		first <- err
	}()
	receive(b, inside)
	go func() {
		_, _, err := asks.Do(context.Background(), b.store, b.key, 1)
		second <- err
	}()
	receive(b, asking)
	b.eventually("it waits without a connection", func() bool { return b.pool.Stat().AcquiredConns() == 1 })
	select {
	case err := <-second:
		t.Fatal("it has not waited: ", err)
	case <-time.After(100 * time.Millisecond):
	}
	b.exec("update idempotency_operations set progressed_at = progressed_at - interval '2 minutes' where id = $1", b.key.ID)
	close(leave)
	b.wantErr(receive(b, first), nil)
	b.wantErr(receive(b, second), idempotency.ErrCallExpired)
	if calls.Load() != 1 {
		t.Errorf("%d calls", calls.Load())
	}
	if waited.Load() < int64(50*time.Millisecond) {
		t.Errorf("Observe was told that it waited for %v", time.Duration(waited.Load()))
	}
}

func TestDiscardedOperationBeginsAnew(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.wantErr(b.store.Discard(t.Context(), b.key), idempotency.ErrNotFound)
	b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	b.wantErr(b.store.Discard(t.Context(), b.key), nil)
	b.wantErr(b.proceed(ok("b")), nil)
	b.charged(2)
	b.wantErr(b.store.Discard(t.Context(), b.key), idempotency.ErrNotFound)
	_, err := b.store.Get(t.Context(), b.key)
	b.wantErr(err, nil)
}

// After an error of a step, the function cannot go another way.
func TestErrorOfAStepIsTheErrorOfAllLaterOnes(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	p := idempotency.Procedure[int, int]{Name: "p", Run: func(ctx context.Context, op *idempotency.Op, in int) (int, error) {
		_ = fails("charge")(ctx, op)
		b.wantErr(ok("cancel")(ctx, op), errNoAnswer)
		return 1, nil // swallowed
	}}
	for range 2 {
		_, _, err := p.Do(t.Context(), b.store, b.key, 1)
		b.wantErr(err, errNoAnswer)
	}
	b.charged(0)
}

func TestStepsThatBreakTheRulesAreErrorsAndNothingHappensTwice(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{MaxResult: 1000})
	var kept *idempotency.Op
	for name, c := range map[string]struct {
		parts   []part
		says    string
		effects int
	}{
		"step and call":      {[]part{ok("a"), fails("a")}, `two steps have the name "a"`, 1},
		"two of one name":    {[]part{ok("a"), ok("a")}, `two steps have the name "a"`, 1},
		"no name":            {[]part{ok("a"), ok("")}, "the name of a step is empty", 1},
		"a long name":        {[]part{ok("a"), fails(strings.Repeat("x", 256))}, "the name of a call has 256 bytes", 1},
		"a name with NUL":    {[]part{ok("a"), ok("x\x00")}, "NUL", 1},
		"a name not of text": {[]part{ok("a"), ok("\xff")}, "UTF-8", 1},
		"nested": {[]part{ok("a"), func(ctx context.Context, op *idempotency.Op) error {
			_, err := idempotency.Step(ctx, op, "b", func(ctx context.Context, tx pgx.Tx) (int, error) { return 1, ok("c")(ctx, op) })
			return err
		}}, "not nested", 1},
		"nested in a call": {[]part{ok("a"), func(ctx context.Context, op *idempotency.Op) error {
			_, err := idempotency.Call(ctx, op, "b", func(ctx context.Context, key string) (int, error) { return 1, ok("c")(ctx, op) })
			return err
		}}, "not nested", 1},
		"swallowed error of SQL": {[]part{ok("a"), func(ctx context.Context, op *idempotency.Op) error {
			_, err := idempotency.Step(ctx, op, "b", func(ctx context.Context, tx pgx.Tx) (int, error) { _, _ = tx.Exec(ctx, "select 1/0"); return 1, nil })
			return err
		}}, "one of its statements failed", 1},
		"result too large": {[]part{ok("a"), func(ctx context.Context, op *idempotency.Op) error {
			_, err := idempotency.Step(ctx, op, "b", func(ctx context.Context, tx pgx.Tx) (string, error) { return strings.Repeat("x", 2000), nil })
			return err
		}}, "result too large", 1},
		"result that JSON does not have": {[]part{ok("a"), func(ctx context.Context, op *idempotency.Op) error {
			_, err := idempotency.Step(ctx, op, "b", func(ctx context.Context, tx pgx.Tx) (float64, error) { return math.Inf(1), nil })
			return err
		}}, `the value of step "b" cannot be recorded`, 1},
		"result that JSON loses": {[]part{ok("a"), func(ctx context.Context, op *idempotency.Op) error {
			_, err := idempotency.Call(ctx, op, "b", func(context.Context, string) (struct{ x int }, error) { return struct{ x int }{1}, nil })
			return err
		}}, `the value of call "b" cannot be recorded`, 1},
		"panic": {[]part{ok("a"), func(ctx context.Context, op *idempotency.Op) error {
			defer func() { recover() }()
			_, err := idempotency.Step(ctx, op, "b", func(ctx context.Context, tx pgx.Tx) (int, error) { panic("x") })
			return err
		}, ok("c")}, "panicked", 1},
		"kept": {[]part{ok("a"), func(ctx context.Context, op *idempotency.Op) error { kept = op; return errNoAnswer }}, "no answer", 1},
	} {
		b.key.ID = name
		before := query[int](b, "select count(*) from charges")
		for range 2 {
			if err := b.proceed(c.parts...); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v", name, err)
			}
			b.charged(before + c.effects)
		}
	}
	if err := ok("late")(t.Context(), kept); err == nil || !strings.Contains(err.Error(), "has returned") {
		t.Error(err)
	}
	b.key.ID = "input"
	long := idempotency.Procedure[string, int]{Name: "p"}
	if _, _, err := long.Do(t.Context(), b.store, b.key, strings.Repeat("x", 2000)); !errors.Is(err, idempotency.ErrTooLarge) || !strings.Contains(err.Error(), "input") {
		t.Error(err)
	}
	lost := idempotency.Procedure[any, int]{Name: "p"}
	if _, _, err := lost.Do(t.Context(), b.store, b.key, func() {}); !errors.Is(err, idempotency.ErrUndecodable) || !strings.Contains(err.Error(), "input") {
		t.Error(err)
	}
	large := idempotency.Procedure[int, string]{Name: "p", Run: func(context.Context, *idempotency.Op, int) (string, error) { return strings.Repeat("x", 2000), nil }}
	if _, _, err := large.Do(t.Context(), b.store, b.key, 1); !errors.Is(err, idempotency.ErrTooLarge) || !strings.Contains(err.Error(), "result of procedure") {
		t.Error(err)
	}
	nameless := procedureOf()
	nameless.Name = ""
	if _, _, err := nameless.Do(t.Context(), b.store, b.key, 1); err == nil || !strings.Contains(err.Error(), "Procedure.Name") {
		t.Error(err)
	}
}

func TestParallelStepsAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	inside, leave := make(chan struct{}), make(chan struct{})
	p := idempotency.Procedure[int, int]{Name: "p", Run: func(ctx context.Context, op *idempotency.Op, in int) (int, error) {
		ended := make(chan error, 1)
		go func() {
			_, err := idempotency.Step(ctx, op, "a", func(ctx context.Context, tx pgx.Tx) (int, error) {
				close(inside)
				<-leave
				return charge("key-1", 1)(ctx, tx)
			})
			ended <- err
		}()
		receive(b, inside)
		err := ok("b")(ctx, op)
		if err == nil || !strings.Contains(err.Error(), "not parallel") {
			t.Error(err)
		}
		close(leave)
		return in, <-ended
	}}
	_, _, err := p.Do(t.Context(), b.store, b.key, 1)
	if err == nil || !strings.Contains(err.Error(), "not parallel") { // it was swallowed
		t.Error(err)
	}
	b.charged(1)
}

func TestProcedureThatReturnsWhileAStepRunsWaitsForItAndIsNoSuccess(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	p := idempotency.Procedure[int, int]{Name: "p", Run: func(ctx context.Context, op *idempotency.Op, in int) (int, error) {
		inside := make(chan struct{})
		go func() {
			_, _ = idempotency.Step(ctx, op, "a", func(ctx context.Context, tx pgx.Tx) (int, error) {
				close(inside)
				select {
				case <-ctx.Done(): // what still runs is to end
				case <-time.After(20 * time.Second):
					t.Error("the context of a step goes on after its procedure has returned")
				}
				time.Sleep(50 * time.Millisecond)
				return charge("key-1", 1)(context.WithoutCancel(ctx), tx)
			})
		}()
		receive(b, inside)
		return in, nil
	}}
	if _, _, err := p.Do(t.Context(), b.store, b.key, 1); err == nil || !strings.Contains(err.Error(), "while one of its steps ran") {
		t.Error(err)
	}
	b.charged(1) // it ended, and is recorded
	b.wantErr(b.proceed(ok("a")), nil)
	b.charged(1)
}

func TestClientThatGoesAwayDoesNotCancelACall(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	call := func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "c", func(ctx context.Context, key string) (int, error) {
			calls++
			cancel()
			time.Sleep(20 * time.Millisecond)
			return 1, ctx.Err()
		})
		return err
	}
	_, _, err := procedureOf(call, ok("a")).Do(ctx, b.store, b.key, 7)
	b.wantErr(err, context.Canceled)
	b.charged(0)
	b.wantErr(b.proceed(call, ok("a")), nil)
	if calls != 1 {
		t.Errorf("%d calls", calls)
	}
	b.charged(1)
}

func TestCallEndsByItsOwnDeadlineAndBeforeItsTransaction(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{MaxIdle: 500 * time.Millisecond})
	for _, own := range []time.Duration{50 * time.Millisecond, time.Hour} {
		start := time.Now()
		err := b.proceed(func(ctx context.Context, op *idempotency.Op) error {
			ctx, cancel := context.WithTimeout(ctx, own)
			defer cancel()
			_, err := idempotency.Call(ctx, op, "c", func(ctx context.Context, key string) (int, error) {
				<-ctx.Done()
				return 0, ctx.Err()
			})
			return err
		})
		b.wantErr(err, context.DeadlineExceeded)
		if took := time.Since(start); took < min(own, 400*time.Millisecond) || took > 5*time.Second {
			t.Errorf("after %v", took)
		}
	}
}

// Its transaction was ended meanwhile, and nobody has gone on with the operation.
func TestCallThatIgnoresItsContextIsRecordedAllTheSame(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{MaxIdle: 200 * time.Millisecond})
	calls := 0
	b.wantErr(b.proceed(ok("a"), func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "c", func(ctx context.Context, key string) (int, error) {
			calls++
			time.Sleep(600 * time.Millisecond)
			return 1, nil
		})
		return err
	}, ok("b")), nil)
	if calls != 1 {
		t.Errorf("%d calls", calls)
	}
	b.charged(2)
}

func TestGoexitInAStepGivesTheConnectionBack(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for _, p := range []part{
		func(ctx context.Context, op *idempotency.Op) error {
			_, err := idempotency.Step(ctx, op, "b", func(context.Context, pgx.Tx) (int, error) { runtime.Goexit(); return 0, nil })
			return err
		},
		func(ctx context.Context, op *idempotency.Op) error {
			_, err := idempotency.Call(ctx, op, "b", func(context.Context, string) (int, error) { runtime.Goexit(); return 0, nil })
			return err
		},
	} {
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = b.proceed(ok("a"), p)
		}()
		receive(b, ended)
		b.charged(1)
		if n := b.pool.Stat().AcquiredConns(); n != 0 {
			t.Errorf("%d connections are in use", n)
		}
		b.wantErr(b.store.Discard(t.Context(), b.key), nil)
		b.exec("delete from charges")
	}
}

func TestKeyOfACallIsTheSameForEver(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for namespace, want := range map[string]string{
		"":        "c4a28943-720b-86cc-b696-51d2b5da2bed",
		"billing": "200c2e3e-34b3-8239-83df-e9b92dd384ee",
	} {
		store := b.storeOn(b.pool, idempotency.Config{CallNamespace: namespace})
		var got []string
		p := idempotency.Procedure[int, int]{Name: "p", Run: func(ctx context.Context, op *idempotency.Op, in int) (int, error) {
			return idempotency.Call(ctx, op, "charge", func(ctx context.Context, key string) (int, error) {
				if got = append(got, key); len(got) == 1 {
					return 0, errNoAnswer
				}
				return 1, nil
			})
		}}
		_, _, _ = p.Do(t.Context(), store, b.key, 1)
		_, _, err := p.Do(t.Context(), store, b.key, 1)
		b.wantErr(err, nil)
		if len(got) != 2 || got[0] != want || got[1] != want {
			t.Errorf("%v, want %s", got, want)
		}
		b.wantErr(b.store.Delete(t.Context(), b.key), nil)
	}
}

func TestInputIsThatOfTheFirstCall(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	fail := true
	p := idempotency.Procedure[string, string]{Name: "p", Run: func(ctx context.Context, op *idempotency.Op, in string) (string, error) {
		return idempotency.Call(ctx, op, "c", func(context.Context, string) (string, error) {
			if fail {
				return "", errNoAnswer
			}
			return in, nil
		})
	}}
	_, _, err := p.Do(t.Context(), b.store, b.key, "first")
	b.wantErr(err, errNoAnswer)
	fail = false
	got, replayed, err := p.Do(t.Context(), b.store, b.key, "second")
	if got != "first" || replayed || err != nil {
		t.Error(got, replayed, err)
	}
}

func TestExpiredKeyOfAProcedureRunsAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var calls atomic.Int64
	for i := range 2 {
		b.wantErr(b.proceed(ok("a"), answers("c", &calls), ok("b")), nil)
		b.charged(2 * (i + 1))
		b.exec("update idempotency_keys set expires_at = now(), purge_after = now()")
		b.unknown()
	}
	if calls.Load() != 2 {
		t.Errorf("%d calls", calls.Load())
	}
}

func TestProceduresUseTheirOwnPoolWhereThereIsOne(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	own := b.anotherPool(pgtest.MaxConns(2))
	store := b.storeOn(b.pool, idempotency.Config{CallPool: own})
	before := b.pool.Stat().AcquireCount()
	p := procedureOf(ok("a"), func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) {
			if own.Stat().AcquiredConns() != 1 || b.pool.Stat().AcquireCount() != before {
				t.Errorf("%d connections of its own, %d of the store's", own.Stat().AcquiredConns(), b.pool.Stat().AcquireCount()-before)
			}
			return 1, nil
		})
		return err
	})
	_, _, err := p.Do(t.Context(), store, b.key, 1)
	b.wantErr(err, nil)
	before = own.Stat().AcquireCount()
	_, _, err = idempotency.Do(t.Context(), store, idempotency.Key{Scope: "s", ID: "Do"}, charge("Do", 1))
	b.wantErr(err, nil)
	if n := own.Stat().AcquireCount() - before; n != 0 {
		t.Errorf("Do has used the pool of procedures %d times", n)
	}
}

func TestRoleWithoutGrantsOnOperationsIsToldOfThem(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	r := b.asRole(idempotency.Config{})
	b.exec("grant select, insert, update, delete on idempotency_keys, charges to public; revoke all on idempotency_operations from public")
	tx := r.begin(pgx.TxOptions{})
	defer tx.Rollback(t.Context())
	for name, err := range map[string]error{
		"procedure": r.proceed(ok("a"), fails("c")),
		"Do":        second(r.do(charge("key-1", 1))),
		"DoTx":      second(idempotency.DoTx(t.Context(), r.store, tx, b.key, charge("key-1", 1))),
		"Get":       func() error { _, err := r.store.Get(t.Context(), b.key); return err }(),
		"Delete":    r.store.Delete(t.Context(), b.key),
		"Pending": func() error {
			for _, err := range r.store.Pending(t.Context(), 0) {
				return err
			}
			return nil
		}(),
	} {
		if err == nil || !strings.Contains(err.Error(), "needs select, insert, update and delete") || !strings.HasPrefix(err.Error(), "idempotency: ") || strings.Count(err.Error(), "the role needs") != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.usable(tx)
	r.key.ID = "key-2"
	b.wantErr(second(r.do(charge("key-2", 1))), nil)
	b.charged(2)
}

func TestPanicBetweenStepsKeepsWhatWasDone(t *testing.T) {
	t.Parallel()
	for name, ends := range map[string]func(){"panic": func() { panic("x") }, "Goexit": runtime.Goexit} {
		b := setup(t, idempotency.Config{})
		var calls atomic.Int64
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			defer func() { _ = recover() }()
			_ = b.proceed(ok("a"), answers("c", &calls), func(context.Context, *idempotency.Op) error { ends(); return nil })
		}()
		receive(b, ended)
		b.charged(1)
		b.wantErr(b.proceed(ok("a"), answers("c", &calls), ok("b")), nil)
		if calls.Load() != 1 {
			t.Errorf("%s: %d calls", name, calls.Load())
		}
		b.charged(2)
	}
}

func TestStepThatOutlastsMaxIdleIsNotRunAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{MaxIdle: 200 * time.Millisecond})
	runs := 0
	err := b.proceed(func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Step(ctx, op, "a", func(context.Context, pgx.Tx) (int, error) {
			runs++
			time.Sleep(600 * time.Millisecond)
			return 1, nil
		})
		return err
	}, ok("b"))
	if err == nil || runs != 1 {
		t.Errorf("%d runs, %v", runs, err)
	}
	b.charged(0)
}

func TestCallThatEndsForMaxIdleSaysSo(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{MaxIdle: 200 * time.Millisecond})
	err := b.proceed(func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "c", func(ctx context.Context, _ string) (int, error) { <-ctx.Done(); return 0, ctx.Err() })
		return err
	})
	b.wantErr(err, context.DeadlineExceeded)
	if !strings.Contains(fmt.Sprint(err), "Config.MaxIdle are over, which is 200ms") {
		t.Error(err)
	}
}

// The leader waits for a place, without a connection, and is at work all the same.
func TestWhoDoesNotWaitIsTurnedAwayByACallThatWaitsForItsPlace(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{Wait: -1}, pgtest.MaxConns(2)) // one place
	inside, leave := make(chan struct{}), make(chan struct{})
	holds := func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) { close(inside); <-leave; return 1, nil })
		return err
	}
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, _, err := procedureOf(holds).Do(context.Background(), b.store, idempotency.Key{Scope: "s", ID: "holder"}, 1)
		first <- err
	}()
	receive(b, inside)
	var calls atomic.Int64
	waits := procedureOf(ok("a"), answers("c", &calls))
	go func() {
		_, _, err := waits.Do(context.Background(), b.store, b.key, 1)
		second <- err
	}()
	b.eventually("its step is recorded", func() bool { return len(b.unfinished()) == 2 })
	b.eventually("a duplicate is turned away", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, _, err := waits.Do(ctx, b.store, b.key, 1)
		if !errors.Is(err, idempotency.ErrInProgress) {
			t.Error(err)
		}
		return true
	})
	b.completes(0, waits) // nor does Complete wait, or count a failure
	for _, u := range b.unfinished() {
		if u.Attempts != 0 {
			t.Errorf("%+v", u)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, _, err := waits.Do(ctx, b.store, idempotency.Key{Scope: "s", ID: "third"}, 1)
	b.wantErr(err, context.DeadlineExceeded)
	if !strings.Contains(fmt.Sprint(err), "(1 at a time)") {
		t.Error(err)
	}
	close(leave)
	b.wantErr(receive(b, first), nil)
	b.wantErr(receive(b, second), nil)
	b.completes(1, waits)
}

func TestProcedureInDoubtBesideDuplicatesFindsOut(t *testing.T) {
	t.Parallel()
	for nth := int64(1); nth <= 3; nth++ {
		j := setupRides(t, idempotency.Config{})
		j.p.delay.Store(int64(20 * time.Millisecond))
		var others sync.WaitGroup
		store, proxy := j.through(idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) {
			if e.Operation == "Procedure" && e.Outcome != "executed" && e.Outcome != "replayed" {
				t.Errorf("without the answer to COMMIT %d: %+v", nth, e)
			}
		}})
		lost := answered("COMMIT", nth)
		proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
			if !lost(m) {
				return pgproxy.Pass
			}
			for range 4 {
				other := j.storeOn(j.anotherPool(), idempotency.Config{})
				others.Go(func() {
					if _, _, err := j.rideOn(other, "a", 20); err != nil {
						t.Error(err)
					}
				})
			}
			time.Sleep(50 * time.Millisecond)
			return pgproxy.Drop
		})
		if _, _, err := j.rideOn(store, "a", 20); err != nil {
			t.Errorf("without the answer to COMMIT %d: %v", nth, err)
		}
		others.Wait()
		j.once(1)
	}
}

// The types of another release are others.
func TestWhatAnotherReleaseHasRecordedAndThisOneCannotReadIsErrUndecodable(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	undecodable := func(err error, says string) {
		t.Helper()
		if !errors.Is(err, idempotency.ErrUndecodable) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want one that says %q", err, says)
		}
	}
	var calls atomic.Int64
	b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	_, _, err := idempotency.Procedure[string, int]{Name: "p", Run: func(context.Context, *idempotency.Op, string) (int, error) {
		t.Error("it was run without its input")
		return 1, nil
	}}.Do(t.Context(), b.store, b.key, "7")
	undecodable(err, "the operation's input")
	undecodable(b.proceed(func(ctx context.Context, op *idempotency.Op) error {
		_, _ = idempotency.Step(ctx, op, "a", func(context.Context, pgx.Tx) (string, error) { return "", nil })
		return nil // swallowed
	}, answers("c", &calls)), `the recorded value of step "a" as string`)
	if calls.Load() != 0 {
		t.Error("it went on without the value of its first step")
	}
	b.wantErr(b.proceed(ok("a"), answers("c", &calls)), nil)
	_, _, err = idempotency.Procedure[int, string]{Name: "p"}.Do(t.Context(), b.store, b.key, 7)
	undecodable(err, "took effect earlier")
	b.charged(1)
}

func TestKeyOfAProcedureFromInsideItFailsAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{Wait: time.Hour})
	var kept context.Context
	inside := func(ctx context.Context) {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		_, _, err := procedureOf(ok("a")).Do(ctx, b.store, b.key, 7)
		b.wantErr(err, idempotency.ErrInProgress)
		_, _, err = idempotency.Do(ctx, b.store, b.key, charge("key-1", 1))
		b.wantErr(err, idempotency.ErrInProgress)
	}
	b.wantErr(b.proceed(func(ctx context.Context, op *idempotency.Op) error {
		inside(ctx)
		_, err := idempotency.Step(ctx, op, "a", func(ctx context.Context, _ pgx.Tx) (int, error) { inside(ctx); return 1, nil })
		return err
	}, func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "b", func(ctx context.Context, _ string) (int, error) { inside(ctx); return 1, nil })
		kept = ctx
		return err
	}), nil)
	b.charged(0)
	// It has returned: its context does not hold the key.
	_, replayed, err := procedureOf().Do(context.WithoutCancel(kept), b.store, b.key, 7)
	if !replayed || err != nil {
		t.Error(replayed, err)
	}
}

func TestStepCannotEndItsTransactionNorKeepIt(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var kept pgx.Tx
	b.wantErr(b.proceed(func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Step(ctx, op, "a", func(ctx context.Context, tx pgx.Tx) (int, error) {
			kept = tx
			for what, end := range map[string]func(context.Context) error{"Commit": tx.Commit, "Rollback": tx.Rollback} {
				if err := end(ctx); err == nil || !strings.Contains(err.Error(), "does not end its transaction") {
					t.Errorf("%s: %v", what, err)
				}
			}
			return charge("key-1", 1)(ctx, tx)
		})
		return err
	}, func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Step(ctx, op, "b", func(ctx context.Context, _ pgx.Tx) (int, error) {
			_, err := charge("key-1", 1)(ctx, kept)
			b.wantErr(err, pgx.ErrTxClosed)
			return 1, nil
		})
		return err
	}), nil)
	b.charged(1)
}

func TestConflictOrLostConnectionInAStepRunsAgain(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(b *bundle, ctx context.Context, tx pgx.Tx) error{
		"conflict": func(_ *bundle, ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "do $$ begin raise exception using errcode = '40001'; end $$")
			return err
		},
		"lost connection": func(b *bundle, ctx context.Context, tx pgx.Tx) error {
			b.exec("select pg_terminate_backend($1, 10000)", int(tx.Conn().PgConn().PID()))
			_, err := tx.Exec(ctx, "select 1")
			return err
		},
		"lost connection whose error is swallowed": func(b *bundle, ctx context.Context, tx pgx.Tx) error {
			b.exec("select pg_terminate_backend($1, 10000)", int(tx.Conn().PgConn().PID()))
			_, _ = tx.Exec(ctx, "select 1")
			return nil
		},
	} {
		b := setup(t, idempotency.Config{}, pgtest.Direct)
		runs := 0
		err := b.proceed(ok("a"), func(ctx context.Context, op *idempotency.Op) error {
			_, err := idempotency.Step(ctx, op, "b", func(ctx context.Context, tx pgx.Tx) (int, error) {
				if _, err := charge("key-1", 1)(ctx, tx); err != nil {
					return 0, err
				}
				if runs++; runs == 1 {
					return 1, spoil(b, ctx, tx)
				}
				return 1, nil
			})
			return err
		}, ok("c"))
		if err != nil || runs != 2 {
			t.Errorf("%s: %d runs, %v", name, runs, err)
		}
		b.charged(3)
	}
}

func TestConnectionLostWhileAnOperationIsReadIsReplaced(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	d.wantErr(d.proceed(ok("a"), fails("c")), errNoAnswer)
	hit := d.once(bound("with ordinality"), pgproxy.Drop)
	var calls atomic.Int64
	d.wantErr(d.proceed(ok("a"), answers("c", &calls)), nil)
	receive(d, hit)
	d.charged(1)
}

func TestClientThatHasGoneBeginsNoFurtherCall(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	first := 0
	var second atomic.Int64
	p := procedureOf(func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) { first++; cancel(); return 1, nil })
		return err
	}, answers("d", &second))
	_, _, err := p.Do(ctx, b.store, b.key, 7)
	b.wantErr(err, context.Canceled)
	if first != 1 || second.Load() != 0 {
		t.Errorf("%d and %d calls, want 1 and none", first, second.Load())
	}
	_, _, err = p.Do(t.Context(), b.store, b.key, 7)
	if err != nil || first != 1 || second.Load() != 1 {
		t.Errorf("%d and %d calls, want one of each, %v", first, second.Load(), err)
	}
}

func TestWindowOfACallCountsFromWhereItWasBegun(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.wantErr(b.proceed(ok("a"), func(context.Context, *idempotency.Op) error { return errNoAnswer }), errNoAnswer)
	b.exec("update idempotency_operations set started_at = started_at - interval '2 days', progressed_at = progressed_at - interval '2 days'")
	for range 2 { // it was not begun, and then just now
		b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
	}
	b.charged(1)
}

// The process was frozen for as long, between what is recorded and the call.
func TestCallIsNotBegunOnceMaxIdleIsNearlyOver(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	const maxIdle = 2 * time.Second
	store, proxy := b.through(idempotency.Config{MaxIdle: maxIdle})
	var once sync.Once
	rests := bound("set local idempotency.call")
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if rests(m) {
			once.Do(func() { time.Sleep(maxIdle / 100 * 95) })
		}
		return pgproxy.Pass
	})
	var calls atomic.Int64
	_, _, err := procedureOf(ok("a"), answers("c", &calls)).Do(t.Context(), store, b.key, 7)
	late := errors.Is(err, context.DeadlineExceeded) && strings.Contains(err.Error(), "9 tenths of Config.MaxIdle")
	if calls.Load() != 0 || !late && sqlState(err) != "25P03" { // on a busy machine all of MaxIdle is over
		t.Errorf("%d calls, %v", calls.Load(), err)
	}
}

func TestEachCallHasNineTenthsOfMaxIdleForItself(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{MaxIdle: time.Hour})
	var ends []time.Time
	call := func(name string) part {
		return func(ctx context.Context, op *idempotency.Op) error {
			_, err := idempotency.Call(ctx, op, name, func(ctx context.Context, _ string) (int, error) {
				end, _ := ctx.Deadline()
				ends = append(ends, end)
				return 1, nil
			})
			return err
		}
	}
	began := time.Now()
	b.wantErr(b.proceed(call("c"), call("d")), nil)
	if len(ends) != 2 || ends[0].Before(began.Add(54*time.Minute)) || ends[1].After(time.Now().Add(54*time.Minute)) || !ends[1].After(ends[0]) {
		t.Errorf("begun at %v, the calls end at %v", began, ends)
	}
}

func TestCallsMayUseAllConnectionsOfTheirOwnPool(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{}, pgtest.MaxConns(2))
	const calls = 3
	store := b.storeOn(b.pool, idempotency.Config{CallPool: b.anotherPool(pgtest.MaxConns(calls))})
	inside, leave, ended := make(chan struct{}, calls), make(chan struct{}), make(chan error, calls)
	p := procedureOf(func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) { inside <- struct{}{}; <-leave; return 1, nil })
		return err
	})
	release := sync.OnceFunc(func() { close(leave) })
	defer release()
	for i := range calls {
		go func() {
			_, _, err := p.Do(context.Background(), store, idempotency.Key{Scope: "s", ID: fmt.Sprint(i)}, 7)
			ended <- err
		}()
	}
	for range calls {
		receive(b, inside)
	}
	release()
	for range calls {
		b.wantErr(receive(b, ended), nil)
	}
}

func TestErrorOfAProcedureSaysWhenItsLastStepCouldNotBeRecorded(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	store, proxy := b.through(idempotency.Config{})
	opens := bound("insert into idempotency_operations")
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if opens(m) {
			return pgproxy.Drop
		}
		return pgproxy.Pass
	})
	_, _, err := procedureOf(ok("a"), func(context.Context, *idempotency.Op) error { return errNoAnswer }).Do(t.Context(), store, b.key, 7)
	b.wantErr(err, errNoAnswer)
	if err.Error() == errNoAnswer.Error() {
		t.Error("the step is not recorded, and the error does not say so: ", err)
	}
	b.charged(0)
}

// Somebody has begun it anew meanwhile, whom the lock has not kept from it.
func TestResultOfAnOperationIsNotRecordedForAnotherOne(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	calls := 0
	b.wantErr(b.proceed(ok("a"), func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) {
			if calls++; calls == 1 {
				b.exec("update idempotency_operations set number = gen_random_uuid()")
			}
			return 1, nil
		})
		return err
	}), nil)
	if calls != 2 {
		t.Errorf("%d calls, want one of each operation", calls)
	}
	b.charged(1)
}

// The lock was another attempt's when the key was found, and is free when it is asked for.
func TestOperationThatEndsWhileItIsLookedAtIsReplayed(t *testing.T) {
	onOneServer(t, "the lock is taken by another statement")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	inside, leave := make(chan struct{}), make(chan struct{})
	p := procedureOf(ok("a"), func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) { close(inside); <-leave; return 1, nil })
		return err
	})
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, _, err := p.Do(context.Background(), b.store, b.key, 7)
		first <- err
	}()
	receive(b, inside)
	store, proxy := b.through(idempotency.Config{})
	held, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	asks := bound("select pg_try_advisory_xact_lock(")
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if asks(m) {
			once.Do(func() { close(held); <-release })
		}
		return pgproxy.Pass
	})
	go func() {
		_, replayed, err := p.Do(context.Background(), store, b.key, 7)
		if err == nil && !replayed {
			err = errors.New("it was not replayed")
		}
		second <- err
	}()
	receive(b, held)
	close(leave)
	b.wantErr(receive(b, first), nil)
	close(release)
	b.wantErr(receive(b, second), nil)
	b.charged(1)
}

func TestEachStepHasTheTransactionsOptions(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{TxOptions: pgx.TxOptions{IsoLevel: pgx.Serializable}})
	var levels []string
	level := func(name string) part {
		return func(ctx context.Context, op *idempotency.Op) error {
			got, err := idempotency.Step(ctx, op, name, func(ctx context.Context, tx pgx.Tx) (level string, err error) {
				err = tx.QueryRow(ctx, "show transaction_isolation").Scan(&level)
				return level, err
			})
			levels = append(levels, got)
			return err
		}
	}
	var calls atomic.Int64
	b.wantErr(b.proceed(level("a"), level("b"), answers("c", &calls), level("d")), nil)
	if fmt.Sprint(levels) != "[serializable serializable serializable]" {
		t.Error(levels)
	}
}

func TestRoleWithoutTheGrantsThatALaterStepLeavesIsNamed(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	role := b.aRole()
	b.exec("grant select, insert, update, delete on idempotency_operations to " + pgx.Identifier{role}.Sanitize())
	runs := 0
	err := b.proceed(ok("a"), ok("b"), func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Step(ctx, op, "c", func(ctx context.Context, tx pgx.Tx) (int, error) {
			runs++
			_, err := tx.Exec(ctx, "set local role "+pgx.Identifier{role}.Sanitize())
			return 1, err
		})
		return err
	})
	if sqlState(err) != "42501" || !strings.Contains(fmt.Sprint(err), fmt.Sprintf("%q", role)) || runs != 2 {
		t.Errorf("%d runs, %v", runs, err)
	}
	b.charged(2)
}

// The transaction of the COMMIT has the key until that is done: it is no other call's.
func TestProcedureWaitsForItsOwnCommitUnderWay(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	d.exec(`create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(0.5); return null; end $$`)
	d.exec(`create constraint trigger slow after insert on charges deferrable initially deferred for each row execute function slow()`)
	d.store, d.proxy = d.through(idempotency.Config{Wait: -1})
	hit := d.once(commitComplete(), pgproxy.CutClient)
	go func() {
		receive(d, hit)
		d.eventually("the step is recorded", func() bool { return query[int](d.bundle, "select count(*) from idempotency_operations") == 1 })
		d.proxy.CutAll() // now the server notices
	}()
	var calls atomic.Int64
	d.wantErr(d.proceed(ok("a"), answers("c", &calls)), nil)
	if calls.Load() != 1 {
		t.Errorf("%d calls", calls.Load())
	}
	d.charged(1)
}
