package idemotel

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// The attributes of our own.
const (
	outcomeKey = attribute.Key("idempotency.outcome")
	inDoubtKey = attribute.Key("idempotency.in_doubt")
	runsKey    = attribute.Key("idempotency.runs")
	waitedKey  = attribute.Key("idempotency.waited") // seconds
	deletedKey = attribute.Key("idempotency.deleted")
	nameKey    = attribute.Key("idempotency.name")
	scopeKey   = attribute.Key("idempotency.key.scope")
	idKey      = attribute.Key("idempotency.key.id")
)

// start names the span as the conventions name that of a database call, but it is
// not of the kind "client": the function's own business happens in it, database
// calls of that kind among it. A procedure, a step and a call get their own name when
// they end: Config.Trace is not told.
func (t *telemetry) start(ctx context.Context, o *operation) (context.Context, trace.Span) {
	return t.tracer.Start(ctx, o.spanName, o.start...)
}

// finish says how the operation went and ends its span, whatever happens.
func (t *telemetry) finish(span trace.Span, event idempotency.Event, at time.Time) {
	defer guard()
	defer span.End(trace.WithTimestamp(at))
	if !span.IsRecording() {
		return
	}
	if event.Name != "" {
		span.SetName(event.Operation + " " + event.Name)
	}
	span.SetAttributes(spanAttributes(event)...)
	if failed(event) {
		span.SetAttributes(errorAttributes(event.Err)...)
		span.SetStatus(codes.Error, t.describe(event))
	}
	if event.Outcome == "replayed" {
		linkTo(event.Origin, span)
	}
}

func spanAttributes(event idempotency.Event) []attribute.KeyValue {
	attributes := []attribute.KeyValue{outcomeKey.String(event.Outcome)}
	switch {
	case isCall(event.Operation):
		attributes = append(attributes, runsKey.Int(event.Runs), waitedKey.Float64(event.Waited.Seconds()))
	case event.Operation == "Delete", event.Operation == "Purge", event.Operation == "Discard":
		attributes = append(attributes, deletedKey.Int64(event.Deleted))
	}
	if event.Name != "" {
		attributes = append(attributes, nameKey.String(event.Name))
	}
	if event.InDoubt != "" {
		attributes = append(attributes, inDoubtKey.String(event.InDoubt))
	}
	if event.Key.Scope != "" { // only with ObserveKeys
		attributes = append(attributes, scopeKey.String(event.Key.Scope))
	}
	if event.Key.ID != "" {
		attributes = append(attributes, idKey.String(event.Key.ID))
	}
	return attributes
}

// failed: that there is no result is an answer, not a failure.
func failed(event idempotency.Event) bool {
	return event.Err != nil && event.Outcome != "not_found"
}

func errorAttributes(err error) []attribute.KeyValue {
	attributes := []attribute.KeyValue{errorType(err)}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		attributes = append(attributes, semconv.DBResponseStatusCode(pgErr.Code))
	}
	return attributes
}

func (t *telemetry) describe(event idempotency.Event) string {
	if t.errorText {
		return event.Err.Error()
	}
	return event.Outcome
}
