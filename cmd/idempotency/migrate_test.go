package main_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/golang-migrate/migrate/v4/database"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestUpVersionDown(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	for _, args := range [][]string{nil, {"-schema", `My "Schema"`}} {
		migrate := func(name string, more ...string) result {
			t.Helper()
			return run(t, on(pool), append(append([]string{"migrate", name}, args...), more...)...)
		}
		note := "idempotency: version " + latest() + " is the newest: run 'idempotency migrate up'\n"
		migrate("version").want(t, 0, "0\n", note)
		migrate("up").want(t, 0, "up to date\n", "")
		migrate("up").want(t, 0, "up to date\n", "")
		migrate("version").want(t, 0, latest()+"\n", "")
		migrate("down", "-yes").want(t, 0, "removed\n", "")
		migrate("down", "-yes").want(t, 0, "removed\n", "")
		migrate("version").want(t, 0, "0\n", note)
	}
}

func TestSQLNeedsNoDatabaseAndMakesWhatUpMakes(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	for _, schema := range []string{"", `My "Schema"`, "it's"} {
		var args []string
		name := "public"
		if schema != "" {
			name, args = schema, []string{"-schema", schema}
			do(t, pool, `create schema "`+strings.ReplaceAll(schema, `"`, `""`)+`"`)
		}
		r := run(t, nil, append([]string{"migrate", "sql"}, args...)...)
		if r.exit != 0 || r.stderr != "" {
			t.Fatalf("%+v", r)
		}
		apply(t, pool, r.stdout)
		made := catalog(t, pool, name)
		if made == "" {
			t.Fatalf("schema %q is empty after\n%s", name, r.stdout)
		}
		other := pgtest.Empty(t)
		run(t, on(other), append([]string{"migrate", "up"}, args...)...).want(t, 0, "up to date\n", "")
		do(t, other, `drop table "`+strings.ReplaceAll(name, `"`, `""`)+`".idempotency_migrations`)
		if want := catalog(t, other, name); made != want {
			t.Errorf("sql made\n%s\nup made\n%s", made, want)
		}
	}
}

func TestSQLReportsThatItCannotBeWritten(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	cmd := command(t, nil, "migrate", "sql")
	cmd.Stdout = full
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Error(err)
	}
}

func TestFailedMigrationIsReportedInOneLine(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	do(t, pool, `create domain idempotency_keys as text`)
	run(t, on(pool), "migrate", "up").wantLine(t, 1,
		"idempotency: migration 1 (0001_create_idempotency_keys.up.sql)", "SQLSTATE 42710", "remove the cause and run Up again")
}

func TestDownWithoutTerminalAndYesIsRefused(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	run(t, on(pool), "migrate", "up").want(t, 0, "up to date\n", "")

	cmd := command(t, on(pool), "migrate", "down")
	cmd.Stdin = strings.NewReader("yes\n") // a pipe
	finish(t, cmd).wantLine(t, 2, "drops the tables, with all recorded results and unfinished operations", pool.Config().ConnConfig.Database, "add -yes")

	cmd = command(t, on(pool), "migrate", "down") // reads /dev/null
	if r := finish(t, cmd); r.exit != 2 || !strings.Contains(r.stderr, "add -yes") {
		t.Errorf("%+v", r)
	}
	run(t, on(pool), "migrate", "version").want(t, 0, latest()+"\n", "")
}

func TestTimeoutEndsTheWaitForAnotherMigration(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	lock(t, pool)
	run(t, on(pool), "migrate", "up", "-timeout", "2s").
		wantLine(t, 1, "gave up after 2s (-timeout)", `waiting for another session that is migrating schema "public"`)
}

func TestInterruptEndsTheWaitForAnotherMigration(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	lock(t, pool)
	cmd := command(t, append(on(pool), "PGAPPNAME=interrupted"), "migrate", "up")
	wait := start(t, cmd)
	asked := make(map[time.Time]bool) // twice: the first time was refused
	eventually(t, "the wait", func() bool {
		var at time.Time
		err := pool.QueryRow(t.Context(), `
			select query_start from pg_stat_activity
			where application_name = 'interrupted' and query ~ 'advisory_lock'`).Scan(&at)
		if err == nil {
			asked[at] = true
		}
		return len(asked) > 1
	})
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	wait().wantLine(t, 1, "interrupted", `waiting for another session that is migrating schema "public"`)
}

// lock is held by a session that migrates, until the test ends.
func lock(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	id, err := database.GenerateAdvisoryLockId(pool.Config().ConnConfig.Database, "public", "idempotency_migrations")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Conn().Close(context.Background())
		conn.Release()
	})
	if _, err := conn.Exec(t.Context(), `select pg_advisory_lock($1::bigint)`, id); err != nil {
		t.Fatal(err)
	}
}

func do(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// apply runs a script as psql does, in a session of its own.
func apply(t *testing.T, pool *pgxpool.Pool, script string) {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	defer conn.Conn().Close(context.Background())
	if _, err := conn.Conn().PgConn().Exec(t.Context(), script).ReadAll(); err != nil {
		t.Fatalf("%s: %v", script, err)
	}
}

// catalog describes the tables and indexes of a schema.
func catalog(t *testing.T, pool *pgxpool.Pool, schema string) (text string) {
	t.Helper()
	const query = `
		with tables as (
			select c.oid, c.relname, c.reloptions from pg_class c join pg_namespace n on n.oid = c.relnamespace
			where n.nspname = $1 and c.relkind = 'r')
		select coalesce(string_agg(line, E'\n' order by line), '') from (
			select concat_ws(' ', relname, reloptions, attnum, attname, format_type(atttypid, atttypmod), collname, attnotnull, pg_get_expr(adbin, adrelid)) line
			from tables join pg_attribute on attrelid = tables.oid and attnum > 0
			left join pg_collation c on c.oid = attcollation
			left join pg_attrdef on adrelid = attrelid and adnum = attnum
			union all
			select pg_get_indexdef(indexrelid) from tables join pg_index on indrelid = oid) lines`
	if err := pool.QueryRow(t.Context(), query, schema).Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}
