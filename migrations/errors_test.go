package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/keytable"
	"github.com/pgidem/idempotency/internal/pgtest"
	"github.com/pgidem/idempotency/migrations"
)

func TestFailedUpIsReportedAndNeedsNoRepair(t *testing.T) {
	t.Parallel()
	for table, migration := range made {
		pool := pgtest.Empty(t)
		do(t, pool, `create domain `+table+` as text`)
		err := migrations.Up(t.Context(), pool, "")
		wantCode(t, err, "42710")
		wantError(t, err, fmt.Sprintf("migration %d (000%[1]d_create_%s.up.sql)", migration, table), `schema "public"`,
			"nothing of it was applied", "remove the cause and run Up again")
		wantVersion(t, pool, "", migration-1)

		do(t, pool, `drop domain `+table)
		up(t, pool, "")
		wantWhole(t, pool, "public")
	}
}

func TestFailureInALaterMigrationKeepsTheEarlier(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	for migration, forbidden := range map[uint]string{2: "create index", 3: "create table if not exists idempotency_operations"} {
		forbid(t, pool, forbidden)
		err := migrations.Up(t.Context(), pool, "")
		wantCode(t, err, "P0001")
		wantError(t, err, fmt.Sprintf("migration %d (000%[1]d_", migration), ".up.sql)")
		wantVersion(t, pool, "", migration-1)
		err = migrations.Up(t.Context(), pool, "")
		wantError(t, err, fmt.Sprintf("migration %d (000%[1]d_", migration))

		do(t, pool, `drop event trigger forbid`)
		up(t, pool, "")
		wantWhole(t, pool, "public")
		down(t, pool, "")
	}
}

func TestFailedDownIsReportedAndNeedsNoRepair(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	for _, forbidden := range []string{"drop index", "drop table if exists idempotency_keys", "drop table if exists idempotency_operations"} {
		for name, job := range jobs {
			up(t, pool, "")
			forbid(t, pool, forbidden)
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

// Its command can then go on with the same schema.
func TestDownThatStopsInTheFirstMigrationIsRecordedAsGolangMigrateHasIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pool, "")
	forbid(t, pool, "drop table if exists idempotency_keys")
	if err := migrations.Down(t.Context(), pool, ""); err == nil {
		t.Fatal("no error")
	}
	if got := query[string](t, pool, `select string_agg(version || ' ' || dirty, ', ') from idempotency_migrations`); got != "-1 true" {
		t.Errorf("recorded as %s", got)
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

// foreign are relations under the name of one of our tables that this package has not
// made, and what is wrong with each.
func foreign(table string) map[string]struct{ sql, why string } {
	columns, first := `id text, scope text, fingerprint bytea, result bytea, origin text,
		completed_at timestamptz, expires_at timestamptz, purge_after timestamptz`, "scope, fingerprint, result"
	if table == "idempotency_operations" {
		columns, first = `id text, scope text, number uuid, started_at timestamptz, progressed_at timestamptz, due_at timestamptz, attempts int,
			name text, fingerprint bytea, error text, input bytea, labels text[], results bytea[]`, "scope, number, started_at"
	}
	return map[string]struct{ sql, why string }{
		"other columns": {`create table ` + table + ` (id bigint, key text)`, "it has no column " + first},
		"no key":        {`create table ` + table + ` (` + columns + `)`, "no unique index on id and scope"},
		"folding": {`create collation folding (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
			create table ` + table + ` (` + strings.Replace(columns, "id text", "id text collate folding", 1) + `, primary key (id, scope))`,
			"for the collation of column id different keys are equal"},
		"view":     {`create view ` + table + ` as select 1`, "not a table"},
		"sequence": {`create sequence ` + table, "not a table"},
	}
}

func TestForeignRelationIsRefusedAndUntouched(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	for table := range made {
		for kind, relation := range foreign(table) {
			schema := table + " " + kind
			do(t, pool, `create schema "`+schema+`"; set local search_path to "`+schema+`"; `+relation.sql)
			before := relations(t, pool, schema)
			err := migrations.Up(t.Context(), pool, schema)
			wantError(t, err, `"`+schema+`"."`+table+`" exists but was not made by this package`, relation.why, "name another schema")
			down(t, pool, schema)
			if after := relations(t, pool, schema); after != before {
				t.Errorf("changed from\n%s\nto\n%s", before, after)
			}
		}
	}
}

// A release before it did not know the name.
func TestForeignRelationInTheWayOfALaterMigrationIsRefusedAndUntouched(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	for kind, relation := range foreign("idempotency_operations") {
		up(t, pool, kind)
		do(t, pool, `set local search_path to "`+kind+`"; drop table idempotency_operations; update idempotency_migrations set version = 2; `+relation.sql)
		before := relations(t, pool, kind)
		wantError(t, migrations.Up(t.Context(), pool, kind), `"`+kind+`"."idempotency_operations" exists but`, relation.why)
		wantVersion(t, pool, kind, 2)
		if after := relations(t, pool, kind); after != before {
			t.Errorf("changed from\n%s\nto\n%s", before, after)
		}
		down(t, pool, kind)
		if after := relations(t, pool, kind); !strings.Contains(after, "idempotency_operations") || strings.Contains(after, "idempotency_keys") || strings.Contains(after, "idempotency_migrations") {
			t.Errorf("Down has left\n%s", after)
		}
	}
}

// relations are all in schema, with their columns.
func relations(t *testing.T, pool *pgxpool.Pool, schema string) string {
	t.Helper()
	return query[string](t, pool, `
		select coalesce(string_agg(concat_ws(' ', c.relname, c.relkind, attname, format_type(atttypid, atttypmod)), E'\n' order by relname, attnum), '')
		from pg_class c left join pg_attribute on attrelid = c.oid and attnum > 0
		where relnamespace = (select oid from pg_namespace where nspname = $1)`, schema)
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
	for table := range made {
		for kind, relation := range foreign(table) {
			up(t, pool, kind)
			do(t, pool, `set local search_path to "`+kind+`"; drop table `+table+`; `+relation.sql)
			before := relations(t, pool, kind)
			wantError(t, migrations.Down(t.Context(), pool, kind), `"`+table+`" exists but was not made by this package`, relation.why, "rename")
			wantVersion(t, pool, kind, uint(len(files(t))))
			if after := relations(t, pool, kind); after != before {
				t.Errorf("changed from\n%s\nto\n%s", before, after)
			}
			do(t, pool, `set local search_path to "`+kind+`"; alter table `+table+` rename to theirs`)
			down(t, pool, kind)
			if after := relations(t, pool, kind); strings.Contains(after, "idempotency_migrations") || !strings.Contains(after, "theirs") {
				t.Errorf("Down has left\n%s", after)
			}
			do(t, pool, `drop schema "`+kind+`" cascade`)
		}
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
	for table, remedy := range map[string]string{"idempotency_keys": "run Down and then Up", "idempotency_operations": "not Down, which drops every recorded result"} {
		up(t, pool, "")
		do(t, pool, `drop table `+table)
		err := migrations.Up(t.Context(), pool, "")
		wantError(t, err, `"public"."`+table+`" is missing`, remedy)
		down(t, pool, "")
		up(t, pool, "")
		wantWhole(t, pool, "public")
	}
}

// Nothing but a procedure needs it, so nothing else is to be given up for it.
func TestTableOfTheOperationsIsMadeAgainAndTheResultsStay(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	const schema = `My "S`
	up(t, pool, schema)
	do(t, pool, `insert into "My ""S".idempotency_keys (id, scope, purge_after) values ('i', 's', now()); drop table "My ""S".idempotency_operations`)
	err := migrations.Up(t.Context(), pool, schema)
	remedy := regexp.MustCompile(`as the owner of the tables, (set search_path to "My ""S") and run (\S+),`).FindStringSubmatch(fmt.Sprint(err))
	if remedy == nil {
		t.Fatal(err)
	}
	do(t, pool, strings.Replace(remedy[1], "set", "set local", 1)+"; "+read(t, remedy[2]))
	up(t, pool, schema)
	wantWhole(t, pool, schema)
	if n := query[int](t, pool, `select count(*) from "My ""S".idempotency_keys`); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

func TestMissingColumnIsReported(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pool, "")
	for table := range made {
		columns := query[[]string](t, pool, `select array_agg(attname::text) from pg_attribute where attrelid = $1::text::regclass and attnum > 0`, table)
		for _, column := range columns {
			do(t, pool, `alter table `+table+` rename column `+column+` to other`)
			wantError(t, migrations.Up(t.Context(), pool, ""), `"public"."`+table+`"`, "it has no column "+column+")")
			do(t, pool, `alter table `+table+` rename column other to `+column)
		}
	}
	up(t, pool, "")
}

func TestTablesHaveTheColumnsThatAreRequired(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pool, "")
	for name := range made {
		table, err := keytable.Describe(t.Context(), pool, "public", name)
		if err != nil {
			t.Fatal(err)
		}
		if wrong := slices.Concat(table.Missing(), table.Mistyped(), table.Foreign()); len(wrong) > 0 {
			t.Errorf("%s: %v", name, wrong)
		}
	}
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

// forbid lets every statement fail that begins a line with these words, of which the
// first two are a tag of event triggers.
func forbid(t *testing.T, pool *pgxpool.Pool, words string) {
	t.Helper()
	tag := strings.Join(strings.Fields(words)[:2], " ")
	do(t, pool, `create or replace function forbid() returns event_trigger language plpgsql as $$
		begin if current_query() ~ '(^|\n)`+words+`' then raise 'forbidden'; end if; end $$;
		create event trigger forbid on ddl_command_start when tag in ('`+tag+`') execute function forbid()`)
}
