package idemotel_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemotel"
	"github.com/pgidem/idempotency/migrations"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// A call and its retry: two spans, the second with a link to the first.
func ExampleInstrument() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	if err := migrations.Up(ctx, pool, "idemotel_example"); err != nil {
		log.Fatal(err)
	}
	defer pool.Exec(ctx, "drop schema idemotel_example cascade")

	spans := tracetest.NewInMemoryExporter() // yours sends them somewhere
	cfg, err := idemotel.Instrument(idempotency.Config{Schema: "idemotel_example"}, idemotel.Config{
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)), // or leave it out, for the global one
	})
	if err != nil {
		log.Fatal(err)
	}
	store, err := idempotency.NewWithConfig(pool, cfg)
	if err != nil {
		log.Fatal(err)
	}
	for range 2 {
		_, _, err := idempotency.Do(ctx, store, idempotency.Key{Scope: "customer-7", ID: "charge/order-1"},
			func(context.Context, pgx.Tx) (string, error) { return "charged", nil })
		if err != nil {
			log.Fatal(err)
		}
	}
	executed := spans.GetSpans()[0]
	for _, span := range spans.GetSpans() {
		fmt.Println(span.Name)
		for _, link := range span.Links {
			fmt.Println("  replays the first:", link.SpanContext.SpanID() == executed.SpanContext.SpanID())
		}
	}
	// Output:
	// Do idemotel_example.idempotency_keys
	// Do idemotel_example.idempotency_keys
	//   replays the first: true
}
