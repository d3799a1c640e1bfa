package idemtest_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemtest"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestNewIsMigratedAndGoneAfterwards(t *testing.T) {
	t.Parallel()
	pool := testDatabase(t)
	wantNone(t, record(t, func(t testing.TB) {
		call := correct(pool, idemtest.New(t, pool, idempotency.Config{}))
		for i := range 2 {
			n, replayed, err := call(context.Background(), "a")
			if n != 1 || replayed != (i == 1) || err != nil {
				t.Error(n, replayed, err)
			}
		}
		if schemas(t, pool) != 1 {
			t.Error("no schema")
		}
	}))
	if n := schemas(t, pool); n != 0 {
		t.Errorf("%d schemas are left", n)
	}
	if n := queryInt(t, pool, `select count(*) from pg_class where relname like 'idempotency%'`); n != 0 {
		t.Errorf("%d tables are left", n)
	}
	if n := queryInt(t, pool, `select count(*) from charges`); n != 1 {
		t.Errorf("%d charges: the user's own table was touched", n)
	}
}

func TestParallelTestsDoNotMeet(t *testing.T) {
	t.Parallel()
	pool := testDatabase(t)
	t.Run("all", func(t *testing.T) {
		for i := range 6 {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				_, replayed, err := correct(pool, idemtest.New(t, pool, idempotency.Config{}))(t.Context(), "the same id")
				if replayed || err != nil {
					t.Error(replayed, err)
				}
			})
		}
	})
	if n := queryInt(t, pool, `select count(*) from charges`); n != 6 {
		t.Errorf("%d effects, want 6", n)
	}
}

// The process is a real one: package testing itself ends the test.
func TestSchemaIsGoneAfterAFailedAndAPanickingTest(t *testing.T) {
	t.Parallel()
	pool := testDatabase(t)
	for _, how := range []string{"fail", "panic", "goexit"} {
		out := child(t, pool, how)
		if !strings.Contains(out, "the child has its schema") {
			t.Errorf("%s: it did not get as far: %s", how, out)
		}
		if n := schemas(t, pool); n != 0 {
			t.Errorf("%s: %d schemas are left", how, n)
		}
	}
}

func TestNextNewRemovesWhatAKilledProcessHasLeft(t *testing.T) {
	t.Parallel()
	pool := testDatabase(t)
	mine := idemtest.New(t, pool, idempotency.Config{})
	child(t, pool, "exit")
	if n := schemas(t, pool); n != 2 {
		t.Fatalf("%d schemas, want mine and the one left", n)
	}
	wantNone(t, record(t, func(t testing.TB) {
		// The server may not have noticed yet that the process is gone.
		for schemas(t, pool) > 2 || queryInt(t, pool, `select count(*) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())`) > 1 {
			time.Sleep(5 * time.Millisecond)
		}
		idemtest.New(t, pool, idempotency.Config{})
		if n := schemas(t, pool); n != 2 {
			t.Errorf("%d schemas, want mine and the new one", n)
		}
	}))
	if _, _, err := correct(pool, mine)(t.Context(), "a"); err != nil {
		t.Error("removed though its test runs: ", err)
	}
}

// child runs TestChild in a process of its own.
func child(t *testing.T, pool *pgxpool.Pool, how string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestChild$", "-test.v")
	cmd.Env = append(os.Environ(), "IDEMTEST_CHILD="+how, "IDEMTEST_DATABASE="+pgtest.URL(pool))
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Errorf("the child did not fail: %s", out)
	}
	return string(out)
}

// TestChild is what child runs; in any other process there is nothing to do.
func TestChild(t *testing.T) {
	how := os.Getenv("IDEMTEST_CHILD")
	if how == "" {
		return
	}
	pool, err := pgxpool.New(t.Context(), os.Getenv("IDEMTEST_DATABASE"))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close() // before the clean-up of New
	idemtest.New(t, pool, idempotency.Config{})
	if schemas(t, pool) > 0 {
		fmt.Println("the child has its schema")
	}
	switch how {
	case "fail":
		t.Error("failed")
	case "panic":
		panic("panicked")
	case "goexit":
		t.FailNow()
	case "exit":
		os.Exit(3)
	}
}

func TestUnreachableDatabaseIsAClearFailure(t *testing.T) {
	t.Parallel()
	pool, err := pgxpool.New(t.Context(), "postgres://nobody@127.0.0.1:1/shop?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	want(t, record(t, func(t testing.TB) { idemtest.New(t, pool, idempotency.Config{}) }),
		`the test database "shop" on 127.0.0.1:1 cannot be reached`)
}

func TestRoleThatMayNotCreateSchemasIsAClearFailure(t *testing.T) {
	t.Parallel()
	pool := testDatabase(t)
	role := pgx.Identifier{pool.Config().ConnConfig.Database + "_poor"}.Sanitize()
	do := func(sql string) { run(t, pool, sql) }
	do(`create role ` + role)
	defer do(`drop role ` + role)
	poor := pgtest.Pool(t, pool, func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["role"] = strings.Trim(role, `"`) })
	want(t, record(t, func(t testing.TB) { idemtest.New(t, poor, idempotency.Config{}) }),
		"may not create schemas in the test database", "grant create on database", "to "+role, "permission denied")
	if n := schemas(t, pool); n != 0 {
		t.Errorf("%d schemas are left", n)
	}
}

func TestNewRefusesWhatItCannotUse(t *testing.T) {
	t.Parallel()
	pool := testDatabase(t)
	want(t, record(t, func(t testing.TB) { idemtest.New(t, nil, idempotency.Config{}) }), "pool is nil")
	want(t, record(t, func(t testing.TB) { idemtest.New(t, pool, idempotency.Config{Schema: "mine"}) }), `Config.Schema is "mine"`)
	want(t, record(t, func(t testing.TB) { idemtest.New(t, pool, idempotency.Config{Retention: -1}) }), "Config.Retention")
	if n := schemas(t, pool); n != 0 {
		t.Errorf("%d schemas are left", n)
	}
}

// The pool is closed, or used up, by the time the schema is dropped.
func TestSchemaIsDroppedWhateverTheTestDoesWithItsPool(t *testing.T) {
	t.Parallel()
	pool := testDatabase(t)
	wantNone(t, record(t, func(t testing.TB) {
		small := pgtest.Pool(t, pool, pgtest.MaxConns(1))
		idemtest.New(t, small, idempotency.Config{})
		conn, err := small.Acquire(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(conn.Release)
		idemtest.New(t, small, idempotency.Config{})
	}))
	if n := schemas(t, pool); n != 0 {
		t.Errorf("%d schemas are left", n)
	}
}
