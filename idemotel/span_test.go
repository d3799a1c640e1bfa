package idemotel_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

func TestFunctionsSpansAreChildrenOfTheOperations(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	tracer := b.to.TracerProvider.Tracer("app")
	ctx, request := tracer.Start(t.Context(), "request")
	_, _, err := idempotency.Do(ctx, b.store, b.key, func(ctx context.Context, tx pgx.Tx) (int, error) {
		ctx, business := tracer.Start(ctx, "business")
		defer business.End()
		return charge(ctx, tx)
	})
	request.End()
	if err != nil {
		t.Fatal(err)
	}
	spans := b.spans.GetSpans() // in the order of their ends
	if len(spans) != 3 {
		t.Fatalf("%d spans", len(spans))
	}
	business, do := spans[0], spans[1]
	if business.Parent.SpanID() != do.SpanContext.SpanID() || do.Parent.SpanID() != request.SpanContext().SpanID() {
		t.Errorf("business in %v, Do in %v", business.Parent, do.Parent)
	}
	if do.StartTime.After(business.StartTime) || do.EndTime.Before(business.EndTime) {
		t.Errorf("Do from %v to %v, business from %v to %v", do.StartTime, do.EndTime, business.StartTime, business.EndTime)
	}
}

func TestSpansAreNamedByTheConventions(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes()
	do := b.last()
	if do.Name != "Do idempotency_keys" || do.SpanKind != trace.SpanKindInternal || len(do.Events) != 0 {
		t.Errorf("%q of kind %v with %v", do.Name, do.SpanKind, do.Events)
	}
	do.has("db.system.name=postgresql", "db.operation.name=Do", "db.collection.name=idempotency_keys",
		"idempotency.outcome=executed", "idempotency.runs=1", "idempotency.in_doubt=", "idempotency.deleted=")
	do.isNoError()

	b.store.Get(t.Context(), b.key)
	b.last().has("db.operation.name=Get", "idempotency.outcome=done", "idempotency.runs=")
	for range b.store.All(t.Context(), b.key.Scope) {
		break
	}
	b.last().has("db.operation.name=All", "idempotency.outcome=done")
	b.store.Delete(t.Context(), b.key)
	b.last().has("db.operation.name=Delete", "idempotency.deleted=1")
	b.store.Purge(t.Context())
	b.last().has("db.operation.name=Purge", "idempotency.deleted=0")
	b.last().isNoError()
}

func TestStepsAndCallsOfAProcedureAreItsChildrenByName(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	tracer := b.to.TracerProvider.Tracer("app")
	declines := false
	order := idempotency.Procedure[int, int]{Name: "order", Run: func(ctx context.Context, op *idempotency.Op, in int) (int, error) {
		if _, err := idempotency.Step(ctx, op, "create", charge); err != nil {
			return 0, err
		}
		return idempotency.Call(ctx, op, "pay", func(ctx context.Context, _ string) (int, error) {
			_, request := tracer.Start(ctx, "request")
			defer request.End()
			if declines {
				return 0, declined{"card 4711"}
			}
			return in, nil
		})
	}}
	names := func() (names []string) {
		t.Helper()
		spans := b.spans.GetSpans()
		byID := make(map[trace.SpanID]string)
		for _, s := range spans {
			byID[s.SpanContext.SpanID()] = s.Name
		}
		for _, s := range spans {
			names = append(names, s.Name+" in "+byID[s.Parent.SpanID()])
		}
		return names
	}
	for attempt, want := range [][]string{
		{"Step create in Procedure order", "request in Call pay", "Call pay in Procedure order", "Procedure order in "},
		{"request in Call pay", "Call pay in Procedure order", "Procedure order in "},
		{"Procedure order in "},
	} {
		b.spans.Reset()
		declines = attempt == 0
		if _, _, err := order.Do(t.Context(), b.store, b.key, 10); (err != nil) != (attempt == 0) {
			t.Error(err)
		}
		if got := names(); !slices.Equal(got, want) {
			t.Errorf("attempt %d: %q, want %q", attempt, got, want)
		}
		if attempt == 0 {
			b.last().isError("failed")
			b.last().has("db.operation.name=Procedure", "idempotency.name=order", "idempotency.outcome=failed", "error.type=github.com/pgidem/idempotency/idemotel_test.declined")
		}
	}
	if n := b.sum("idempotency.runs", "db.operation.name=Procedure"); n != 2 {
		t.Errorf("%d runs", n)
	}
	for _, c := range []struct {
		operation, outcome string
		times              int
	}{{"Step", "executed", 1}, {"Call", "failed", 1}, {"Call", "executed", 1}, {"Procedure", "failed", 1}, {"Procedure", "executed", 1}, {"Procedure", "replayed", 1}} {
		if n, _ := b.count("idempotency.operation.duration", "db.operation.name="+c.operation, "idempotency.outcome="+c.outcome); int(n) != c.times {
			t.Errorf("%s %s: %d times, want %d", c.operation, c.outcome, n, c.times)
		}
	}
}

func TestSchemaAndAttributesOfOnesOwnAreOnSpansAndMetrics(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.to.Attributes = []attribute.KeyValue{attribute.String("db.namespace", "payments")}
	b.store = b.storeOn(b.pool, idempotency.Config{Schema: "public"})
	b.executes()
	if b.last().Name != "Do public.idempotency_keys" {
		t.Errorf("named %q", b.last().Name)
	}
	b.last().has("db.collection.name=public.idempotency_keys", "db.namespace=payments")
	if n := b.sum("idempotency.runs", "db.collection.name=public.idempotency_keys", "db.namespace=payments"); n != 1 {
		t.Errorf("%d runs", n)
	}
}

type declined struct{ text string }

func (d declined) Error() string { return d.text }

func TestErrorIsAStatusAndAKindWithoutItsText(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{Wait: -1})
	sqlError := func(ctx context.Context, tx pgx.Tx) (int, error) {
		_, err := tx.Exec(ctx, `insert into charges values (null)`)
		return 0, fmt.Errorf("charging: %w", err)
	}
	for _, c := range []struct {
		name string
		fn   func(context.Context, pgx.Tx) (int, error)
		want []string
	}{
		{"of the server", sqlError, []string{"error.type=23502", "db.response.status_code=23502"}},
		{"of a type", fails(fmt.Errorf("wrapped: %w", declined{"card 4711"})), []string{"error.type=github.com/pgidem/idempotency/idemotel_test.declined"}},
		{"of none", fails(errors.New("card 4711")), []string{"error.type=*errors.errorString"}},
		{"of the context", fails(context.DeadlineExceeded), []string{"error.type=timeout"}},
		{"canceled", fails(context.Canceled), []string{"error.type=canceled"}},
		{"panicked", func(context.Context, pgx.Tx) (int, error) { panic("card 4711") }, []string{"error.type=panic"}},
		{"ended", func(context.Context, pgx.Tx) (int, error) { runtime.Goexit(); return 0, nil }, []string{"error.type=panic"}},
	} {
		ended := make(chan any)
		go func() {
			var panicked any
			defer func() { ended <- panicked }()
			defer func() { panicked = recover() }()
			b.do(c.fn)
		}()
		if panicked := <-ended; (panicked != nil) != (c.name == "panicked") {
			t.Errorf("%s: panic %v", c.name, panicked)
		}
		b.last().isError("failed")
		b.last().has(append(c.want, "idempotency.outcome=failed")...)
	}

	b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		if _, _, err := idempotency.Do(ctx, b.store, b.key, charge); !errors.Is(err, idempotency.ErrInProgress) {
			t.Error(err)
		}
		b.last().isError("in_progress")
		b.last().has("idempotency.outcome=in_progress", "error.type=in_progress")
		return charge(ctx, tx)
	})
	b.last().isNoError()
	b.key.Fingerprint = idempotency.FingerprintOf([]byte("another"))
	b.do(charge)
	b.last().isError("key_reused")
	b.last().has("idempotency.outcome=key_reused", "error.type=key_reused")
	b.key.ID = strings.Repeat("x", 256)
	b.do(charge)
	b.last().has("idempotency.outcome=failed", "error.type=invalid_key", "idempotency.runs=0")
}

func TestTextOfAnErrorIsThereWhenAsked(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.to.ErrorText = true
	b.store = b.storeOn(b.pool, idempotency.Config{})
	b.do(fails(errors.New("card 4711 declined")))
	b.last().isError("card 4711 declined")
}

func TestNothingFoundIsNoError(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	if _, err := b.store.Get(t.Context(), b.key); !errors.Is(err, idempotency.ErrNotFound) {
		t.Fatal(err)
	}
	b.last().has("idempotency.outcome=not_found")
	b.last().isNoError()
}

func TestRunsAreCounted(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	runs := 0
	err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		if runs++; runs < 3 {
			_, err := tx.Exec(ctx, `do $$ begin raise exception using errcode = '40001'; end $$`)
			return 0, err
		}
		return charge(ctx, tx)
	})
	if err != nil {
		t.Fatal(err)
	}
	b.last().has("idempotency.runs=3", "idempotency.outcome=executed")
	b.last().isNoError()
	if runs, retries := b.sum("idempotency.runs"), b.sum("idempotency.retries", "db.operation.name=Do"); runs != 3 || retries != 2 {
		t.Errorf("%d runs, %d retries", runs, retries)
	}
}

func TestWaitIsToldInSeconds(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{Wait: 200 * time.Millisecond})
	begun, goOn := make(chan bool), make(chan bool)
	first := make(chan error)
	go func() {
		first <- b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
			close(begun)
			<-goOn
			return charge(ctx, tx)
		})
	}()
	<-begun
	if err := b.do(charge); !errors.Is(err, idempotency.ErrInProgress) {
		t.Error(err)
	}
	waited := 0.0
	for _, a := range b.last().Attributes {
		if a.Key == "idempotency.waited" {
			waited = a.Value.AsFloat64()
		}
	}
	if waited < .2 || waited > 100 {
		t.Errorf("waited %v", waited)
	}
	if n, seconds := b.count("idempotency.wait.duration"); n != 1 || seconds < .2 {
		t.Errorf("%d waits of %v", n, seconds)
	}
	close(goOn)
	if err := <-first; err != nil {
		t.Error(err)
	}
}
