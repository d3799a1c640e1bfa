// Package idemtest shows, in your own tests and on your own PostgreSQL, that your
// program has one effect and one answer per idempotency key: under parallel
// duplicates, and when its connection is lost before or after COMMIT. Where it is
// not so, it says what was expected, what was found and what is most likely wrong.
//
// For most uses, [Storm] is all you need. It runs your program against the test
// database, with a Store in a schema of its own:
//
//	idemtest.Storm(t, pool, 20, idemtest.Program{
//		Start: func(pool *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
//			payments := NewPayments(pool, store) // your program
//			return func(ctx context.Context, id string) (any, bool, error) {
//				return payments.Charge(ctx, id, "10 EUR")
//			}
//		},
//		Effects: func(ctx context.Context, pool *pgxpool.Pool, id string) (n int, err error) {
//			err = pool.QueryRow(ctx, "select count(*) from charges where request = $1", id).Scan(&n)
//			return n, err
//		},
//	})
//
// [StormProcedure] does the same for an [idempotency.Procedure], beside a provider that keeps
// idempotency keys. [HTTP] makes a Call of an [http.Handler]. [New] is for tests of your own, and
// [Guard] finds statements that were sent through the pool instead of the
// transaction; Storm has it built in.
//
// The role needs the right to create schemas in the test database, and a direct
// connection: a pooler in transaction mode does not do.
package idemtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/remedy"
	"github.com/pgidem/idempotency/migrations"
)

// limit bounds what is done outside of the program under test.
const limit = 30 * time.Second

// New returns a Store on pool, in a migrated schema of its own, which is dropped
// when the test ends, also when it fails or panics; what a killed process has
// left, the next New removes. Tests with a Store each can run in parallel and
// never meet.
//
// Your own tables are where the pool finds them: only the keys are in the new
// schema. It fails the test at once if the database cannot be reached, the role
// cannot create schemas, or cfg is not valid; cfg.Schema must be empty.
func New(t testing.TB, pool *pgxpool.Pool, cfg idempotency.Config) *idempotency.Store {
	t.Helper()
	if pool == nil {
		t.Fatal("idemtest: pool is nil: give the pool of your test database")
	}
	if cfg.Schema != "" {
		t.Fatalf("idemtest: Config.Schema is %q: leave it empty, the schema is made for this test", cfg.Schema)
	}
	cfg.Schema = newSchema(t, pool).name
	store, err := idempotency.NewWithConfig(pool, cfg)
	if err != nil {
		t.Fatal("idemtest: ", err)
	}
	return store
}

// A schema is one test's. As long as its connection lives, an advisory lock on
// its number tells others not to remove it.
type schema struct {
	name string
	conn *pgx.Conn // of the pool's configuration, but not one of the pool's
}

// lockClass is the first half of the advisory lock's key, the number the second.
const lockClass = 1768187252

// newSchema makes a schema and the table in it.
func newSchema(t testing.TB, pool *pgxpool.Pool) *schema {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	s, err := createSchema(ctx, pool)
	if err != nil {
		t.Fatal("idemtest: ", err)
	}
	t.Cleanup(func() {
		if err := s.drop(); err != nil {
			t.Error("idemtest: ", err)
		}
	})
	if err := migrations.Up(ctx, pool, s.name); err != nil {
		t.Fatal("idemtest: making the table: ", err)
	}
	return s
}

func createSchema(ctx context.Context, pool *pgxpool.Pool) (*schema, error) {
	conn, err := connect(ctx, pool)
	if err != nil {
		to := pool.Config().ConnConfig
		return nil, fmt.Errorf("the test database %q on %s:%d cannot be reached: is it running, and is the connection string of the pool right? %w", to.Database, to.Host, to.Port, err)
	}
	removeStale(ctx, conn)
	number := rand.Uint32()
	s := &schema{name: fmt.Sprintf("idemtest_%08x", number), conn: conn}
	if _, err = conn.Exec(ctx, `select pg_advisory_lock($1, $2)`, lockClass, int32(number)); err == nil {
		_, err = conn.Exec(ctx, `create schema `+s.name)
	}
	if err != nil {
		defer conn.Close(ctx)
		return nil, explainCreate(ctx, conn, err)
	}
	return s, nil
}

// connect opens a connection as the pool would, but beside it: the test may hold
// all of the pool's, and may have closed it by the end.
func connect(ctx context.Context, pool *pgxpool.Pool) (*pgx.Conn, error) {
	cfg := pool.Config()
	to := cfg.ConnConfig
	to.Tracer = nil
	if cfg.BeforeConnect != nil { // it may fetch the password
		if err := cfg.BeforeConnect(ctx, to); err != nil {
			return nil, err
		}
	}
	return pgx.ConnectConfig(ctx, to)
}

func explainCreate(ctx context.Context, conn *pgx.Conn, err error) error {
	var role, database string
	_ = conn.QueryRow(ctx, `select current_user, current_database()`).Scan(&role, &database) // else they are empty
	if remedy.Denied(err) {
		return fmt.Errorf("the role %q may not create schemas in the test database %q: as its owner, grant create on database %s to %s: %w",
			role, database, pgx.Identifier{database}.Sanitize(), pgx.Identifier{role}.Sanitize(), err)
	}
	return fmt.Errorf("creating a schema in the test database %q: %w", database, err)
}

// removeStale drops the schemas of processes that were killed: nobody holds their
// lock. What it cannot drop belongs to another role, or is being dropped.
func removeStale(ctx context.Context, conn *pgx.Conn) {
	rows, _ := conn.Query(ctx, `
		select nspname::text from pg_namespace
		where nspname ~ '^idemtest_[0-9a-f]{8}$' and not exists (
			select from pg_locks
			where locktype = 'advisory' and classid = $1
			and database = (select oid from pg_database where datname = current_database())
			and lpad(to_hex(objid::bigint), 8, '0') = substr(nspname, 10, 8))`,
		lockClass)
	names, _ := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, name := range names {
		_ = dropSchema(ctx, conn, name)
	}
}

func dropSchema(ctx context.Context, conn *pgx.Conn, name string) error {
	_, err := conn.Exec(ctx, `set lock_timeout = '10s'; drop schema if exists `+pgx.Identifier{name}.Sanitize()+` cascade`)
	return err
}

func (s *schema) drop() error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	defer s.conn.Close(ctx)
	err := dropSchema(ctx, s.conn, s.name)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "55P03" {
		return fmt.Errorf("the schema %s cannot be dropped, since the test has left a transaction open that uses it: %w", s.name, err)
	}
	if err != nil {
		return fmt.Errorf("dropping the schema %s: %w", s.name, err)
	}
	return nil
}

// keys counts the records of the schema.
func (s *schema) keys(ctx context.Context) (n int, err error) {
	err = s.conn.QueryRow(ctx, `select count(*) from `+s.name+`.idempotency_keys`).Scan(&n)
	return n, err
}

// searchPath is that of the test database, behind the schema.
func (s *schema) searchPath(ctx context.Context) (path string, err error) {
	err = s.conn.QueryRow(ctx, `select current_setting('search_path')`).Scan(&path)
	return s.name + ", " + cmp.Or(path, `""`), err
}
