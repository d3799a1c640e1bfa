package idemotel

import (
	"slices"

	"github.com/pgidem/idempotency"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// labels are attributes as the instruments take them.
type labels struct {
	add    []metric.AddOption
	record []metric.RecordOption
}

func newLabels(attributes ...attribute.KeyValue) labels {
	set := metric.WithAttributeSet(attribute.NewSet(attributes...))
	return labels{add: []metric.AddOption{set}, record: []metric.RecordOption{set}}
}

// An operation has ready what is the same for all of its kind: to make an
// attribute set takes longer than to count.
type operation struct {
	spanName string
	start    []trace.SpanStartOption
	plain    labels
	outcomes map[string]labels // of those that are no failures
	common   []attribute.KeyValue
}

func newOperation(name, table string, common []attribute.KeyValue) *operation {
	common = append(common[:len(common):len(common)],
		semconv.DBSystemNamePostgreSQL, semconv.DBCollectionName(table), semconv.DBOperationName(name))
	o := &operation{
		spanName: name + " " + table,
		start:    []trace.SpanStartOption{trace.WithAttributes(common...)},
		plain:    newLabels(common...),
		outcomes: make(map[string]labels),
		common:   common,
	}
	for _, outcome := range []string{"executed", "replayed", "done", "not_found"} {
		o.outcomes[outcome] = o.with(outcomeKey.String(outcome))
	}
	return o
}

func (o *operation) with(more ...attribute.KeyValue) labels {
	return newLabels(append(o.common[:len(o.common):len(o.common)], more...)...)
}

// of is the labels of what has become of an operation.
func (o *operation) of(event idempotency.Event) labels {
	outcome := outcomeKey.String(event.Outcome)
	if failed(event) {
		return o.with(outcome, errorType(event.Err))
	}
	if ready, ok := o.outcomes[event.Outcome]; ok {
		return ready
	}
	return o.with(outcome)
}

// operations are those of a Store.
type operations struct {
	table  string
	common []attribute.KeyValue
	ready  map[string]*operation
}

func newOperations(table string, common []attribute.KeyValue) operations {
	all := operations{table, slices.Clone(common), make(map[string]*operation)}
	for _, name := range append([]string{"Step", "Call", "Get", "All", "Delete", "Purge"}, calls...) {
		all.ready[name] = all.named(name)
	}
	return all
}

// named makes those that a later version of the Store has.
func (all operations) named(name string) *operation {
	if o, ok := all.ready[name]; ok {
		return o
	}
	return newOperation(name, all.table, all.common)
}
