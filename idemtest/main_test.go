package idemtest_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// testDatabase is a user's: it has a table of charges, and no keys.
func testDatabase(t testing.TB, opts ...pgtest.Option) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Empty(t, opts...)
	run(t, pool, `create table charges (n int generated always as identity, request text not null)`)
	return pool
}

func run(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func queryInt(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) (n int) {
	t.Helper()
	if err := pool.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func schemas(t testing.TB, pool *pgxpool.Pool) int {
	t.Helper()
	return queryInt(t, pool, `select count(*) from pg_namespace where nspname like 'idemtest%'`)
}

// A recorder is a test whose failures and clean-ups are kept.
type recorder struct {
	testing.TB
	mu       sync.Mutex
	failures []string
	cleanups []func()
}

func (r *recorder) Helper()          {}
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Error(args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, fmt.Sprint(args...))
}
func (r *recorder) Errorf(format string, args ...any) { r.Error(fmt.Sprintf(format, args...)) }
func (r *recorder) Fatal(args ...any) {
	r.Error(args...)
	runtime.Goexit()
}
func (r *recorder) Fatalf(format string, args ...any) { r.Fatal(fmt.Sprintf(format, args...)) }

func (r *recorder) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.failures, "\n")
}

func (r *recorder) Name() string {
	if r.TB == nil {
		return "Example"
	}
	return r.TB.Name()
}

// play runs a test to its end, as package testing does: the clean-ups run also
// when it panics. It returns what the test said when it failed.
func play(r *recorder, test func(t testing.TB)) (failures string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if v := recover(); v != nil {
				r.Error("panic: ", v)
			}
			for len(r.cleanups) > 0 {
				last := r.cleanups[len(r.cleanups)-1]
				r.cleanups = r.cleanups[:len(r.cleanups)-1]
				last()
			}
		}()
		test(r)
	}()
	<-done
	return r.text()
}

// record is play inside a test, which gets to see it with -v.
func record(t testing.TB, test func(t testing.TB)) (failures string) {
	t.Helper()
	failures = play(&recorder{TB: t}, test)
	t.Log("\n" + failures)
	return failures
}

func want(t testing.TB, failures string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(failures, part) {
			t.Errorf("want %q in the report:\n%s", part, failures)
		}
	}
}

func wantNone(t testing.TB, failures string) {
	t.Helper()
	if failures != "" {
		t.Error("unexpected failure: ", failures)
	}
}
