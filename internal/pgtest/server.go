package pgtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/migrations"
)

// pristine is PostgreSQL's template that nobody can connect to or change.
const pristine = "template0"

// limit bounds what is done outside of tests' own statements.
const limit = 30 * time.Second

// A server is the PostgreSQL of this process's tests.
type server struct {
	config   *pgxpool.Config // of DATABASE_URL
	direct   *pgxpool.Config // past a pooler, if there is one
	admin    *pgxpool.Pool   // on DATABASE_URL's own database, direct
	maxConns int
	version  int                    // server_version_num
	template func() (string, error) // makes migrated when first asked for
	migrated string                 // the database that New copies

	// Databases are named pgtest_RUN_NUMBER. As long as this process lives, alive
	// holds an advisory lock on RUN, so that others know not to remove them.
	run   uint32
	alive *pgx.Conn
	last  atomic.Int64
}

// lockClass is the first half of the advisory lock's key, the run the second.
const lockClass = 1346848340

// connect returns the server, connected once per process.
var connect = sync.OnceValues(func() (*server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	s := &server{run: rand.Uint32()}
	var err error
	if s.config, err = pgxpool.ParseConfig(os.Getenv("DATABASE_URL")); err != nil {
		return nil, err
	}
	s.direct = s.config
	if url := os.Getenv("DATABASE_URL_DIRECT"); url != "" {
		if s.direct, err = pgxpool.ParseConfig(url); err != nil {
			return nil, err
		}
	}
	s.template = sync.OnceValues(s.makeTemplate)
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	s.removeStale(ctx)
	return s, nil
})

func (s *server) connect(ctx context.Context) (err error) {
	if s.admin, err = pgxpool.NewWithConfig(ctx, s.direct.Copy()); err != nil {
		return err
	}
	if s.alive, err = pgx.ConnectConfig(ctx, s.direct.ConnConfig.Copy()); err != nil {
		return err
	}
	return s.alive.QueryRow(ctx, `
		select current_setting('max_connections')::int, current_setting('server_version_num')::int from pg_advisory_lock($1, $2)`,
		lockClass, int32(s.run)).Scan(&s.maxConns, &s.version)
}

// removeStale drops the databases of processes that were killed. Their lock went
// with them; pg_locks shows the locks taken from any database.
func (s *server) removeStale(ctx context.Context) {
	rows, _ := s.admin.Query(ctx, `
		select datname from pg_database
		where datname ~ '^pgtest_[0-9a-f]{8}_' and not exists (
			select from pg_locks
			where locktype = 'advisory' and classid = $1
			and lpad(to_hex(objid::bigint), 8, '0') = substr(datname, 8, 8))`,
		lockClass)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return
	}
	for _, name := range names {
		s.drop(ctx, name) // may fail: another process does the same
	}
}

// makeTemplate makes the migrated database.
func (s *server) makeTemplate() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	name, err := s.createFrom(ctx, pristine)
	if err != nil {
		return "", err
	}
	s.migrated = name
	cfg := s.direct.Copy()
	cfg.ConnConfig.Database = name
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer pool.Close() // a template cannot be copied while it is connected to
	if err := migrations.Up(ctx, pool, ""); err != nil {
		return "", err
	}
	if TableKind != "" {
		_, err = pool.Exec(ctx, partitionSQL)
	}
	return name, err
}

// create makes a database that is dropped at the end of the test.
func (s *server) create(t testing.TB, template string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	name, err := s.createFrom(ctx, template)
	if err != nil {
		t.Fatal("pgtest: ", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := s.drop(ctx, name); err != nil {
			t.Error("pgtest: ", err)
		}
	})
	return name
}

func (s *server) createFrom(ctx context.Context, template string) (string, error) {
	name := fmt.Sprintf("pgtest_%08x_%d", s.run, s.last.Add(1))
	_, err := s.admin.Exec(ctx, "create database "+name+" template "+template)
	if err == nil && TableKind == "distributed" {
		err = s.sayDistributed(ctx, name)
	}
	if err != nil {
		return "", fmt.Errorf("creating a database: %w", err)
	}
	return name, nil
}

// TableKind is set before the first database is made: "partitioned" makes New's table one
// that is partitioned by scope, so that a ctid is a place in each partition. With
// "distributed", each database also says that Citus distributes its tables, so that a Store
// uses its statements for that. It is not Citus: what they do on several nodes is not tested.
var TableKind string

const partitionSQL = `
	alter table idempotency_keys rename to former;
	create table idempotency_keys (like former including all) partition by hash (scope);
	create table idempotency_keys_0 partition of idempotency_keys for values with (modulus 2, remainder 0) with (fillfactor = 95);
	create table idempotency_keys_1 partition of idempotency_keys for values with (modulus 2, remainder 1) with (fillfactor = 95);
	drop table former`

func (s *server) sayDistributed(ctx context.Context, name string) error {
	cfg := s.direct.ConnConfig.Copy()
	cfg.Database = name
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, `
		set allow_system_table_mods = on;
		create or replace view pg_catalog.pg_dist_partition as
			select oid::regclass as logicalrelid, 'h'::"char" as partmethod, 's'::"char" as repmodel, 1 as colocationid,
				':varattno ' || (select attnum from pg_attribute where attrelid = c.oid and attname = 'scope') as partkey
			from pg_class c where relname like 'idempotency\_%';
		grant select on pg_catalog.pg_dist_partition to public;
		alter database `+name+` set citus.cluster_name = 'texts'`)
	return err
}

func (s *server) drop(ctx context.Context, name string) error {
	_, err := s.admin.Exec(ctx, "drop database if exists "+pgx.Identifier{name}.Sanitize()+" with (force)")
	if err != nil {
		return fmt.Errorf("dropping a database: %w", err)
	}
	return nil
}

// close removes the template, the last database of this process.
func (s *server) close() {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if s.migrated != "" {
		if err := s.drop(ctx, s.migrated); err != nil {
			fmt.Fprintln(os.Stderr, "pgtest:", err)
		}
	}
	s.admin.Close()
	s.alive.Close(ctx)
}
