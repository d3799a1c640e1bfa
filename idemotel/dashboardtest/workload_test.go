package dashboardtest

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemotel"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
	client "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	exporter "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"
)

// A workload is a program that meets all that the dashboard shows, and serves
// its metrics.
type workload struct {
	testing.TB
	pool   *pgxpool.Pool
	store  *idempotency.Store
	hasty  *idempotency.Store // waits for a moment only
	proxy  *pgproxy.Proxy
	target string // where to scrape

	turn   int
	events sync.Mutex
	calls  map[string]int // by outcome
	parts  map[string]int // steps and calls of procedures, by operation and outcome
	runs   int
}

func setup(t testing.TB) *workload {
	t.Helper()
	w := &workload{TB: t, pool: pgtest.New(t), calls: map[string]int{}, parts: map[string]int{}}
	w.exec(`create table charges (amount int not null)`)
	registry := client.NewRegistry()
	reader, err := exporter.New(exporter.WithRegisterer(registry))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	t.Cleanup(server.Close)
	w.target = strings.TrimPrefix(server.URL, "http://")
	meters := metric.NewMeterProvider(metric.WithReader(reader))
	cfg, err := idemotel.Instrument(idempotency.Config{Observe: w.count}, idemotel.Config{MeterProvider: meters})
	if err != nil {
		t.Fatal(err)
	}
	w.store = w.storeOn(w.proxied(), cfg)
	cfg.Wait = 50 * time.Millisecond
	w.hasty = w.storeOn(w.pool, cfg)
	return w
}

func (w *workload) storeOn(pool *pgxpool.Pool, cfg idempotency.Config) *idempotency.Store {
	w.Helper()
	store, err := idempotency.NewWithConfig(pool, cfg)
	if err != nil {
		w.Fatal(err)
	}
	return store
}

// count keeps the truth that the metrics are compared with.
func (w *workload) count(_ context.Context, e idempotency.Event) {
	w.events.Lock()
	defer w.events.Unlock()
	w.runs += e.Runs
	switch e.Operation {
	case "Do", "DoTx", "QueryRow", "Query", "Procedure":
		w.calls[e.Outcome]++
	case "Step", "Call":
		w.parts[e.Operation+e.Outcome]++
	}
}

// proxied is a pool whose connections can be cut.
func (w *workload) proxied() *pgxpool.Pool {
	server := w.pool.Config().ConnConfig
	network, at := "tcp", fmt.Sprintf("%s:%d", server.Host, server.Port)
	if strings.HasPrefix(server.Host, "/") {
		network, at = "unix", fmt.Sprintf("%s/.s.PGSQL.%d", server.Host, server.Port)
	}
	w.proxy = pgproxy.New(w, network, at)
	return pgtest.Pool(w, w.pool, func(cfg *pgxpool.Config) {
		cfg.ConnConfig.Host, cfg.ConnConfig.Port = "127.0.0.1", w.proxy.Port()
		cfg.ConnConfig.TLSConfig, cfg.ConnConfig.Fallbacks = nil, nil
	})
}

func (w *workload) exec(sql string) {
	w.Helper()
	if _, err := w.pool.Exec(w.Context(), sql); err != nil {
		w.Fatal(err)
	}
}

func charge(ctx context.Context, tx pgx.Tx) (int, error) {
	_, err := tx.Exec(ctx, `insert into charges values (10)`)
	return 10, err
}

func (w *workload) do(key idempotency.Key, fn func(context.Context, pgx.Tx) (int, error), want error) {
	w.Helper()
	w.doOn(w.store, key, fn, want)
}

func (w *workload) doOn(store *idempotency.Store, key idempotency.Key, fn func(context.Context, pgx.Tx) (int, error), want error) {
	w.Helper()
	if _, _, err := idempotency.Do(w.Context(), store, key, fn); !errors.Is(err, want) {
		w.Errorf("got %v, want %v", err, want)
	}
}

var errDeclined = errors.New("declined")

// round is one of everything.
func (w *workload) round() {
	w.turn++
	key := func(name string) idempotency.Key {
		return idempotency.Key{Scope: "workload", ID: fmt.Sprintf("%s-%d", name, w.turn)}
	}
	w.do(key("replayed"), charge, nil)
	w.do(key("replayed"), charge, nil)
	reused := key("replayed")
	reused.Fingerprint = idempotency.FingerprintOf([]byte("another request"))
	w.do(reused, charge, idempotency.ErrKeyReused)
	w.do(key("failed"), func(context.Context, pgx.Tx) (int, error) { return 0, errDeclined }, errDeclined)
	w.do(key("retried"), w.conflictOnce(), nil)
	w.waitInVain(key("waited"))
	w.loseTheAnswer(key("in doubt"))
	if err := w.joined(key("joined")); err != nil {
		w.Error(err)
	}
	w.proceed(key("procedure"))
	w.housekeep(key("replayed"))
}

// conflictOnce is a function that fails with 40001 when it is first run.
func (w *workload) conflictOnce() func(context.Context, pgx.Tx) (int, error) {
	runs := 0
	return func(ctx context.Context, tx pgx.Tx) (int, error) {
		if runs++; runs == 1 {
			_, err := tx.Exec(ctx, `do $$ begin raise exception using errcode = '40001'; end $$`)
			return 0, err
		}
		return charge(ctx, tx)
	}
}

// waitInVain makes a duplicate wait for a call that ends after its patience.
func (w *workload) waitInVain(key idempotency.Key) {
	begun, goOn, ended := make(chan bool), make(chan bool), make(chan bool)
	go func() {
		defer close(ended)
		w.doOn(w.hasty, key, func(ctx context.Context, tx pgx.Tx) (int, error) {
			close(begun)
			<-goOn
			return charge(ctx, tx)
		}, nil)
	}()
	<-begun
	w.doOn(w.hasty, key, charge, idempotency.ErrInProgress)
	close(goOn)
	<-ended
}

// loseTheAnswer cuts the connection on which COMMIT was answered.
func (w *workload) loseTheAnswer(key idempotency.Key) {
	var lost atomic.Bool
	w.proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if m.FromServer && m.Tag == "COMMIT" && lost.CompareAndSwap(false, true) {
			return pgproxy.Drop
		}
		return pgproxy.Pass
	})
	defer w.proxy.SetRule(nil)
	w.do(key, charge, nil)
}

func (w *workload) joined(key idempotency.Key) error {
	return pgx.BeginFunc(w.Context(), w.pool, func(tx pgx.Tx) error {
		_, _, err := idempotency.DoTx(w.Context(), w.store, tx, key, charge)
		return err
	})
}

// proceed takes two attempts: the first one has no answer of its call.
func (w *workload) proceed(key idempotency.Key) {
	var failure error
	order := idempotency.Procedure[int, int]{Name: "order", Run: func(ctx context.Context, op *idempotency.Op, amount int) (int, error) {
		if _, err := idempotency.Step(ctx, op, "create", charge); err != nil {
			return 0, err
		}
		return idempotency.Call(ctx, op, "charge", func(context.Context, string) (int, error) { return amount, failure })
	}}
	for _, failure = range []error{errDeclined, nil} {
		if _, _, err := order.Do(w.Context(), w.store, key, 10); !errors.Is(err, failure) {
			w.Errorf("got %v, want %v", err, failure)
		}
	}
}

func (w *workload) housekeep(key idempotency.Key) {
	if _, err := w.store.Get(w.Context(), key); err != nil {
		w.Error(err)
	}
	for _, err := range w.store.All(w.Context(), key.Scope) {
		if err != nil {
			w.Error(err)
		}
	}
	if err := w.store.Delete(w.Context(), key); err != nil {
		w.Error(err)
	}
	w.exec(`update idempotency_keys set purge_after = now() - interval '1 hour', expires_at = now() - interval '1 hour'`)
	if n, err := w.store.Purge(w.Context()); err != nil || n == 0 {
		w.Errorf("purged %d, %v", n, err)
	}
}
