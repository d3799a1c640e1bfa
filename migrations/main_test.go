package migrations_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgtest"
	"github.com/pgidem/idempotency/migrations"
)

// The test binary, started again with jobEnv set, is a process that migrates.
const (
	jobEnv    = "MIGRATIONS_TEST_JOB" // a key of jobs
	schemaEnv = "MIGRATIONS_TEST_SCHEMA"
	killEnv   = "MIGRATIONS_TEST_KILL" // after so many statements
)

type job func(context.Context, *pgxpool.Pool, string) error

var jobs = map[string]job{"up": migrations.Up, "down": migrations.Down}

// made has the tables, and the migration that makes each.
var made = map[string]uint{"idempotency_keys": 1, "idempotency_operations": 3}

func TestMain(m *testing.M) {
	if os.Getenv(jobEnv) != "" {
		if err := work(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	pgtest.Main(m)
}

func work() error {
	cfg, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	if n, _ := strconv.Atoi(os.Getenv(killEnv)); n > 0 {
		cfg.ConnConfig.Tracer = &counter{after: n, then: killed}
	}
	ctx := context.Background()
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer pool.Close()
	return jobs[os.Getenv(jobEnv)](ctx, pool, os.Getenv(schemaEnv))
}

func killed() {
	if self, err := os.FindProcess(os.Getpid()); err != nil || self.Kill() != nil {
		panic("cannot kill this process")
	}
	select {}
}

// process prepares a process that migrates.
func process(t *testing.T, pool *pgxpool.Pool, job, schema string, kill int) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+pgtest.URL(pool),
		jobEnv+"="+job, schemaEnv+"="+schema, killEnv+"="+strconv.Itoa(kill))
	return cmd
}

// A counter calls then when the given number of statements have been answered.
type counter struct {
	seen, after int
	then        func()
}

func (c *counter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (c *counter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {
	if c.seen++; c.seen == c.after {
		c.then()
	}
}

func traced(tracer pgx.QueryTracer) pgtest.Option {
	return func(cfg *pgxpool.Config) { cfg.ConnConfig.Tracer = tracer }
}

// param sets one of the server's settings for all connections of a pool.
func param(name, value string) pgtest.Option {
	return func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams[name] = value }
}

func up(t *testing.T, pool *pgxpool.Pool, schema string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // else what waits in vain hangs
	defer cancel()
	if err := migrations.Up(ctx, pool, schema); err != nil {
		t.Fatal("up: ", err)
	}
}

func down(t *testing.T, pool *pgxpool.Pool, schema string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // else what waits in vain hangs
	defer cancel()
	if err := migrations.Down(ctx, pool, schema); err != nil {
		t.Fatal("down: ", err)
	}
}

func wantVersion(t *testing.T, pool *pgxpool.Pool, schema string, want uint) {
	t.Helper()
	got, err := migrations.Version(t.Context(), pool, schema)
	if got != want || err != nil {
		t.Errorf("version %d, %v; want %d", got, err, want)
	}
}

// wantError checks that err says each of the words.
func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not say %q", err, word)
		}
	}
}

// wantWhole checks that schema holds exactly what the files make.
func wantWhole(t *testing.T, pool *pgxpool.Pool, schema string) {
	t.Helper()
	wantVersion(t, pool, schema, uint(len(files(t))))
	if got, want := catalog(t, pool, schema), catalog(t, pool, reference(t, pool)); got != want {
		t.Errorf("schema %q has\n%s\nwant\n%s", schema, got, want)
	}
}

// reference makes, and names, a schema to which nothing but the files was
// applied. Parallel subtests can ask for it at once.
func reference(t *testing.T, pool *pgxpool.Pool) string {
	t.Helper()
	const name = "reference schema"
	if query[bool](t, pool, `select not exists (select from pg_namespace where nspname = $1)`, name) {
		sql := `select pg_advisory_xact_lock(1); create schema if not exists "` + name + `"; set local search_path to "` + name + `"; `
		for _, file := range files(t) {
			sql += read(t, file)
		}
		do(t, pool, sql) // in one implicit transaction
	}
	return name
}

// files are the up migrations in order.
func files(t *testing.T) []string {
	t.Helper()
	names, err := fs.Glob(migrations.FS, "*.up.sql")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	return names
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := migrations.FS.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// wantNothing checks that schema is empty.
func wantNothing(t *testing.T, pool *pgxpool.Pool, schema string) {
	t.Helper()
	wantVersion(t, pool, schema, 0)
	if got := catalog(t, pool, schema); got != "" {
		t.Errorf("schema %q has\n%s\nwant nothing", schema, got)
	}
}

// catalog describes the tables and indexes in schema, but for the version table,
// sorted.
func catalog(t *testing.T, pool *pgxpool.Pool, schema string) (text string) {
	t.Helper()
	const query = `
		with tables as (
			select c.oid, c.relname, c.reloptions from pg_class c join pg_namespace n on n.oid = c.relnamespace
			where n.nspname = $1 and c.relkind = 'r' and c.relname not in ('idempotency_migrations', 'schema_migrations')),
		lines as (
			select concat_ws(' ', relname, attname, format_type(atttypid, atttypmod), nullif(collname, 'default'),
				case when attnotnull then 'not null' end, 'default ' || pg_get_expr(adbin, adrelid)) line
			from tables join pg_attribute a on attrelid = tables.oid and attnum > 0 and not attisdropped
			left join pg_collation c on c.oid = attcollation
			left join pg_attrdef on adrelid = attrelid and adnum = attnum
			union all
			select concat_ws(' ', relname, 'with', reloptions) from tables
			union all
			select replace(pg_get_indexdef(indexrelid), ' ' || quote_ident($1) || '.', ' ')
			from tables join pg_index on indrelid = oid)
		select coalesce(string_agg(line, E'\n' order by line collate "C"), '') from lines`
	if err := pool.QueryRow(t.Context(), query, schema).Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}

func do(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func query[T any](t *testing.T, pool *pgxpool.Pool, sql string, args ...any) (value T) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), sql, args...).Scan(&value); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}

// eventually waits for something that the server does in its own time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain: ", what)
		}
	}
}
