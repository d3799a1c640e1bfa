package idemotel_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemotel"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

type hookKey struct{}

func TestHooksThatWereThereAreCalledAndSeeTheSpan(t *testing.T) {
	t.Parallel()
	var seen []string
	b := setup(t, idempotency.Config{
		Trace: func(ctx context.Context, operation string) (context.Context, string) {
			return context.WithValue(ctx, hookKey{}, "mine"), ""
		},
		Observe: func(ctx context.Context, e idempotency.Event) {
			seen = append(seen, fmt.Sprintf("%v %s %v", ctx.Value(hookKey{}), e.Outcome, trace.SpanFromContext(ctx).IsRecording()))
		},
	})
	b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		seen = append(seen, fmt.Sprint(ctx.Value(hookKey{})))
		return charge(ctx, tx)
	})
	if got := strings.Join(seen, ", "); got != "mine, mine executed true" {
		t.Error(got)
	}
	b.executes()
	if len(b.last().Links) != 1 {
		t.Error("the replay has no link")
	}
}

func TestOriginOfAHookThatWasThereIsKept(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{
		Trace: func(ctx context.Context, _ string) (context.Context, string) { return ctx, "request 7" },
	})
	b.executes()
	if rec, err := b.store.Get(t.Context(), b.key); err != nil || rec.Origin != "request 7" {
		t.Errorf("%+v, %v", rec, err)
	}
}

func TestHookThatPanicsLeavesNoSpanOpen(t *testing.T) {
	t.Parallel()
	for _, cfg := range []idempotency.Config{
		{Trace: func(context.Context, string) (context.Context, string) { panic("mine") }},
		{Observe: func(context.Context, idempotency.Event) { panic("mine") }},
	} {
		b := setup(t, cfg)
		func() {
			defer func() {
				if p := recover(); p != "mine" {
					t.Errorf("panic %v", p)
				}
			}()
			b.do(charge)
		}()
	}
}

func TestTwoInstrumentationsEndTheirOwnSpans(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	cfg, err := idemotel.Instrument(idempotency.Config{}, b.to)
	if err != nil {
		t.Fatal(err)
	}
	b.store = b.storeOn(b.pool, cfg)
	b.executes()
	spans := b.spans.GetSpans()
	if len(spans) != 2 || spans[0].Parent.SpanID() != spans[1].SpanContext.SpanID() && spans[1].Parent.SpanID() != spans[0].SpanContext.SpanID() {
		t.Errorf("%v", spans)
	}
}

func TestCallInsideAFunctionEndsItsOwnSpan(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		_, _, err := idempotency.DoTx(ctx, b.store, tx, idempotency.Key{Scope: "inner", ID: "1"}, charge)
		return 1, err
	})
	spans := b.spans.GetSpans()
	if err != nil || len(spans) != 2 || spans[0].Parent.SpanID() != spans[1].SpanContext.SpanID() {
		t.Errorf("%v, %v", err, spans)
	}
}

// A panicking processor panics when a span starts, or when it ends.
type panicking struct{ atStart, atEnd bool }

func (p panicking) OnStart(context.Context, sdktrace.ReadWriteSpan) {
	if p.atStart {
		panic("telemetry")
	}
}

func (p panicking) OnEnd(sdktrace.ReadOnlySpan) {
	if p.atEnd {
		panic("telemetry")
	}
}
func (panicking) Shutdown(context.Context) error   { return nil }
func (panicking) ForceFlush(context.Context) error { return nil }

type panickingMeters struct{ metricnoop.MeterProvider }

func (panickingMeters) Meter(string, ...metric.MeterOption) metric.Meter { return panickingMeter{} }

type panickingMeter struct{ metricnoop.Meter }

func (panickingMeter) Float64Histogram(string, ...metric.Float64HistogramOption) (metric.Float64Histogram, error) {
	return panickingHistogram{}, nil
}

func (panickingMeter) Int64UpDownCounter(string, ...metric.Int64UpDownCounterOption) (metric.Int64UpDownCounter, error) {
	return panickingUpDownCounter{}, nil
}

type panickingHistogram struct{ metricnoop.Float64Histogram }

func (panickingHistogram) Record(context.Context, float64, ...metric.RecordOption) {
	panic("telemetry")
}

type panickingUpDownCounter struct{ metricnoop.Int64UpDownCounter }

func (panickingUpDownCounter) Add(context.Context, int64, ...metric.AddOption) { panic("telemetry") }

func TestTelemetryThatPanicsFailsNoOperation(t *testing.T) {
	t.Parallel()
	for _, to := range []idemotel.Config{
		{TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(panicking{atStart: true}))},
		{TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(panicking{atEnd: true}))},
		{MeterProvider: panickingMeters{}},
	} {
		b := setup(t, idempotency.Config{})
		if to.MeterProvider != nil { // whose spans end all the same
			to.TracerProvider = b.to.TracerProvider
		}
		cfg, err := idemotel.Instrument(idempotency.Config{}, to)
		if err != nil {
			t.Fatal(err)
		}
		b.store = plain(t, b.pool, cfg)
		if err := b.do(fails(errRefused)); err != errRefused {
			t.Errorf("got %v", err)
		}
		func() {
			defer func() {
				if p := recover(); p != "the function's own" {
					t.Errorf("panic %v", p)
				}
			}()
			b.do(func(context.Context, pgx.Tx) (int, error) { panic("the function's own") })
		}()
		b.executes()
		b.executes()
		if n := len(b.spans.GetSpans()); to.MeterProvider != nil && n != 4 {
			t.Errorf("%d spans of 4 calls", n)
		}
	}
}

func TestFunctionsPanicReachesTheCaller(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	func() {
		defer func() {
			if p := recover(); p != "mine" {
				t.Errorf("panic %v", p)
			}
		}()
		b.do(func(context.Context, pgx.Tx) (int, error) { panic("mine") })
	}()
	b.executes()
	b.last().has("idempotency.outcome=executed")
}

// everything is all that was exported, as text.
func (b *bundle) everything() (spans, metrics string) {
	b.Helper()
	s, err := json.Marshal(b.spans.GetSpans())
	if err != nil {
		b.Fatal(err)
	}
	m, err := json.Marshal(b.collect())
	if err != nil {
		b.Fatal(err)
	}
	return string(s), string(m)
}

func TestNoTextOfAKeyIsExportedUnlessAsked(t *testing.T) {
	t.Parallel()
	for _, asked := range []bool{false, true} {
		b := setup(t, idempotency.Config{ObserveKeys: asked, Wait: -1})
		b.key = idempotency.Key{Scope: "sesame-scope", ID: "sesame-id"}
		every := func() {
			b.do(fails(fmt.Errorf("charging %s for %s", b.key.ID, b.key.Scope)))
			b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
				_, err := tx.Exec(ctx, `select $1::text::int`, b.key.ID)
				return 0, err
			})
			b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
				idempotency.Do(ctx, b.store, b.key, charge) // in progress
				return charge(ctx, tx)
			})
			b.do(charge)
			func() {
				defer func() { recover() }()
				other := b.key
				other.ID += "-2"
				idempotency.Do(t.Context(), b.store, other, func(context.Context, pgx.Tx) (int, error) { panic(other.ID) })
			}()
			pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error {
				_, _, err := idempotency.DoTx(t.Context(), b.store, tx, b.key, charge)
				return err
			})
			b.store.Get(t.Context(), b.key)
			for range b.store.All(t.Context(), b.key.Scope) {
			}
			reused := b.key
			reused.Fingerprint = idempotency.FingerprintOf([]byte("another"))
			idempotency.Do(t.Context(), b.store, reused, charge)
			b.store.Delete(t.Context(), b.key)
			b.store.Delete(t.Context(), b.key)
			b.store.Purge(t.Context())
		}
		every()
		b.key.ID += strings.Repeat("x", 256) // invalid
		every()
		spans, metrics := b.everything()
		if len(spans) < 1000 || len(metrics) < 1000 {
			t.Fatalf("looked in %d and %d bytes only", len(spans), len(metrics))
		}
		if strings.Contains(spans, "sesame") != asked {
			t.Errorf("asked %v: %s", asked, spans)
		}
		if strings.Contains(metrics, "sesame") {
			t.Errorf("asked %v: %s", asked, metrics)
		}
	}
}

func TestKeysThatWereAskedForAreOnSpans(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{ObserveKeys: true})
	b.executes()
	b.last().has("idempotency.key.scope=customer-1", "idempotency.key.id=key-1")
	b.store.Purge(t.Context())
	b.last().has("idempotency.key.scope=", "idempotency.key.id=")
}

// Not parallel: it sets the global provider.
func TestDefaultsAreTheGlobalProvidersAlsoWhenTheyAreSetLater(t *testing.T) {
	b := setup(t, idempotency.Config{})
	cfg, err := idemotel.Instrument(idempotency.Config{}, idemotel.Config{})
	if err != nil {
		t.Fatal(err)
	}
	spans := tracetest.NewInMemoryExporter()
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)))
	otel.SetMeterProvider(b.to.MeterProvider)
	b.store = plain(t, b.pool, cfg)
	b.executes()
	if got := spans.GetSpans(); len(got) != 1 || got[0].Name != "Do idempotency_keys" {
		t.Errorf("%v", got)
	}
	if n := b.sum("idempotency.runs"); n != 1 {
		t.Errorf("%d runs", n)
	}
}

func TestWithoutAProviderNothingIsKept(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	cfg, err := idemotel.Instrument(idempotency.Config{}, idemotel.Config{TracerProvider: noop.NewTracerProvider()})
	if err != nil {
		t.Fatal(err)
	}
	b.store = plain(t, b.pool, cfg)
	b.executes()
	if rec, err := b.store.Get(t.Context(), b.key); err != nil || rec.Origin != "" {
		t.Errorf("%+v, %v", rec, err)
	}
	b.executes()
	if err := b.do(fails(errors.New("not run"))); err != nil {
		t.Error(err)
	}
}

func TestOperationThatIsNotKnownYetIsReportedToo(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	cfg, err := idemotel.Instrument(idempotency.Config{}, b.to)
	if err != nil {
		t.Fatal(err)
	}
	ctx, origin := cfg.Trace(t.Context(), "Later")
	cfg.Observe(ctx, idempotency.Event{Operation: "Later", Outcome: "postponed"})
	if b.last().Name != "Later idempotency_keys" || origin == "" {
		t.Errorf("%q, origin %q", b.last().Name, origin)
	}
	if n, _ := b.count("idempotency.operation.duration", "idempotency.outcome=postponed"); n != 1 {
		t.Errorf("%d", n)
	}
}
