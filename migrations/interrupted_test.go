package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
	"github.com/pgidem/idempotency/migrations"
)

// An interruption ends a job after its n-th statement, and reports whether the
// job was still at work.
type interruption func(t *testing.T, pool *pgxpool.Pool, name, schema string, n int) bool

func TestKilledAnywhereNeedsNoRepair(t *testing.T) {
	t.Parallel()
	everywhere(t, 6, func(t *testing.T, pool *pgxpool.Pool, name, schema string, n int) bool {
		err := process(t, pool, name, schema, n).Run()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == -1 {
			return true // by a signal
		}
		if err != nil {
			t.Error(err)
		}
		return false
	})
}

func TestCancelledAnywhereNeedsNoRepair(t *testing.T) {
	t.Parallel()
	everywhere(t, 4, func(t *testing.T, pool *pgxpool.Pool, name, schema string, n int) bool {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		tracer := &counter{after: n, then: cancel}
		err := jobs[name](ctx, pgtest.Pool(t, pool, traced(tracer)), schema)
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s, cancelled after statement %d: %v", name, n, err)
		}
		return tracer.seen >= n
	})
}

// everywhere interrupts Up and Down after every step-th of their statements, and
// then calls Up or Down. The two begin one statement apart. "make test-long" interrupts
// them after each.
func everywhere(t *testing.T, step int, interrupt interruption) {
	if os.Getenv("IDEMPOTENCY_TEST_LONG") != "" {
		step = 1
	}
	pool := pgtest.Empty(t)
	for _, first := range []string{"up", "down"} {
		for offset, second := range []string{"up", "down"} {
			t.Run(first+" then "+second, func(t *testing.T) {
				t.Parallel()
				n := 1 + offset
				for ; ; n += step {
					schema := fmt.Sprintf("%s %s %d", first, second, n)
					if first == "down" {
						up(t, pool, schema)
					}
					interrupted := interrupt(t, pool, first, schema, n)
					if second == "up" {
						up(t, pool, schema)
						wantWhole(t, pool, schema)
					} else {
						down(t, pool, schema)
						wantNothing(t, pool, schema)
					}
					if !interrupted {
						break
					}
				}
				if n < 20 {
					t.Errorf("interrupted after %d statements only", n)
				}
			})
		}
	}
}

// The server hears nothing of it, so the lock stays until it finds out.
func TestFrozenConnectionIsLeftWhenTheContextEnds(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	frozen := pgtest.Pool(t, pool, through(t, pool, "create table"))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := migrations.Up(ctx, frozen, ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("returned after %v", took)
	}
}

// through leads a pool's connections through a network that stops at the first
// statement with these words, for all connections and for good.
func through(t *testing.T, pool *pgxpool.Pool, words string) pgtest.Option {
	t.Helper()
	network, address := pgconn.NetworkAddress(pool.Config().ConnConfig.Host, pool.Config().ConnConfig.Port)
	proxy := pgproxy.New(t, network, address)
	stop, end := make(chan struct{}), make(chan struct{})
	stopped := sync.OnceFunc(func() { close(stop) })
	t.Cleanup(func() { close(end) }) // before the proxy closes
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if strings.Contains(m.SQL, words) {
			stopped()
		}
		select {
		case <-stop:
			<-end
			return pgproxy.Drop
		default:
			return pgproxy.Pass
		}
	})
	return func(cfg *pgxpool.Config) {
		cfg.ConnConfig.Host, cfg.ConnConfig.Port = "127.0.0.1", proxy.Port()
		cfg.ConnConfig.TLSConfig, cfg.ConnConfig.Fallbacks = nil, nil
	}
}

// Each dirty version that golang-migrate can leave, with each state in which the
// table can be at that moment.
func TestDirtyVersionsAreRepaired(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	all := files(t)
	for dirty := -1; dirty <= len(all); dirty++ {
		for made := max(dirty-1, 0); made <= min(max(dirty, 0)+1, len(all)); made++ {
			for name, job := range jobs {
				schema := fmt.Sprintf("dirty %d made %d %s", dirty, made, name)
				sql := fmt.Sprintf(`create schema %[1]q;
					set local search_path to %[1]q;
					create table idempotency_migrations (version bigint not null primary key, dirty boolean not null);
					insert into idempotency_migrations values (%[2]d, true);`, schema, dirty)
				for _, file := range all[:made] {
					sql += read(t, file)
				}
				do(t, pool, sql)
				if err := job(t.Context(), pool, schema); err != nil {
					t.Errorf("%s: %v", schema, err)
				} else if name == "up" {
					wantWhole(t, pool, schema)
				} else {
					wantNothing(t, pool, schema)
				}
			}
		}
	}
}

// During a rolling deployment an old release starts on a newer database.
func TestNewerDatabaseIsAcceptedButNotUndone(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pool, "")
	for _, dirty := range []bool{false, true} {
		for _, newer := range []int{len(files(t)) + 1, 99} {
			do(t, pool, fmt.Sprintf(`update idempotency_migrations set version = %d, dirty = %v`, newer, dirty))
			up(t, pool, "")
			err := migrations.Down(t.Context(), pool, "")
			wantError(t, err, fmt.Sprintf("version %d ", newer), "run Down of the release that made it")
			if n := query[int](t, pool, `select version from idempotency_migrations`); n != newer {
				t.Errorf("version %d became %d", newer, n)
			}
		}
	}
}
