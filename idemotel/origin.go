package idemotel

import (
	"context"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// A traceparent carries the one field that is kept as a result's origin. The
// global propagator is not asked: what an earlier version of the program has
// stored must stay readable, however that is configured.
type traceparent string

func (p *traceparent) Get(field string) string {
	if field != "traceparent" {
		return ""
	}
	return string(*p)
}

func (p *traceparent) Set(field, value string) {
	if field == "traceparent" {
		*p = traceparent(value)
	}
}

func (p *traceparent) Keys() []string { return []string{"traceparent"} }

func originOf(ctx context.Context) string {
	var p traceparent
	propagation.TraceContext{}.Inject(ctx, &p)
	return string(p)
}

// linkTo links a replay's span to that of the call that has executed. A call in
// doubt replays its own result: a link to itself would say nothing.
func linkTo(origin string, span trace.Span) {
	p := traceparent(origin)
	ctx := propagation.TraceContext{}.Extract(context.Background(), &p)
	executed := trace.SpanContextFromContext(ctx)
	if executed.IsValid() && executed.SpanID() != span.SpanContext().SpanID() {
		span.AddLink(trace.Link{SpanContext: executed})
	}
}
