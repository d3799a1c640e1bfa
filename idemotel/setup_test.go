package idemotel_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemotel"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

func TestMain(m *testing.M) {
	if os.Getenv(workerEnv) != "" {
		os.Exit(work())
	}
	pgtest.Main(m)
}

// A bundle is what a test starts with: a database of its own, an instrumented
// Store on it, and all that it exports.
type bundle struct {
	testing.TB
	pool   *pgxpool.Pool
	store  *idempotency.Store
	key    idempotency.Key
	spans  *tracetest.InMemoryExporter
	reader *metric.ManualReader
	open   atomic.Int64 // spans that have begun and not ended
	to     idemotel.Config
}

// setup makes a bundle. That each span has ended and no operation is under way
// is checked when the test ends.
func setup(t testing.TB, cfg idempotency.Config) *bundle {
	t.Helper()
	b := &bundle{
		TB: t, pool: pgtest.New(t), key: idempotency.Key{Scope: "customer-1", ID: "key-1"},
		spans: tracetest.NewInMemoryExporter(), reader: metric.NewManualReader(),
	}
	if _, err := b.pool.Exec(t.Context(), `create table charges (amount int not null)`); err != nil {
		t.Fatal(err)
	}
	b.to = idemotel.Config{
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(counting{&b.open}), sdktrace.WithSyncer(b.spans)),
		MeterProvider:  metric.NewMeterProvider(metric.WithReader(b.reader)),
	}
	b.store = b.storeOn(b.pool, cfg)
	t.Cleanup(func() {
		if n := b.open.Load(); n != 0 {
			t.Errorf("%d spans have begun and not ended", n)
		}
		for _, p := range points[metricdata.Sum[int64]](b, "idempotency.active_operations").DataPoints {
			if p.Value != 0 {
				t.Errorf("%d operations are under way: %v", p.Value, p.Attributes.ToSlice())
			}
		}
	})
	return b
}

func (b *bundle) storeOn(pool *pgxpool.Pool, cfg idempotency.Config) *idempotency.Store {
	b.Helper()
	cfg, err := idemotel.Instrument(cfg, b.to)
	if err != nil {
		b.Fatal(err)
	}
	return plain(b, pool, cfg)
}

// plain is a Store as its Config says.
func plain(t testing.TB, pool *pgxpool.Pool, cfg idempotency.Config) *idempotency.Store {
	t.Helper()
	store, err := idempotency.NewWithConfig(pool, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// proxied is an instrumented Store whose connections pass a proxy.
func (b *bundle) proxied() (*idempotency.Store, *pgproxy.Proxy) {
	b.Helper()
	server := b.pool.Config().ConnConfig
	network, at := "tcp", fmt.Sprintf("%s:%d", server.Host, server.Port)
	if strings.HasPrefix(server.Host, "/") {
		network, at = "unix", fmt.Sprintf("%s/.s.PGSQL.%d", server.Host, server.Port)
	}
	proxy := pgproxy.New(b, network, at)
	pool := pgtest.Pool(b, b.pool, func(cfg *pgxpool.Config) {
		cfg.ConnConfig.Host, cfg.ConnConfig.Port = "127.0.0.1", proxy.Port()
		cfg.ConnConfig.TLSConfig, cfg.ConnConfig.Fallbacks = nil, nil
	})
	return b.storeOn(pool, idempotency.Config{}), proxy
}

// A counting processor knows how many spans are open.
type counting struct{ open *atomic.Int64 }

func (c counting) OnStart(context.Context, sdktrace.ReadWriteSpan) { c.open.Add(1) }
func (c counting) OnEnd(sdktrace.ReadOnlySpan)                     { c.open.Add(-1) }
func (counting) Shutdown(context.Context) error                    { return nil }
func (counting) ForceFlush(context.Context) error                  { return nil }

// charge is the business of the tests.
func charge(ctx context.Context, tx pgx.Tx) (int, error) {
	_, err := tx.Exec(ctx, `insert into charges values (10)`)
	return 10, err
}

func fails(err error) func(context.Context, pgx.Tx) (int, error) {
	return func(context.Context, pgx.Tx) (int, error) { return 0, err }
}

// do calls Do with the bundle's key.
func (b *bundle) do(fn func(context.Context, pgx.Tx) (int, error)) error {
	_, _, err := idempotency.Do(b.Context(), b.store, b.key, fn)
	return err
}

// executes is a call that must succeed.
func (b *bundle) executes() {
	b.Helper()
	if err := b.do(charge); err != nil {
		b.Fatal(err)
	}
}

// last is the span that ended last.
func (b *bundle) last() span {
	b.Helper()
	all := b.spans.GetSpans()
	if len(all) == 0 {
		b.Fatal("no span has ended")
	}
	return span{b, all[len(all)-1]}
}

// A span is one that was exported.
type span struct {
	t testing.TB
	tracetest.SpanStub
}

// has checks attributes, given as name=value; one that ends with = is not there.
func (s span) has(wanted ...string) {
	s.t.Helper()
	got := map[string]string{}
	for _, a := range s.Attributes {
		got[string(a.Key)] = a.Value.String()
	}
	for _, want := range wanted {
		name, value, _ := strings.Cut(want, "=")
		if got[name] != value {
			s.t.Errorf("%s: %s is %q, want %q", s.Name, name, got[name], value)
		}
	}
}

func (s span) isError(description string) {
	s.t.Helper()
	if s.Status.Code != codes.Error || s.Status.Description != description {
		s.t.Errorf("%s: status %v, want an error %q", s.Name, s.Status, description)
	}
}

func (s span) isNoError() {
	s.t.Helper()
	if s.Status.Code != codes.Unset {
		s.t.Errorf("%s: status %v", s.Name, s.Status)
	}
	s.has("error.type=", "db.response.status_code=")
}

// collect reads all metrics.
func (b *bundle) collect() metricdata.ResourceMetrics {
	b.Helper()
	var all metricdata.ResourceMetrics
	if err := b.reader.Collect(context.Background(), &all); err != nil {
		b.Fatal(err)
	}
	return all
}

// points is the metric of a name.
func points[T metricdata.Aggregation](b *bundle, name string) (data T) {
	b.Helper()
	for _, in := range b.collect().ScopeMetrics {
		for _, m := range in.Metrics {
			if m.Name == name {
				return m.Data.(T)
			}
		}
	}
	return data
}

// matches: the attributes have all that is wanted, given as name=value.
func matches(set attribute.Set, wanted []string) bool {
	for _, want := range wanted {
		name, value, _ := strings.Cut(want, "=")
		got, _ := set.Value(attribute.Key(name))
		if got.String() != value && (value != "" || set.HasValue(attribute.Key(name))) {
			return false
		}
	}
	return true
}

// sum adds up a counter where its attributes match.
func (b *bundle) sum(name string, wanted ...string) (n int64) {
	b.Helper()
	for _, p := range points[metricdata.Sum[int64]](b, name).DataPoints {
		if matches(p.Attributes, wanted) {
			n += p.Value
		}
	}
	return n
}

// count is how often a histogram was recorded where its attributes match, and the
// sum of that.
func (b *bundle) count(name string, wanted ...string) (n uint64, seconds float64) {
	b.Helper()
	for _, p := range points[metricdata.Histogram[float64]](b, name).DataPoints {
		if matches(p.Attributes, wanted) {
			n += p.Count
			seconds += p.Sum
		}
	}
	return n, seconds
}
