package idemotel

import (
	"context"
	"errors"
	"slices"

	"github.com/pgidem/idempotency"
	"go.opentelemetry.io/otel/metric"
)

// bounds of the histograms, in seconds: from a replay on a near server to a
// commit that was in doubt for the whole of its bound.
var bounds = metric.WithExplicitBucketBoundaries(
	.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60)

type instruments struct {
	duration metric.Float64Histogram
	wait     metric.Float64Histogram
	active   metric.Int64UpDownCounter
	runs     metric.Int64Counter
	retries  metric.Int64Counter
	inDoubt  metric.Int64Counter
	deleted  metric.Int64Counter
}

func newInstruments(meter metric.Meter) (instruments, error) {
	var failures [7]error
	i := instruments{}
	i.duration, failures[0] = meter.Float64Histogram("idempotency.operation.duration", metric.WithUnit("s"), bounds,
		metric.WithDescription("Duration of the operations, waiting included."))
	i.wait, failures[1] = meter.Float64Histogram("idempotency.wait.duration", metric.WithUnit("s"), bounds,
		metric.WithDescription("The part of a call's duration that it spent on waiting for another call with its key."))
	i.active, failures[2] = meter.Int64UpDownCounter("idempotency.active_operations", metric.WithUnit("{operation}"),
		metric.WithDescription("Operations under way."))
	i.runs, failures[3] = meter.Int64Counter("idempotency.runs", metric.WithUnit("{run}"),
		metric.WithDescription("How often functions were run."))
	i.retries, failures[4] = meter.Int64Counter("idempotency.retries", metric.WithUnit("{retry}"),
		metric.WithDescription("Runs after the first of a call: serialization failures, deadlocks, lost connections."))
	i.inDoubt, failures[5] = meter.Int64Counter("idempotency.commits.in_doubt", metric.WithUnit("{commit}"),
		metric.WithDescription("Commits whose answer was lost, by what was found out about them."))
	i.deleted, failures[6] = meter.Int64Counter("idempotency.records.deleted", metric.WithUnit("{record}"),
		metric.WithDescription("Records removed by Delete and Purge."))
	return i, errors.Join(failures[:]...)
}

// calls are the operations that run something.
var calls = []string{"Do", "DoTx", "QueryRow", "Query", "Procedure"}

func isCall(operation string) bool { return slices.Contains(calls, operation) }

// zero begins the counters of rare things at 0: a rate, and an alert on it, does
// not see the first event of a counter that begins with it.
func (t *telemetry) zero() {
	defer guard()
	ctx := context.Background()
	for _, name := range calls {
		o := t.operations.named(name)
		t.runs.Add(ctx, 0, o.plain.add...)
		t.retries.Add(ctx, 0, o.plain.add...)
	}
	for _, found := range []string{"committed", "aborted", "unknown"} {
		t.inDoubt.Add(ctx, 0, t.operations.named("Do").with(inDoubtKey.String(found)).add...)
	}
	for _, name := range []string{"Delete", "Purge"} {
		t.deleted.Add(ctx, 0, t.operations.named(name).plain.add...)
	}
}

func (t *telemetry) measure(ctx context.Context, o *operation, event idempotency.Event) {
	t.duration.Record(ctx, event.Duration.Seconds(), o.of(event).record...)
	switch {
	case isCall(event.Operation):
		t.measureCall(ctx, o, event)
	case event.Operation == "Delete", event.Operation == "Purge", event.Operation == "Discard":
		t.deleted.Add(ctx, event.Deleted, o.plain.add...)
	}
}

func (t *telemetry) measureCall(ctx context.Context, o *operation, event idempotency.Event) {
	t.wait.Record(ctx, event.Waited.Seconds(), o.plain.record...)
	if event.Runs > 0 {
		t.runs.Add(ctx, int64(event.Runs), o.plain.add...)
		t.retries.Add(ctx, int64(event.Runs-1), o.plain.add...)
	}
	if event.InDoubt != "" {
		t.inDoubt.Add(ctx, 1, o.with(inDoubtKey.String(event.InDoubt)).add...)
	}
}
