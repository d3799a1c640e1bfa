package idemotel_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemotel"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// links checks that a span has one link, to a trace and a span.
func (s span) links(traceID, spanID string) {
	s.t.Helper()
	if len(s.Links) != 1 {
		s.t.Fatalf("%s has %d links", s.Name, len(s.Links))
	}
	to := s.Links[0].SpanContext
	if to.TraceID().String() != traceID || to.SpanID().String() != spanID || !to.IsRemote() {
		s.t.Errorf("%s links to %v, want %s %s", s.Name, to, traceID, spanID)
	}
}

func (s span) hasNoLink() {
	s.t.Helper()
	if len(s.Links) != 0 {
		s.t.Errorf("%s links to %v", s.Name, s.Links)
	}
}

func TestReplayLinksToTheSpanThatExecuted(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes()
	executed := b.last()
	executed.has("idempotency.outcome=executed")
	executed.hasNoLink()
	for _, store := range []*idempotency.Store{b.store, b.storeOn(pgtest.Pool(t, b.pool), idempotency.Config{})} {
		b.store = store
		b.executes()
		replay := b.last()
		replay.has("idempotency.outcome=replayed", "idempotency.runs=0")
		replay.links(executed.SpanContext.TraceID().String(), executed.SpanContext.SpanID().String())
		if replay.SpanContext.TraceID() == executed.SpanContext.TraceID() {
			t.Error("the replay is in the trace of the call that executed")
		}
	}
}

func TestReplayOfDoTxLinksToTheSpanThatExecuted(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes()
	executed := b.last().SpanContext
	err := pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error {
		_, _, err := idempotency.DoTx(t.Context(), b.store, tx, b.key, charge)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	replay := b.last()
	replay.has("db.operation.name=DoTx", "idempotency.outcome=replayed")
	replay.links(executed.TraceID().String(), executed.SpanID().String())
}

// workerEnv makes the test binary a worker: another process that executes.
const workerEnv = "IDEMOTEL_TEST_WORKER"

// work executes the key of the bundles, and prints its span.
func work() int {
	ctx := context.Background()
	spans := tracetest.NewInMemoryExporter()
	cfg, err := idemotel.Instrument(idempotency.Config{}, idemotel.Config{
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	pool, err := pgxpool.New(ctx, os.Getenv(workerEnv))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer pool.Close()
	store, err := idempotency.NewWithConfig(pool, cfg)
	if err == nil {
		_, _, err = idempotency.Do(ctx, store, idempotency.Key{Scope: "customer-1", ID: "key-1"}, charge)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	executed := spans.GetSpans()[0].SpanContext
	fmt.Println(executed.TraceID(), executed.SpanID())
	return 0
}

func TestReplayLinksToTheSpanOfAnotherProcess(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	worker := exec.Command(os.Args[0])
	worker.Env = append(os.Environ(), workerEnv+"="+pgtest.URL(b.pool))
	worker.Stderr = os.Stderr
	out, err := worker.Output()
	ids := strings.Fields(string(out))
	if err != nil || len(ids) != 2 {
		t.Fatalf("the worker: %v, %q", err, out)
	}
	b.executes()
	b.last().has("idempotency.outcome=replayed")
	b.last().links(ids[0], ids[1])
}

func TestReplayOfACallWithoutATraceHasNoLink(t *testing.T) {
	t.Parallel()
	for _, origin := range []string{"", "request 7", "00-00000000000000000000000000000000-0000000000000000-01", strings.Repeat("0", 255)} {
		b := setup(t, idempotency.Config{})
		executing := plain(t, b.pool, idempotency.Config{
			Trace: func(ctx context.Context, _ string) (context.Context, string) { return ctx, origin },
		})
		if _, _, err := idempotency.Do(t.Context(), executing, b.key, charge); err != nil {
			t.Fatal(err)
		}
		b.executes()
		b.last().has("idempotency.outcome=replayed")
		b.last().hasNoLink()
	}
}

func TestCommitInDoubtIsToldAndDoesNotLinkToItself(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var proxy *pgproxy.Proxy
	b.store, proxy = b.proxied()
	var lost atomic.Bool
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if m.FromServer && m.Tag == "COMMIT" && lost.CompareAndSwap(false, true) {
			return pgproxy.Drop
		}
		return pgproxy.Pass
	})
	b.executes()
	b.last().has("idempotency.outcome=replayed", "idempotency.in_doubt=committed", "idempotency.runs=1")
	b.last().hasNoLink()
	if n := b.sum("idempotency.commits.in_doubt", "idempotency.in_doubt=committed"); n != 1 {
		t.Errorf("%d commits in doubt", n)
	}
}
