package idemotel_test

import (
	"errors"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemotel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

func TestEveryOperationIsMeasuredByItsOutcome(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.do(fails(errors.New("no")))
	b.executes()
	b.executes()
	b.executes()
	pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error {
		_, _, err := idempotency.DoTx(t.Context(), b.store, tx, idempotency.Key{Scope: "s", ID: "i"}, charge)
		return err
	})
	idempotency.QueryRow[int](t.Context(), b.store, idempotency.Key{Scope: "other", ID: "row"}, "select 1")
	idempotency.Query[int](t.Context(), b.store, idempotency.Key{Scope: "other", ID: "rows"}, "select 1")
	b.store.Get(t.Context(), b.key)
	for range b.store.All(t.Context(), b.key.Scope) {
	}
	b.store.Delete(t.Context(), b.key)
	b.store.Delete(t.Context(), b.key)
	if _, err := b.pool.Exec(t.Context(), `update idempotency_keys set purge_after = now() - interval '1 hour', expires_at = now() - interval '1 hour' where scope <> 'other'`); err != nil {
		t.Fatal(err)
	}
	b.store.Purge(t.Context())

	for _, c := range []struct {
		want                uint64
		operation, and, err string
	}{
		{1, "Do", "failed", "*errors.errorString"},
		{1, "Do", "executed", ""},
		{2, "Do", "replayed", ""},
		{1, "DoTx", "executed", ""},
		{1, "QueryRow", "executed", ""},
		{1, "Query", "executed", ""},
		{1, "Get", "done", ""},
		{1, "All", "done", ""},
		{1, "Delete", "done", ""},
		{1, "Delete", "not_found", ""},
		{1, "Purge", "done", ""},
	} {
		n, seconds := b.count("idempotency.operation.duration", "db.system.name=postgresql",
			"db.operation.name="+c.operation, "idempotency.outcome="+c.and, "error.type="+c.err)
		if n != c.want || seconds <= 0 {
			t.Errorf("%+v: %d times %v s", c, n, seconds)
		}
	}
	if n, _ := b.count("idempotency.operation.duration"); n != 12 {
		t.Errorf("%d operations", n)
	}
	if n, _ := b.count("idempotency.wait.duration"); n != 7 {
		t.Errorf("%d waits, want one for each call", n)
	}
	if n := b.sum("idempotency.runs"); n != 5 {
		t.Errorf("%d runs", n)
	}
	for _, operation := range []string{"Delete", "Purge"} {
		if n := b.sum("idempotency.records.deleted", "db.operation.name="+operation); n != 1 {
			t.Errorf("%s: %d records", operation, n)
		}
	}
}

func TestOperationUnderWayIsCounted(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for range b.store.All(t.Context(), "nobody") {
	}
	b.executes()
	for range b.store.All(t.Context(), b.key.Scope) {
		if n := b.sum("idempotency.active_operations", "db.operation.name=All"); n != 1 {
			t.Errorf("%d", n)
		}
	}
}

func TestCountersOfRareThingsBeginAtZero(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	found := map[string]int{}
	for _, in := range b.collect().ScopeMetrics {
		for _, m := range in.Metrics {
			found[m.Name]++
		}
	}
	for _, name := range []string{"idempotency.runs", "idempotency.retries", "idempotency.commits.in_doubt", "idempotency.records.deleted"} {
		if found[name] != 1 {
			t.Errorf("%s is not there before the first event", name)
		}
	}
}

func TestEveryNameThatIsExportedIsInTheDocument(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/telemetry.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("`(idempotency\\.[a-z_.]+)`").FindAllStringSubmatch(string(text), -1) {
		documented[m[1]] = true
	}
	source, err := exported()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range source {
		if !documented[name] {
			t.Errorf("docs/telemetry.md does not name %s", name)
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("docs/telemetry.md names %s, which does not exist", name)
	}
}

// exported is the names of all metrics and attributes of our own.
func exported() (names []string, err error) {
	for _, path := range []string{"span.go", "metrics.go"} {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		for _, m := range regexp.MustCompile(`"(idempotency\.[a-z_.]+)"`).FindAllStringSubmatch(string(text), -1) {
			names = append(names, m[1])
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

var errRefused = errors.New("no more histograms")

type refusing struct{ noop.MeterProvider }

func (refusing) Meter(string, ...metric.MeterOption) metric.Meter { return refusingMeter{} }

type refusingMeter struct{ noop.Meter }

func (refusingMeter) Float64Histogram(string, ...metric.Float64HistogramOption) (metric.Float64Histogram, error) {
	return nil, errRefused
}

func TestInstrumentThatIsRefusedIsAnError(t *testing.T) {
	t.Parallel()
	_, err := idemotel.Instrument(idempotency.Config{}, idemotel.Config{MeterProvider: refusing{}})
	if !errors.Is(err, errRefused) {
		t.Errorf("got %v", err)
	}
}
