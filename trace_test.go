package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

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
	<-k.begun
	second := b.start(context.WithValue(t.Context(), tracedKey{}, "second"), b.store, k.charge(b.key.ID, 2))
	b.stays(second)
	k.goOn <- nil
	b.wantOutcome(<-first, outcome{1, false, nil})
	b.wantOutcome(<-second, outcome{1, true, nil})
	for range 2 {
		if got := <-origins; got != "first" {
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
