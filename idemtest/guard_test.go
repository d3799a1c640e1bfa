package idemtest_test

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemtest"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// guarded runs a test on a guarded pool and returns its report.
func guarded(t *testing.T, test func(t testing.TB, pool *pgxpool.Pool, store *idempotency.Store), opts ...pgtest.Option) string {
	t.Helper()
	database := testDatabase(t)
	return record(t, func(t testing.TB) {
		pool := pgtest.Pool(t, database, append(opts, func(cfg *pgxpool.Config) { idemtest.Guard(t, cfg) })...)
		test(t, pool, idemtest.New(t, pool, idempotency.Config{}))
	})
}

// here is the line of its caller, as a report names it.
func here() string {
	_, file, line, _ := runtime.Caller(1)
	return fmt.Sprintf("idemtest/%s:%d", filepath.Base(file), line)
}

// inside calls fn as the function of a Do.
func inside(t testing.TB, store *idempotency.Store, fn func(ctx context.Context, tx pgx.Tx) error) error {
	t.Helper()
	_, _, err := idempotency.Do(context.Background(), store, keyOf("outer"), func(ctx context.Context, tx pgx.Tx) (bool, error) {
		return true, fn(ctx, tx)
	})
	return err
}

func TestGuardNamesTheLineThatUsesThePool(t *testing.T) {
	t.Parallel()
	for name, use := range map[string]func(ctx context.Context, pool *pgxpool.Pool) (line string){
		"Exec": func(ctx context.Context, pool *pgxpool.Pool) string {
			pool.Exec(ctx, `insert into charges (request) values ('stray')`)
			return here()
		},
		"QueryRow": func(ctx context.Context, pool *pgxpool.Pool) string {
			pool.QueryRow(ctx, insert, "stray").Scan(new(int))
			return here()
		},
		"BeginFunc": func(ctx context.Context, pool *pgxpool.Pool) string {
			pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return nil })
			return here()
		},
		"database/sql": func(ctx context.Context, pool *pgxpool.Pool) string {
			db := stdlib.OpenDBFromPool(pool)
			defer db.Close()
			db.ExecContext(ctx, `insert into charges (request) values ('stray')`)
			return here()
		},
		"context without cancel": func(ctx context.Context, pool *pgxpool.Pool) string {
			pool.Exec(context.WithoutCancel(ctx), `insert into charges (request) values ('stray')`)
			return here()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var line string
			report := guarded(t, func(t testing.TB, pool *pgxpool.Pool, store *idempotency.Store) {
				inside(t, store, func(ctx context.Context, tx pgx.Tx) error {
					line = use(ctx, pool)
					return nil
				})
				if n := queryInt(t, pool, `select count(*) from charges`); n != 0 {
					t.Error("it was sent")
				}
			})
			file, number, _ := strings.Cut(line, ":")
			var n int
			fmt.Sscan(number, &n)
			want(t, report, fmt.Sprintf("%s:%d: a connection of the pool inside the function", file, n-1), `"outer" in scope "shop"`, "use tx.Exec")
			if strings.Count(report, "most likely") != 1 {
				t.Error("want one report")
			}
			if strings.Contains(report, "was sent\n") || strings.HasSuffix(report, "was sent") {
				t.Error("the statement was reported, and sent all the same")
			}
		})
	}
}

func TestGuardFindsTheMistakeInDoTxToo(t *testing.T) {
	t.Parallel()
	report := guarded(t, func(t testing.TB, pool *pgxpool.Pool, store *idempotency.Store) {
		pgx.BeginFunc(context.Background(), pool, func(tx pgx.Tx) error {
			_, _, err := idempotency.DoTx(context.Background(), store, tx, keyOf("a"), func(ctx context.Context, tx pgx.Tx) (bool, error) {
				_, err := pool.Exec(ctx, `select 1`)
				return true, err
			})
			return err
		})
	})
	want(t, report, "a connection of the pool inside the function")
}

func TestGuardSaysToUseDoTxForADoInsideADo(t *testing.T) {
	t.Parallel()
	report := guarded(t, func(t testing.TB, pool *pgxpool.Pool, store *idempotency.Store) {
		inside(t, store, func(ctx context.Context, tx pgx.Tx) error {
			_, _, err := idempotency.Do(ctx, store, keyOf("inner"), charge("inner"))
			return err
		})
	})
	want(t, report, "idemtest/guard_test.go:", "a Do inside the function of a Do", `"outer"`, "idempotency.DoTx(ctx, store, tx, key, ...)")
}

// Where the pool is used up, the mistake makes the program hang.
func TestGuardFindsTheMistakeOnAPoolOfOne(t *testing.T) {
	t.Parallel()
	report := guarded(t, func(t testing.TB, pool *pgxpool.Pool, store *idempotency.Store) {
		err := inside(t, store, func(ctx context.Context, tx pgx.Tx) error {
			_, err := pool.Exec(ctx, `select 1`)
			return err
		})
		if err == nil || !strings.Contains(err.Error(), "refused by Guard") {
			t.Error("the error does not say why: ", err)
		}
	}, pgtest.MaxConns(1))
	want(t, report, "a connection of the pool inside the function")
	if strings.Contains(report, "does not say why") {
		t.Error(report)
	}
}

func TestGuardLeavesCorrectUseAlone(t *testing.T) {
	t.Parallel()
	wantNone(t, guarded(t, func(t testing.TB, pool *pgxpool.Pool, store *idempotency.Store) {
		ended := make(chan context.Context, 1)
		err := inside(t, store, func(ctx context.Context, tx pgx.Tx) error {
			ended <- ctx
			if _, err := charge("a")(ctx, tx); err != nil {
				return err
			}
			_, _, err := idempotency.DoTx(ctx, store, tx, keyOf("inner"), charge("b"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx := <-ended // of a goroutine that has outlived its function
		run(t, pool, `select 1`)
		if _, err := pool.Exec(ctx, `select 1`); err != nil {
			t.Error(err)
		}
		if _, _, err := idempotency.Do(ctx, store, keyOf("next"), charge("c")); err != nil {
			t.Error(err)
		}
	}))
}

func TestGuardKeepsTheHooksThatAreThere(t *testing.T) {
	t.Parallel()
	tracer := &countingTracer{}
	prepared := 0
	wantNone(t, guarded(t, func(t testing.TB, pool *pgxpool.Pool, store *idempotency.Store) { run(t, pool, `select 1`) },
		func(cfg *pgxpool.Config) {
			cfg.ConnConfig.Tracer = tracer
			cfg.PrepareConn = func(context.Context, *pgx.Conn) (bool, error) { prepared++; return true, nil }
		}))
	if tracer.queries == 0 || tracer.acquired == 0 || prepared == 0 {
		t.Errorf("%d queries and %d acquisitions traced, %d connections prepared", tracer.queries, tracer.acquired, prepared)
	}
}

type countingTracer struct{ queries, acquired int }

func (c *countingTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.queries++
	return ctx
}
func (*countingTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (c *countingTracer) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	c.acquired++
	return ctx
}
func (*countingTracer) TraceAcquireEnd(context.Context, *pgxpool.Pool, pgxpool.TraceAcquireEndData) {}

// A pool can outlive the test that has guarded it.
func TestGuardIsSilentOnceItsTestHasEnded(t *testing.T) {
	t.Parallel()
	var pool *pgxpool.Pool
	database := testDatabase(t)
	wantNone(t, record(t, func(guardedTest testing.TB) {
		pool = pgtest.Pool(t, database, func(cfg *pgxpool.Config) { idemtest.Guard(guardedTest, cfg) })
		if err := pool.Ping(t.Context()); err != nil {
			t.Error(err)
		}
	}))
	store := idemtest.New(t, pool, idempotency.Config{})
	err := inside(t, store, func(ctx context.Context, tx pgx.Tx) error {
		_, err := pool.Exec(ctx, `select 1`)
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestGuardThatIsTooLateFailsTheTest(t *testing.T) {
	t.Parallel()
	database := testDatabase(t)
	want(t, record(t, func(t testing.TB) {
		pool := pgtest.Pool(t, database)
		idemtest.Guard(t, pool.Config()) // a copy
		inside(t, idemtest.New(t, pool, idempotency.Config{}), func(ctx context.Context, _ pgx.Tx) error {
			_, err := pool.Exec(ctx, `insert into charges (request) values ('stray')`)
			return err
		})
	}), "before the pool is made")
}
