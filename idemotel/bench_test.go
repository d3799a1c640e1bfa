package idemotel_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemotel"
	"github.com/pgidem/idempotency/internal/pgtest"
	"go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// benchConfig reports to the SDK as a program would, to an exporter that discards.
func benchConfig(b *testing.B) idempotency.Config {
	b.Helper()
	tracers := sdktrace.NewTracerProvider(sdktrace.WithBatcher(tracetest.NewNoopExporter()))
	meters := metric.NewMeterProvider(metric.WithReader(metric.NewManualReader()))
	b.Cleanup(func() {
		tracers.Shutdown(context.Background())
		meters.Shutdown(context.Background())
	})
	cfg, err := idemotel.Instrument(idempotency.Config{}, idemotel.Config{TracerProvider: tracers, MeterProvider: meters})
	if err != nil {
		b.Fatal(err)
	}
	return cfg
}

// overhead runs calls without telemetry, with it, and without it again, in any
// order, and reports the medians of the pairs' ratios. The last is the noise.
func overhead(b *testing.B, id func(i int) string) {
	pool := pgtest.New(b)
	if _, err := pool.Exec(b.Context(), `create table charges (amount int not null)`); err != nil {
		b.Fatal(err)
	}
	stores := []*idempotency.Store{
		plain(b, pool, idempotency.Config{}),
		plain(b, pool, benchConfig(b)),
		plain(b, pool, idempotency.Config{}),
	}
	var with, again []float64
	for i := 0; b.Loop(); i++ {
		var took [3]float64
		for _, at := range rand.Perm(len(stores)) {
			key := idempotency.Key{Scope: "customer-1", ID: id(i*len(stores) + at)}
			start := time.Now()
			if _, _, err := idempotency.Do(b.Context(), stores[at], key, charge); err != nil {
				b.Fatal(err)
			}
			took[at] = float64(time.Since(start))
		}
		with = append(with, took[1]/took[0])
		again = append(again, took[2]/took[0])
	}
	b.ReportMetric(median(with), "with/without")
	b.ReportMetric(median(again), "without/without")
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

func BenchmarkOverheadOnAFirstCall(b *testing.B) {
	overhead(b, func(i int) string { return fmt.Sprintf("018f4d3c-0000-7000-8000-%012d", i) })
}

func BenchmarkOverheadOnAReplay(b *testing.B) {
	overhead(b, func(i int) string { return fmt.Sprintf("018f4d3c-0000-7000-8000-%012d", i%3) })
}

// BenchmarkHooks is the two hooks alone, without a database.
func BenchmarkHooks(b *testing.B) {
	cfg := benchConfig(b)
	ctx := b.Context()
	origin := ""
	event := idempotency.Event{Operation: "Do", Outcome: "executed", Runs: 1, Duration: time.Millisecond}
	b.ReportAllocs()
	for b.Loop() {
		ctx, o := cfg.Trace(ctx, "Do")
		origin = o
		cfg.Observe(ctx, event)
	}
	if origin == "" {
		b.Error("no origin")
	}
}
