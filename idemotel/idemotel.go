// Package idemotel reports what a [idempotency.Store] does to OpenTelemetry: a
// span for each operation, of which the function's own spans are children, a link
// from each replay to the call that has executed, and metrics.
//
// For most uses, [Instrument] is all you need:
//
//	cfg, err := idemotel.Instrument(idempotency.Config{}, idemotel.Config{})
//	...
//	store, err := idempotency.NewWithConfig(pool, cfg)
//
// Nothing of it holds the text of a key, unless [idempotency.Config] says
// ObserveKeys, or that of an error, unless [Config] says ErrorText.
package idemotel

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/pgidem/idempotency"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

const scope = "github.com/pgidem/idempotency/idemotel"

// Config is where to report to. The zero value of each field means its default.
type Config struct {
	// TracerProvider makes the spans. Default: the global one.
	TracerProvider trace.TracerProvider

	// MeterProvider makes the metrics. Default: the global one.
	MeterProvider metric.MeterProvider

	// Attributes are put on every span and every metric, for example to tell
	// the databases of two Stores apart (db.namespace). Default: none.
	Attributes []attribute.KeyValue

	// ErrorText puts the text of an error into the status of its span. The
	// errors are those of your functions, too: mind what they say, such as a
	// key. Default: only the kind of the error, in error.type.
	ErrorText bool
}

// Instrument returns cfg with hooks that report to OpenTelemetry; the hooks that
// cfg has already are called, too. What is set in the returned Config afterwards
// replaces them, so set Observe and Trace before.
//
// The origin that is kept with a result is a W3C traceparent, unless the Trace of
// cfg names another: then replays have no link.
//
// A telemetry that fails never fails an operation: even its panics go to
// [otel.Handle]. The error says that the MeterProvider has refused an instrument.
func Instrument(cfg idempotency.Config, to Config) (idempotency.Config, error) {
	if to.TracerProvider == nil {
		to.TracerProvider = otel.GetTracerProvider()
	}
	if to.MeterProvider == nil {
		to.MeterProvider = otel.GetMeterProvider()
	}
	t := &telemetry{
		inner:      cfg,
		errorText:  to.ErrorText,
		tracer:     to.TracerProvider.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL)),
		operations: newOperations(tableOf(cfg.Schema), to.Attributes),
	}
	meter := to.MeterProvider.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL))
	var err error
	if t.instruments, err = newInstruments(meter); err != nil {
		return cfg, fmt.Errorf("idemotel: %w", err)
	}
	t.zero()
	cfg.Trace, cfg.Observe = t.trace, t.observe
	return cfg, nil
}

func tableOf(schema string) string {
	const table = "idempotency_keys"
	if schema == "" {
		return table
	}
	return schema + "." + table
}

// telemetry is the hooks of one Config.
type telemetry struct {
	inner      idempotency.Config // whose hooks were there before
	errorText  bool
	tracer     trace.Tracer
	operations operations
	instruments
}

// trace is idempotency.Config.Trace. The hook that was there before comes first:
// should it panic, then no span is left open.
func (t *telemetry) trace(ctx context.Context, operation string) (context.Context, string) {
	origin := ""
	if t.inner.Trace != nil {
		ctx, origin = t.inner.Trace(ctx, operation)
	}
	ctx, ours := t.begin(ctx, t.operations.named(operation))
	return ctx, cmp.Or(origin, ours)
}

// observe is idempotency.Config.Observe. The hook that was there before is given
// the open span, and may panic.
func (t *telemetry) observe(ctx context.Context, event idempotency.Event) {
	defer t.end(ctx, event, time.Now())
	if t.inner.Observe != nil {
		t.inner.Observe(ctx, event)
	}
}

// begin starts the operation's span. Its context is marked with t, so that two
// instrumentations of one Store each find their own.
func (t *telemetry) begin(ctx context.Context, o *operation) (begun context.Context, origin string) {
	begun = ctx
	defer guard()
	ctx, span := t.start(ctx, o)
	begun = context.WithValue(ctx, t, span)
	t.active.Add(ctx, 1, o.plain.add...)
	return begun, originOf(ctx)
}

func (t *telemetry) end(ctx context.Context, event idempotency.Event, at time.Time) {
	o := t.operations.named(event.Operation)
	if span, begun := ctx.Value(t).(trace.Span); begun {
		defer t.finish(span, event, at)
		defer guard()
		t.active.Add(ctx, -1, o.plain.add...)
	}
	defer guard()
	t.measure(ctx, o, event)
}

// guard keeps a panic of the telemetry from what it reports on.
func guard() {
	if p := recover(); p != nil {
		otel.Handle(fmt.Errorf("idemotel: panic: %v", p))
	}
}
