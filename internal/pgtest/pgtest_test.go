package pgtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

func TestMain(m *testing.M) { Main(m) }

func TestNewIsMigratedAndOnesOwn(t *testing.T) {
	t.Parallel()
	for i := range 4 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			pool := New(t)
			insert := `insert into idempotency_keys (id, scope, purge_after) values ('same id', 'same scope', now())`
			if _, err := pool.Exec(t.Context(), insert); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestEmptyHasNoTables(t *testing.T) {
	t.Parallel()
	if n := queryInt(t, Empty(t), `select count(*) from pg_tables where schemaname = 'public'`); n != 0 {
		t.Errorf("%d tables in an empty database", n)
	}
}

func TestDatabaseIsDropped(t *testing.T) {
	t.Parallel()
	r := &recorder{TB: t}
	name := New(r).Config().ConnConfig.Database
	if !exists(t, name) {
		t.Error("no such database during the test: ", name)
	}
	r.end()
	if exists(t, name) {
		t.Error("still there after the test: ", name)
	}
	r.expect(t)
}

func TestPoolIsOnTheSameDatabaseWithItsOwnOptions(t *testing.T) {
	t.Parallel()
	pool := New(t, MaxConns(3))
	other := Pool(t, pool, func(cfg *pgxpool.Config) {
		cfg.ConnConfig.RuntimeParams["default_transaction_isolation"] = "serializable"
	})
	if got, want := database(t, other), database(t, pool); got != want {
		t.Errorf("on database %s, want %s", got, want)
	}
	if pool.Config().MaxConns != 3 || other.Config().MaxConns != 8 {
		t.Errorf("sizes %d and %d, want 3 and 8", pool.Config().MaxConns, other.Config().MaxConns)
	}
	var isolation, name string
	err := other.QueryRow(t.Context(), `select current_setting('transaction_isolation'), current_setting('application_name')`).Scan(&isolation, &name)
	if err != nil || isolation != "serializable" || name != t.Name() {
		t.Errorf("isolation %q, application_name %q, %v", isolation, name, err)
	}
}

func TestURLLeadsToTheDatabase(t *testing.T) {
	t.Parallel()
	pool := New(t)
	conn, err := pgx.Connect(t.Context(), URL(pool))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var got string
	if err := conn.QueryRow(t.Context(), `select current_database()`).Scan(&got); err != nil || got != database(t, pool) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestURLOfEveryForm(t *testing.T) {
	pool := New(t)
	for _, dsn := range []string{
		"postgres://u:p@h:1234",
		"postgresql://u:p@h:1234/other?sslmode=disable",
		"postgres://u:p@h:1234/other?dbname=third",
		"host=h port=1234 user=u password=p",
		"host=h port=1234 user=u password=p dbname=other",
	} {
		t.Setenv("DATABASE_URL", dsn)
		cfg, err := pgx.ParseConfig(URL(pool))
		if err != nil {
			t.Errorf("%s: %v", dsn, err)
			continue
		}
		if cfg.Database != pool.Config().ConnConfig.Database || cfg.Host != "h" || cfg.Port != 1234 || cfg.Password != "p" {
			t.Errorf("%s became %s", dsn, URL(pool))
		}
	}
}

func TestLeakedConnectionFails(t *testing.T) {
	t.Parallel()
	r := &recorder{TB: t}
	pool := New(r)
	if _, err := pool.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.end()
	r.expect(t, "1 connections were acquired and not released")
}

func TestOpenTransactionFails(t *testing.T) {
	t.Parallel()
	r := &recorder{TB: t}
	pool := New(r)
	conn, err := pgx.Connect(t.Context(), URL(pool))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `begin; select 'left open'`); err != nil {
		t.Fatal(err)
	}
	r.end()
	r.expect(t, "select 'left open'")
}

func TestLateRollbackPasses(t *testing.T) {
	t.Parallel()
	r := &recorder{TB: t}
	pool := New(r)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, func() { tx.Rollback(context.Background()) })
	r.end()
	r.expect(t)
}

func TestWithoutDatabaseURL(t *testing.T) {
	t.Setenv("DATABASE_URL", "")
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		New(r)
	}()
	<-done
	r.expect(t, "run `make test`")
}

// The stale one is named as by a process that holds no lock: one that was killed.
func TestStaleDatabasesAreRemoved(t *testing.T) {
	t.Parallel()
	s := connected(t)
	dead := &server{config: s.config, admin: s.admin, run: rand.Uint32()}
	stale, err := dead.createFrom(t.Context(), pristine)
	if err != nil {
		t.Fatal(err)
	}
	mine := database(t, New(t))
	s.removeStale(t.Context())
	if exists(t, stale) {
		t.Error("still there: ", stale)
	}
	if !exists(t, mine) {
		t.Error("removed though its process lives: ", mine)
	}
}

// A recorder is a test whose failures and clean-ups are kept.
type recorder struct {
	testing.TB
	failures []string
	cleanups []func()
}

func (r *recorder) Helper()          {}
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Error(args ...any) {
	r.failures = append(r.failures, fmt.Sprint(args...))
}
func (r *recorder) Errorf(format string, args ...any) { r.Error(fmt.Sprintf(format, args...)) }
func (r *recorder) Fatal(args ...any) {
	r.Error(args...)
	runtime.Goexit()
}

func (r *recorder) end() {
	for len(r.cleanups) > 0 {
		last := len(r.cleanups) - 1
		f := r.cleanups[last]
		r.cleanups = r.cleanups[:last]
		f()
	}
}

// expect checks that the recorded test failed for these reasons alone.
func (r *recorder) expect(t *testing.T, reasons ...string) {
	t.Helper()
	all := strings.Join(r.failures, "\n")
	if len(reasons) == 0 && all != "" {
		t.Error("unexpected failure: ", all)
	}
	for _, reason := range reasons {
		if !strings.Contains(all, reason) {
			t.Errorf("failed with %q, want %q", all, reason)
		}
	}
}

func queryInt(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func database(t *testing.T, pool *pgxpool.Pool) (name string) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `select current_database()`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	return name
}

func exists(t *testing.T, name string) bool {
	t.Helper()
	return queryInt(t, connected(t).admin, `select count(*) from pg_database where datname = $1`, name) > 0
}
