// Package pgtest gives each test of this repository a PostgreSQL database of its
// own, so that tests can run in parallel, and checks at the end of the test that
// no connection was leaked and no transaction left open.
//
// For most tests, pool := pgtest.New(t) is enough. Each test package that uses it
// has
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
//
// The server is the one of DATABASE_URL, which "make test" sets. Its user must
// be allowed to create databases. When that leads through a pooler,
// DATABASE_URL_DIRECT is for what a pooler in transaction mode cannot do: to make
// databases, to migrate, and the pools that set a parameter for their sessions.
package pgtest

import (
	"context"
	"flag"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/migrations"
)

// An Option changes the configuration of a pool before it is opened.
type Option = func(*pgxpool.Config)

// MaxConns sets the size of the pool; default 8.
func MaxConns(n int32) Option {
	return func(cfg *pgxpool.Config) { cfg.MaxConns = n }
}

// Direct leads a pool past the pooler, if there is one: for what a test looks at
// from outside.
func Direct(cfg *pgxpool.Config) {
	s, err := connect()
	if err != nil {
		return // the test has failed with it
	}
	cfg.ConnConfig.Host, cfg.ConnConfig.Port = s.direct.ConnConfig.Host, s.direct.ConnConfig.Port
}

// New returns a pool on a new database in which migrations.Up has run. At the
// end of the test the pool is checked and closed, and the database dropped.
func New(t testing.TB, opts ...Option) *pgxpool.Pool {
	t.Helper()
	s := connected(t)
	template, err := s.template()
	if err != nil {
		t.Fatal("pgtest: making the template database: ", err)
	}
	return s.open(t, s.create(t, template), opts)
}

// Empty is New without the migrations.
func Empty(t testing.TB, opts ...Option) *pgxpool.Pool {
	t.Helper()
	s := connected(t)
	return s.open(t, s.create(t, pristine), opts)
}

// Encoded is New on a database of another encoding than the server's others.
func Encoded(t testing.TB, encoding string, opts ...Option) *pgxpool.Pool {
	t.Helper()
	s := connected(t)
	locale := " lc_collate 'C' lc_ctype 'C'"
	if s.version >= 150000 {
		locale += " locale_provider 'libc'" // ICU has not every encoding
	}
	pool := s.open(t, s.create(t, pristine+" encoding '"+encoding+"'"+locale), opts)
	if err := migrations.Up(context.Background(), pool, ""); err != nil {
		t.Fatal("pgtest: ", err)
	}
	return pool
}

// Pool returns one more pool on the database of pool. It does not inherit that
// pool's options. It too is checked and closed at the end of the test.
func Pool(t testing.TB, pool *pgxpool.Pool, opts ...Option) *pgxpool.Pool {
	t.Helper()
	return connected(t).open(t, pool.Config().ConnConfig.Database, opts)
}

// URL returns what DATABASE_URL must be for a child process to use the database
// of pool.
func URL(pool *pgxpool.Pool) string {
	return OnDatabase(os.Getenv("DATABASE_URL"), pool.Config().ConnConfig.Database)
}

// OnDatabase returns a connection string, of either form, for another database.
func OnDatabase(dsn, database string) string {
	u, err := url.Parse(dsn)
	if err != nil || u.Scheme == "" { // keywords and values, of which the last wins
		return dsn + " dbname=" + database
	}
	query := u.Query()
	query.Del("dbname")
	query.Del("database")
	u.Path, u.RawQuery = "/"+database, query.Encode()
	return u.String()
}

// Main runs the tests of a package, and then removes what they shared. Most tests wait
// more than they compute: so at least three run at a time, unless -parallel says
// otherwise, and no more than the server's max_connections allow. Its caller returns
// afterwards.
func Main(m *testing.M) {
	if os.Getenv("DATABASE_URL") == "" {
		m.Run() // tests that need no server pass, the others say what to do
		return
	}
	s, err := connect()
	if err != nil {
		fmt.Fprintln(os.Stderr, "pgtest:", err)
		os.Exit(1)
	}
	defer s.close()
	flag.Parse()
	setParallel(s.maxConns)
	m.Run()
}

// setParallel leaves 40 connections to each test that runs at a time: two full
// pools, and as many for another package's tests.
func setParallel(maxConns int) {
	parallel := flag.Lookup("test.parallel")
	n, err := strconv.Atoi(parallel.Value.String())
	if err != nil {
		return
	}
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f == parallel })
	if !given {
		n = max(n, 3)
	}
	parallel.Value.Set(strconv.Itoa(min(n, max(2, maxConns/40))))
}

func connected(t testing.TB) *server {
	t.Helper()
	if os.Getenv("DATABASE_URL") == "" {
		t.Fatal("pgtest: DATABASE_URL is not set: run `make test`, which starts a PostgreSQL and sets it")
	}
	s, err := connect()
	if err != nil {
		t.Fatal("pgtest: ", err)
	}
	return s
}

func (s *server) open(t testing.TB, database string, opts []Option) *pgxpool.Pool {
	t.Helper()
	cfg := s.config.Copy()
	cfg.ConnConfig.Database = database
	cfg.ConnConfig.RuntimeParams["application_name"] = applicationName(t)
	cfg.MaxConns = 8
	for _, opt := range opts {
		opt(cfg)
	}
	if to, pooler := cfg.ConnConfig, s.config.ConnConfig; setsSession(cfg) && to.Host == pooler.Host && to.Port == pooler.Port {
		Direct(cfg)
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		t.Fatal("pgtest: ", err)
	}
	t.Cleanup(func() {
		t.Helper()
		if s.checkHealth(t, pool) {
			pool.Close()
		} else {
			go pool.Close() // would wait for the leaked connection
		}
	})
	return pool
}

// setsSession reports whether a pool has parameters for its sessions. PgBouncer
// refuses all but application_name.
func setsSession(cfg *pgxpool.Config) bool {
	_, named := cfg.ConnConfig.RuntimeParams["application_name"]
	return len(cfg.ConnConfig.RuntimeParams) > 1 || !named
}

// applicationName is the name of the test, in the ASCII that the server allows.
func applicationName(t testing.TB) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, t.Name())
}
