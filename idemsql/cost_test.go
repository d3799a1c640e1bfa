package idemsql_test

import (
	"context"
	"database/sql"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemsql"
	"github.com/pgidem/idempotency/internal/pgproxy"
)

// A counter counts the round trips of calls with a function on a warm connection.
type counter struct {
	*bundle
	onProxy *pgxpool.Pool
	store   *idempotency.Store
	proxy   *pgproxy.Proxy
}

func newCounter(t *testing.T) counter {
	b := setup(t)
	pool, proxy := b.through()
	return counter{b, pool, idempotency.New(pool), proxy}
}

// roundTrips are those of a first call and of its replay, with the ROLLBACK that
// may follow it.
func (c counter) roundTrips(name string, fn func(context.Context, pgx.Tx) (int64, error)) (first, replay int64) {
	c.Helper()
	call := func(i int, want bool) int64 {
		time.Sleep(50 * time.Millisecond) // the ROLLBACK of the replay before
		before := c.proxy.RoundTrips()
		key := idempotency.Key{Scope: name, ID: fmt.Sprint(i)}
		if _, replayed, err := idempotency.Do(c.Context(), c.store, key, fn); replayed != want || err != nil {
			c.Fatalf("%s: replayed %v, %v", name, replayed, err)
		}
		time.Sleep(50 * time.Millisecond)
		return c.proxy.RoundTrips() - before
	}
	for i := range 3 {
		first, replay = call(i, false), call(i, true)
	}
	return first, replay
}

func chargePgx(ctx context.Context, tx pgx.Tx) (id int64, err error) {
	err = tx.QueryRow(ctx, "insert into charges (account) values ('a') returning id").Scan(&id)
	return id, err
}

func TestFirstCallAndReplayCostTheRoundTripsOfPgx(t *testing.T) {
	t.Parallel()
	c := newCounter(t)
	first, replay := c.roundTrips("sql", idemsql.Func(charge))
	firstPgx, replayPgx := c.roundTrips("pgx", chargePgx)
	if first != 3 || replay > 2 {
		t.Errorf("first call %d, replay %d round trips; want 3, and 1 with a ROLLBACK behind it", first, replay)
	}
	if first != firstPgx || replay != replayPgx {
		t.Errorf("first call %d, replay %d round trips; with pgx %d and %d", first, replay, firstPgx, replayPgx)
	}
}

func TestPreparedStatementCostsNoRoundTrip(t *testing.T) {
	t.Parallel()
	c := newCounter(t)
	first, _ := c.roundTrips("prepared", idemsql.Func(func(ctx context.Context, tx *sql.Tx) (id int64, err error) {
		stmt, err := tx.PrepareContext(ctx, "insert into charges (account) values ($1) returning id")
		if err != nil {
			return 0, err
		}
		defer stmt.Close()
		err = stmt.QueryRowContext(ctx, "a").Scan(&id)
		return id, err
	}))
	if first != 3 {
		t.Errorf("%d round trips, want 3", first)
	}
}

func nothing(*sql.Tx) (int, error) { return 0, nil }

func TestRunCostsFewAllocations(t *testing.T) {
	b := setup(t)
	err := pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error {
		got := testing.AllocsPerRun(1000, func() {
			if _, err := idemsql.Run(t.Context(), tx, nothing); err != nil {
				t.Error(err)
			}
		})
		t.Log(got, "allocations")
		if got > 12 {
			t.Errorf("%v allocations, want at most 12", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Not parallel: it counts all goroutines.
func TestNoGoroutineIsLeft(t *testing.T) {
	b := setup(t)
	b.executes(charge) // starts the one of the process
	before := runtime.NumGoroutine()
	for i := range 200 {
		b.key.ID = fmt.Sprint(i)
		if _, _, err := b.do(t.Context(), func(ctx context.Context, tx *sql.Tx) (int64, error) {
			if _, err := tx.PrepareContext(ctx, "select 1"); err != nil {
				return 0, err
			}
			rows, err := tx.QueryContext(ctx, "select generate_series(1, 10)")
			if err == nil {
				rows.Next()
			}
			return 1, err
		}); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines before, %d afterwards:\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
		}
	}
}

func BenchmarkRun(b *testing.B) {
	pool := setup(b).pool
	tx, err := pool.Begin(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := idemsql.Run(b.Context(), tx, nothing); err != nil {
			b.Fatal(err)
		}
	}
}

// A thousand rows of six columns, in each of three ways.
func BenchmarkRows(b *testing.B) {
	pool := setup(b).pool
	const query = "select g, g::float8, g::text, g::numeric, now(), g % 2 = 0 from generate_series(1, 1000) g"
	read := func(b *testing.B, tx *sql.Tx) {
		rows, err := tx.QueryContext(b.Context(), query)
		if err != nil {
			b.Fatal(err)
		}
		defer rows.Close()
		var (
			n       int
			f       float64
			s, num  string
			at      time.Time
			isEven  bool
			columns = []any{&n, &f, &s, &num, &at, &isEven}
		)
		for rows.Next() {
			if err := rows.Scan(columns...); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("idemsql", func(b *testing.B) {
		tx, err := pool.Begin(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		defer tx.Rollback(context.Background())
		b.ReportAllocs()
		_, _ = idemsql.Run(b.Context(), tx, func(tx *sql.Tx) (int, error) {
			for b.Loop() {
				read(b, tx)
			}
			return 0, nil
		})
	})
	b.Run("stdlib", func(b *testing.B) {
		db := stdlib.OpenDBFromPool(pool)
		defer db.Close()
		tx, err := db.BeginTx(b.Context(), nil)
		if err != nil {
			b.Fatal(err)
		}
		defer tx.Rollback()
		b.ReportAllocs()
		for b.Loop() {
			read(b, tx)
		}
	})
}
