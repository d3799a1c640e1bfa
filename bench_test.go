package idempotency_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

var benchResult = strings.Repeat("x", 298)

func benchCharge(id string, i int) func(context.Context, pgx.Tx) (string, error) {
	return func(ctx context.Context, tx pgx.Tx) (string, error) {
		_, err := charge(id, i)(ctx, tx)
		return benchResult, err
	}
}

// benchStatement is benchCharge as one statement.
const benchStatement = `insert into charges (key, amount) values ($1, $2) returning repeat('x', 298)`

func benchID(i int) string { return fmt.Sprintf("018f4d3c-0000-7000-8000-%012d", i) }

// BenchmarkBareTransaction is what the others are to be compared with.
func BenchmarkBareTransaction(b *testing.B) {
	s := setup(b, idempotency.Config{})
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i++
		err := pgx.BeginFunc(b.Context(), s.pool, func(tx pgx.Tx) error {
			_, err := benchCharge(benchID(i), i)(b.Context(), tx)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDoFirstCall(b *testing.B) {
	s := setup(b, idempotency.Config{})
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i++
		key := idempotency.Key{Scope: "customer-1", ID: benchID(i)}
		if _, _, err := idempotency.Do(b.Context(), s.store, key, benchCharge(key.ID, i)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDoReplay(b *testing.B) {
	s := setup(b, idempotency.Config{})
	key := idempotency.Key{Scope: "customer-1", ID: benchID(1)}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := idempotency.Do(b.Context(), s.store, key, benchCharge(key.ID, 1)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDoDuplicates is 100 callers of one key at a time, the last of which
// is a first call.
func BenchmarkDoDuplicates(b *testing.B) {
	s := setup(b, idempotency.Config{})
	i := 0
	for b.Loop() {
		i++
		storm := *s
		storm.key.ID = benchID(i)
		var ends []<-chan outcome
		for range 100 {
			ends = append(ends, storm.start(b.Context(), storm.store, charge(storm.key.ID, i)))
		}
		for _, end := range ends {
			if got := <-end; got.err != nil || got.value != i {
				b.Fatalf("got %+v", got)
			}
		}
	}
}
