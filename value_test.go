package idempotency_test

import (
	"context"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

func TestValuesReplayExactly(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	type item struct {
		Name string
		Tags []string
		Next *item
	}
	replaysEqual(b, "nil pointer", (*item)(nil))
	replaysEqual(b, "nil any", any(nil))
	replaysEqual(b, "nil slice", []int(nil))
	replaysEqual(b, "empty slice", []int{})
	replaysEqual(b, "nil map", map[string]int(nil))
	replaysEqual(b, "empty map", map[string]int{})
	replaysEqual(b, "zero", 0)
	replaysEqual(b, "empty string", "")
	replaysEqual(b, "false", false)
	replaysEqual(b, "empty struct", struct{}{})
	replaysEqual(b, "largest", int64(math.MaxInt64))
	replaysEqual(b, "smallest", int64(math.MinInt64))
	replaysEqual(b, "float", math.SmallestNonzeroFloat64)
	replaysEqual(b, "bytes", []byte{0, 1, 255})
	replaysEqual(b, "unicode", "Zoë 🦆 \u0000 \u2028 <&> \\ \"")
	replaysEqual(b, "struct", item{Name: "a", Tags: []string{"x", ""}, Next: &item{Name: "b"}})
	replaysEqual(b, "a megabyte", strings.Repeat("x", 1<<20-2))
}

func replaysEqual[T any](b *bundle, name string, want T) {
	b.Helper()
	key := idempotency.Key{Scope: "values", ID: name}
	for i := range 2 {
		got, replayed, err := idempotency.Do(context.Background(), b.store, key, func(context.Context, pgx.Tx) (T, error) {
			return want, nil
		})
		if err != nil || replayed != (i == 1) || !reflect.DeepEqual(got, want) {
			b.Errorf("%s, call %d: %#v, replayed %v, %v; want %#v", name, i, got, replayed, err, want)
		}
	}
}

func TestCallersOfOneReplayDoNotShareMemory(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	one := func() []int {
		got, _, err := idempotency.Do(t.Context(), b.store, b.key, func(context.Context, pgx.Tx) ([]int, error) {
			return []int{1}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	one()[0] = 2
	one()[0] = 2
	if got := one(); got[0] != 1 {
		t.Errorf("got %v", got)
	}
}

func TestResultOverTheLimitIsErrTooLargeAndRollsBack(t *testing.T) {
	t.Parallel()
	for limit, cfg := range map[int]idempotency.Config{
		1 << 20: {},
		10:      {MaxResult: 10},
	} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			b := setup(t, cfg)
			_, _, err := idempotency.Do(t.Context(), b.store, b.key, func(ctx context.Context, tx pgx.Tx) (string, error) {
				_, err := charge(b.key.ID, 1)(ctx, tx)
				return strings.Repeat("x", limit-1), err // and two quotes
			})
			b.wantErr(err, idempotency.ErrTooLarge)
			b.effects(0)
			b.executes(7)
		})
	}
}

// oneWay can be written as JSON and not read.
type oneWay struct{ N int }

func (oneWay) UnmarshalJSON([]byte) error { return fmt.Errorf("not readable") }

func TestResultThatCannotBeReadBackFailsTheFirstCall(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	_, _, err := idempotency.Do(t.Context(), b.store, b.key, func(ctx context.Context, tx pgx.Tx) (*oneWay, error) {
		_, err := charge(b.key.ID, 1)(ctx, tx)
		return &oneWay{1}, err
	})
	b.wantErr(err, idempotency.ErrUndecodable)
	b.effects(0)
}

func TestRecordOfAnotherTypeIsErrUndecodableAndNeverASecondExecution(t *testing.T) {
	t.Parallel()
	var event idempotency.Event
	b := setup(t, idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) { event = e }})
	b.executes(1)
	_, _, err := idempotency.Do(t.Context(), b.store, b.key, func(ctx context.Context, tx pgx.Tx) ([]string, error) {
		_, err := charge(b.key.ID, 1)(ctx, tx)
		return nil, err
	})
	b.wantErr(err, idempotency.ErrUndecodable)
	b.wantErr(event.Err, idempotency.ErrUndecodable)
	b.replays(1)
	b.effects(1)
}
