package idemsql_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemsql"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// A bundle is what a test starts with: a database of its own with one business
// table, a Store on it and a key.
type bundle struct {
	testing.TB
	pool  *pgxpool.Pool
	store *idempotency.Store
	key   idempotency.Key
}

func setup(t testing.TB, opts ...pgtest.Option) *bundle {
	t.Helper()
	b := &bundle{TB: t, pool: pgtest.New(t, opts...), key: idempotency.Key{Scope: "customer-1", ID: "key-1"}}
	b.store = idempotency.New(b.pool)
	b.exec(`create table charges (
		id bigint generated always as identity, account text not null, n int unique deferrable initially deferred)`)
	return b
}

func (b *bundle) exec(sql string, args ...any) {
	b.Helper()
	if _, err := b.pool.Exec(context.Background(), sql, args...); err != nil {
		b.Fatal(err)
	}
}

// A function is what the tests run through database/sql.
type function = func(ctx context.Context, tx *sql.Tx) (int64, error)

// do calls Do with the bundle's key.
func (b *bundle) do(ctx context.Context, fn function) (int64, bool, error) {
	return idempotency.Do(ctx, b.store, b.key, idemsql.Func(fn))
}

// executes expects fn to be run and its value to be recorded.
func (b *bundle) executes(fn function) {
	b.Helper()
	if _, replayed, err := b.do(b.Context(), fn); replayed || err != nil {
		b.Fatalf("replayed %v, %v; want an execution", replayed, err)
	}
	b.replays()
}

// replays expects the recorded value.
func (b *bundle) replays() {
	b.Helper()
	_, replayed, err := b.do(b.Context(), func(context.Context, *sql.Tx) (int64, error) {
		return 0, errors.New("the function of a replay was run")
	})
	if !replayed || err != nil {
		b.Fatalf("replayed %v, %v; want a replay", replayed, err)
	}
}

// fails expects an error that is one of want, and nothing left behind.
func (b *bundle) fails(fn function, want error) {
	b.Helper()
	_, _, err := b.do(b.Context(), fn)
	b.wantErr(err, want)
	b.charges(0)
	b.records(0)
}

func (b *bundle) wantErr(err, want error) {
	b.Helper()
	if !errors.Is(err, want) {
		b.Fatalf("got error %v, want %v", err, want)
	}
}

func (b *bundle) count(query string, args ...any) (n int) {
	b.Helper()
	if err := b.pool.QueryRow(context.Background(), query, args...).Scan(&n); err != nil {
		b.Fatal(err)
	}
	return n
}

func (b *bundle) charges(want int) {
	b.Helper()
	if got := b.count("select count(*) from charges"); got != want {
		b.Errorf("%d charges, want %d", got, want)
	}
}

func (b *bundle) records(want int) {
	b.Helper()
	if got := b.count("select count(*) from idempotency_keys"); got != want {
		b.Errorf("%d records, want %d", got, want)
	}
}

// through returns a pool of one connection that passes a proxy.
func (b *bundle) through() (*pgxpool.Pool, *pgproxy.Proxy) {
	b.Helper()
	server := b.pool.Config().ConnConfig
	network, at := "tcp", fmt.Sprintf("%s:%d", server.Host, server.Port)
	if strings.HasPrefix(server.Host, "/") {
		network, at = "unix", fmt.Sprintf("%s/.s.PGSQL.%d", server.Host, server.Port)
	}
	proxy := pgproxy.New(b, network, at)
	return pgtest.Pool(b, b.pool, pgtest.MaxConns(1), func(cfg *pgxpool.Config) {
		cfg.ConnConfig.Host, cfg.ConnConfig.Port = "127.0.0.1", proxy.Port()
		cfg.ConnConfig.Fallbacks = nil
	}), proxy
}

// charge inserts one charge.
func charge(ctx context.Context, tx *sql.Tx) (id int64, err error) {
	err = tx.QueryRowContext(ctx, "insert into charges (account) values ('a') returning id").Scan(&id)
	return id, err
}

var errRollBack = errors.New("roll back")

// ofStdlib is what fn says in a *sql.Tx of pgx's stdlib, which is rolled back.
func ofStdlib(t testing.TB, pool *pgxpool.Pool, fn func(*sql.Tx) string) (said string) {
	t.Helper()
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	return fn(tx)
}

// ofOurs is what fn says in a *sql.Tx of ours, which is rolled back.
func ofOurs(t testing.TB, pool *pgxpool.Pool, fn func(*sql.Tx) string) (said string) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		_, err := idemsql.Run(t.Context(), tx, func(tx *sql.Tx) (int, error) {
			said = fn(tx)
			return 0, errRollBack
		})
		return err
	})
	if !errors.Is(err, errRollBack) {
		t.Fatal(err)
	}
	return said
}

// same expects fn to say the same in both.
func same(t testing.TB, pool *pgxpool.Pool, fn func(*sql.Tx) string) {
	t.Helper()
	if got, want := ofOurs(t, pool, fn), ofStdlib(t, pool, fn); got != want {
		t.Errorf("ours:\n%s\nstdlib:\n%s", got, want)
	}
}
