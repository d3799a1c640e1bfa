package migrations_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgtest"
	"github.com/pgidem/idempotency/migrations"
)

func TestFailedUpIsReportedAndNeedsNoRepair(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	do(t, pool, `create domain idempotency_keys as text`)
	err := migrations.Up(t.Context(), pool, "")
	wantCode(t, err, "42710")
	wantError(t, err, "migration 1 (0001_create_idempotency_keys.up.sql)", `schema "public"`,
		"nothing of it was applied", "remove the cause and run Up again")
	wantVersion(t, pool, "", 0)

	do(t, pool, `drop domain idempotency_keys`)
	up(t, pool, "")
	wantWhole(t, pool, "public")
}

func TestFailureInALaterMigrationKeepsTheEarlier(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	forbid(t, pool, "create index")
	err := migrations.Up(t.Context(), pool, "")
	wantCode(t, err, "P0001")
	wantError(t, err, "migration 2 (0002_", ".up.sql)")
	wantVersion(t, pool, "", 1)
	err = migrations.Up(t.Context(), pool, "")
	wantError(t, err, "migration 2 (0002_")

	do(t, pool, `drop event trigger forbid`)
	up(t, pool, "")
	wantWhole(t, pool, "public")
}

func TestFailedDownIsReportedAndNeedsNoRepair(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	for _, tag := range []string{"drop index", "drop table"} {
		for name, job := range jobs {
			up(t, pool, "")
			forbid(t, pool, tag)
			err := migrations.Down(t.Context(), pool, "")
			wantCode(t, err, "P0001")
			wantError(t, err, ".down.sql)", "remove the cause and run Down again")
			do(t, pool, `drop event trigger forbid`)
			if err := job(t.Context(), pool, ""); err != nil {
				t.Error(err)
			} else if name == "up" {
				wantWhole(t, pool, "public")
			} else {
				wantNothing(t, pool, "public")
			}
		}
	}
}

func TestMissingRightsAreReported(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	name := role(t, pool)
	limited := pgtest.Pool(t, pool, param("role", name))
	do(t, pool, `revoke create on schema public from public`) // as since PostgreSQL 15
	owner := []string{`role "` + name + `" may not`, "let the owner of the tables do it", `create on schema "public"`}
	err := migrations.Up(t.Context(), limited, "")
	wantCode(t, err, "42501")
	wantError(t, err, append(owner, "permission denied for schema public", "run Up again")...)

	up(t, pool, "")
	do(t, pool, `grant select on idempotency_migrations to public`)
	err = migrations.Down(t.Context(), limited, "")
	wantCode(t, err, "42501")
	wantError(t, err, owner...)
	do(t, pool, `drop index idempotency_keys_purge_after; update idempotency_migrations set version = 1`)
	err = migrations.Up(t.Context(), limited, "")
	wantCode(t, err, "42501")
	wantError(t, err, owner...)
}

func TestMissingRightsToReadTheVersionAreNamedAsGrantsThatHelp(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	const schema = `My "S`
	up(t, pool, schema)
	name := role(t, pool)
	limited := pgtest.Pool(t, pool, param("role", name))
	for _, ask := range []func() error{
		func() error { return migrations.Up(t.Context(), limited, schema) },
		func() error { _, err := migrations.Version(t.Context(), limited, schema); return err },
	} {
		err := ask()
		wantCode(t, err, "42501")
		_, remedy, _ := strings.Cut(err.Error(), "to let the role read it: ")
		if !strings.Contains(remedy, `on schema "My ""S" to`) || !strings.Contains(remedy, `on "My ""S"."idempotency_migrations" to`) {
			t.Fatal("what to grant is not named: ", err)
		}
		do(t, pool, remedy)
		if err := ask(); err != nil {
			t.Error(err)
		}
		do(t, pool, strings.NewReplacer("grant", "revoke", " to ", " from ").Replace(remedy))
	}
	own := pgtest.Pool(t, pool, param("role", name), param("search_path", `"My ""S"`))
	wantError(t, migrations.Up(t.Context(), own, ""), "no existing schema that role", "grant usage")
}

func TestReadOnlyServerIsReported(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t, param("default_transaction_read_only", "on"))
	wantCode(t, migrations.Up(t.Context(), pool, ""), "25006")
}

func TestLostConnectionIsReported(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	victim := pgtest.Pool(t, pool, param("application_name", "victim"))
	do(t, pool, `create function stop() returns event_trigger language plpgsql as $$
		begin perform pg_terminate_backend(pg_backend_pid()); end $$;
		create event trigger forbid on ddl_command_start when tag in ('CREATE INDEX') execute function stop()`)
	err := migrations.Up(t.Context(), victim, "")
	wantCode(t, err, "57P01")
	wantError(t, err, "migration 2 (0002_", "Up goes on from here")
	do(t, pool, `drop event trigger forbid`)
	up(t, pool, "")
	wantWhole(t, pool, "public")
}

func TestForeignRelationIsRefusedAndUntouched(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	for _, row := range []struct{ schema, sql, why string }{
		{"other columns", `create table idempotency_keys (id bigint, key text)`, "it has no column scope, fingerprint, result"},
		{"no key", `create table idempotency_keys (id text, scope text, fingerprint bytea, result bytea, origin text,
			completed_at timestamptz, expires_at timestamptz, purge_after timestamptz)`, "no unique index on id and scope"},
		{"folding", `create collation folding (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
			create table idempotency_keys (id text collate folding, scope text, fingerprint bytea, result bytea, origin text,
			completed_at timestamptz, expires_at timestamptz, purge_after timestamptz, primary key (id, scope))`, "for the collation of column id different keys are equal"},
		{"view", `create view idempotency_keys as select 1`, "not a table"},
		{"sequence", `create sequence idempotency_keys`, "not a table"},
	} {
		do(t, pool, `create schema "`+row.schema+`"; set local search_path to "`+row.schema+`"; `+row.sql)
		before := catalog(t, pool, row.schema)
		err := migrations.Up(t.Context(), pool, row.schema)
		wantError(t, err, `"`+row.schema+`"."idempotency_keys" exists but was not made by this package`, row.why, "name another schema")
		if n := query[int](t, pool, `select count(*) from pg_class where relnamespace = (select oid from pg_namespace where nspname = $1) and relname = 'idempotency_migrations'`, row.schema); n != 0 {
			t.Error("the version table was made")
		}
		down(t, pool, row.schema)
		if after := catalog(t, pool, row.schema); after != before {
			t.Errorf("changed from\n%s\nto\n%s", before, after)
		}
	}
}

func TestIndexOfTheNameOnAnotherTableIsRefusedAndUntouched(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	const theirs = `create table other (purge_after int); create index idempotency_keys_purge_after on other (purge_after)`
	has := func(name string) bool {
		return query[bool](t, pool, "select to_regclass($1::text) is not null", name)
	}
	do(t, pool, theirs)
	wantError(t, migrations.Up(t.Context(), pool, ""), `"public"."idempotency_keys_purge_after"`, "is no index on", "rename")
	if has("idempotency_migrations") || has("idempotency_keys") {
		t.Error("Up has begun all the same")
	}
	do(t, pool, `drop index idempotency_keys_purge_after`)
	up(t, pool, "")
	// As an earlier release left it.
	do(t, pool, `drop index idempotency_keys_purge_after; create index idempotency_keys_purge_after on other (purge_after)`)
	wantError(t, migrations.Up(t.Context(), pool, ""), "no valid index on purge_after", "create index")
	down(t, pool, "")
	if !has("idempotency_keys_purge_after") || has("idempotency_keys") || has("idempotency_migrations") {
		t.Error("Down has dropped their index, or left our table")
	}
}

func TestIndexThatIsMissingIsReported(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pool, "")
	do(t, pool, `drop index idempotency_keys_purge_after`)
	wantError(t, migrations.Up(t.Context(), pool, ""), "no valid index on purge_after", `create index on "public"."idempotency_keys" (purge_after)`)
	do(t, pool, `create index another on idempotency_keys (purge_after)`)
	up(t, pool, "")
	do(t, pool, `drop index another; create index on idempotency_keys (purge_after) where scope = 's'`)
	wantError(t, migrations.Up(t.Context(), pool, ""), "no valid index on purge_after")
	down(t, pool, "")
}

func TestDownLeavesATableThatUpDidNotMake(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	for _, sql := range []string{
		`create table idempotency_keys (id bigint, note text)`,
		`create table idempotency_keys (purge_after timestamptz, id text, scope text, completed_at timestamptz, expires_at timestamptz, fingerprint bytea, result bytea, origin text)`,
	} {
		up(t, pool, "")
		do(t, pool, `drop table idempotency_keys; `+sql)
		wantError(t, migrations.Down(t.Context(), pool, ""), "was not made by this package", "rename")
		wantVersion(t, pool, "", uint(len(files(t))))
		do(t, pool, `alter table idempotency_keys rename to theirs`)
		down(t, pool, "")
		do(t, pool, `drop table theirs`)
	}
}

// The table is then ours, though another tool made it.
func TestTableMadeFromTheFilesIsTakenOver(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pool, reference(t, pool))
	wantWhole(t, pool, reference(t, pool))
}

func TestTableThatIsGoneIsReported(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pool, "")
	do(t, pool, `drop table idempotency_keys`)
	err := migrations.Up(t.Context(), pool, "")
	wantError(t, err, `"public"."idempotency_keys" is missing`, "run Down and then Up")
	down(t, pool, "")
	up(t, pool, "")
	wantWhole(t, pool, "public")
}

func TestMissingColumnIsReported(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pool, "")
	do(t, pool, `alter table idempotency_keys drop column fingerprint`)
	wantError(t, migrations.Up(t.Context(), pool, ""), "it has no column fingerprint")
}

func TestUnreachableDatabaseIsReportedWithoutPassword(t *testing.T) {
	t.Parallel()
	pool, err := pgxpool.New(t.Context(), "postgres://user:s3cret@127.0.0.1:1/db")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	err = migrations.Up(t.Context(), pool, "")
	if _, ok := errors.AsType[*pgconn.ConnectError](err); !ok {
		t.Errorf("%T: %v", err, err)
	}
	wantError(t, err, "connecting to the database", "127.0.0.1:1")
	if strings.Contains(err.Error(), "s3cret") {
		t.Error(err)
	}
}

func TestSilentServerIsLeftWhenTheContextEnds(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	pool, err := pgxpool.New(t.Context(), "postgres://user@"+listener.Addr().String()+"/db")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := migrations.Up(ctx, pool, ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("returned after %v", took)
	}
}

// forbid lets every command with this tag fail.
func forbid(t *testing.T, pool *pgxpool.Pool, tag string) {
	t.Helper()
	do(t, pool, `create or replace function forbid() returns event_trigger language plpgsql as $$
		begin raise 'forbidden'; end $$;
		create event trigger forbid on ddl_command_start when tag in ('`+tag+`') execute function forbid()`)
}
