package main_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// stranger is a role that may create in schema public.
func stranger(t *testing.T, pool *pgxpool.Pool) (name string) {
	t.Helper()
	name = pool.Config().ConnConfig.Database + "_stranger" // unique on the server
	do(t, pool, "create role "+name+"; grant usage, create on schema public to "+name)
	t.Cleanup(func() {
		sql := "reassign owned by " + name + " to current_user; drop owned by " + name + "; drop role " + name
		if _, err := pool.Exec(context.Background(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Error(err)
		}
	})
	return name
}

// onTheTable are the commands that work with the table's rows.
var onTheTable = []string{"get s i", "get s i -show-result -json", "find i", "list", "list -show-result", "list -id i", "list -prefix i", "stats", "stats -every 1h", "stats -exact", "delete -yes s i", "delete s i", "delete -unfinished -yes s i", "settle -yes s i call 1", "purge -once", "purge -every 1h -timeout 5s"}

// They would run with the rights of whoever uses the command.
func TestNothingThatAStrangerHasMadeRuns(t *testing.T) {
	t.Parallel()
	const (
		theirs = `create function theirs(text) returns bool immutable language plpgsql as $$ begin raise exception 'theirs runs'; end $$; alter function theirs(text) owner to stranger;`
		run    = `create function run() returns trigger language plpgsql as $$ begin raise exception 'theirs runs'; end $$; alter function run() owner to stranger;`
	)
	for name, row := range map[string]struct{ sql, says string }{
		"view in front of the table": {theirs + `create schema front authorization stranger; create view front.idempotency_keys as select * from public.idempotency_keys where theirs(id);
			alter view front.idempotency_keys owner to stranger; alter database DB set search_path = front, public`, "not a table"},
		"view instead of the table": {theirs + `alter table idempotency_keys rename to hidden; create view idempotency_keys as select * from hidden where theirs(id)`, "not a table"},
		"table of a stranger":       {`alter table idempotency_keys owner to stranger`, `belongs to role "stranger"`},
		"table of the schema's owner": {run + `create trigger t before delete on idempotency_keys for each row execute function run(); alter table idempotency_keys owner to stranger;
			alter schema public owner to stranger`, `belongs to role "stranger"`},
		"trigger": {run + `create trigger t before delete on idempotency_keys for each row execute function run()`, `trigger "t" of role "stranger"`},
		"rule":    {theirs + `create rule r as on delete to idempotency_keys do also select theirs('x')`, `rule "r" of role "stranger"`},
		"policy":  {theirs + `alter table idempotency_keys enable row level security; alter table idempotency_keys force row level security; create policy p on idempotency_keys using (theirs(id))`, `policy "p" of role "stranger"`},
		"cascade": {run + `create table refers (id text, scope text, constraint f foreign key (id, scope) references idempotency_keys on delete cascade);
			create trigger t after delete on refers for each row execute function run(); alter table refers owner to stranger`, `foreign key "f" of role "stranger"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			execute(t, pool, "s", "i", 1)
			aged(t, pool, "s", 25*time.Hour)
			who := stranger(t, pool)
			do(t, pool, strings.NewReplacer("stranger", who, "DB", pool.Config().ConnConfig.Database).Replace(row.sql))
			says := strings.ReplaceAll(row.says, "stranger", who)
			for _, schema := range []string{"", " -schema public", " -schema front"} {
				if (schema == " -schema public") == strings.Contains(row.sql, "front") || schema == " -schema front" && !strings.Contains(row.sql, "front") {
					continue
				}
				for _, args := range onTheTable {
					r := runOn(t, pool, args+schema)
					r.wantLine(t, 1, "idempotency_keys", says)
					if strings.Contains(r.stderr, "theirs runs") {
						t.Errorf("%s%s: %s", args, schema, r.stderr)
					}
				}
			}
		})
	}
}

// PostgreSQL cuts a long name off: what is looked at has to be what is read.
func TestLongSchemaIsLookedAtAsItIsRead(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	long := strings.Repeat("x", 63)
	do(t, pool, "create schema "+long+"; create view "+long+".idempotency_keys as select * from public.idempotency_keys")
	runOn(t, pool, "list -schema "+long+"yz").wantLine(t, 1, "is not a table")
}

func runOn(t *testing.T, pool *pgxpool.Pool, args string) result {
	t.Helper()
	return run(t, on(pool), strings.Fields(args)...)
}

// A program, and whoever looks, connects as another role than the one that has made the
// table.
func TestTableOfATrustedRoleIsWorkedOn(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	who := stranger(t, pool)
	as := func(role string) []string { return []string{"DATABASE_URL=" + with(pool, "role", role)} }
	owner := who + "_owner"
	do(t, pool, "create role "+owner+`; grant select, insert, update, delete on idempotency_keys to `+who)
	t.Cleanup(func() {
		if _, err := pool.Exec(context.Background(), "reassign owned by "+owner+" to current_user; drop owned by "+owner+"; drop role "+owner, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Error(err)
		}
	})
	works := func(role string) {
		t.Helper()
		for _, args := range []string{"list", "stats", "purge -once", "purge -once -schema public"} {
			if r := run(t, as(role), strings.Fields(args)...); r.exit != 0 {
				t.Errorf("%s: %s: %+v", role, args, r)
			}
		}
		run(t, as(role), "get", "s", "none").wantLine(t, 3, "no record")
	}
	works(who) // a superuser's
	do(t, pool, "alter table idempotency_keys owner to "+owner)
	works(owner)
	run(t, as(who), "list").wantLine(t, 1, `belongs to role "`+owner+`"`)
	do(t, pool, "alter schema public owner to "+owner)
	works(who)
	// The owner of the schema can put something there while a superuser is at work.
	superusers := []string{"DATABASE_URL=" + with(pool, "role", "none")}
	run(t, superusers, "list").wantAll(t, 0)
	for _, args := range []string{"purge -once", "delete -yes s none", "delete -unfinished -yes s none", "settle -yes s none call 1"} {
		run(t, superusers, strings.Fields(args)...).wantLine(t, 1, `belongs to role "`+owner+`"`)
	}
	do(t, pool, "alter schema public owner to current_user; grant "+owner+" to "+who)
	works(who)
}

func TestHelpOfTheStatementsSaysThatTheyTrustWhatIsThere(t *testing.T) {
	t.Parallel()
	run(t, nil, "migrate", "sql", "-h").wantAll(t, 0, "whoever", "idempotency_keys", "migrate up")
}

// An operator for other types would be an exact match, and run.
func TestTableOfOtherTypesIsNotWorkedWith(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	do(t, pool, `alter table idempotency_keys alter id type varchar collate "C";
		create function public.trap(varchar, text) returns boolean language plpgsql as $$ begin raise exception 'planted'; end $$;
		create operator public.= (leftarg = varchar, rightarg = text, function = public.trap);
		insert into idempotency_keys (purge_after, id, scope) values (now(), 'k', 's')`)
	for _, args := range []string{"get s k", "find k", "list", "delete s k -yes", "purge -once", "stats"} {
		r := run(t, on(pool), strings.Fields(args)...)
		if r.exit == 0 || !strings.Contains(r.stderr, "it needs id text") || strings.Contains(r.stdout+r.stderr, "planted") {
			t.Errorf("%s: %+v", args, r)
		}
	}
}

// Where a column is missing, table.column is the call of a function of that name.
func TestTableWithoutAColumnIsNotWorkedWith(t *testing.T) {
	t.Parallel()
	const theirs = `create function %s(public.%s) returns text language plpgsql as $$ begin raise exception 'theirs runs'; end $$; `
	for table, columns := range map[string][]string{"idempotency_keys": {"id", "scope"}, "idempotency_operations": {"id"}} {
		for _, owner := range []string{"current_user", "stranger"} {
			pool := pgtest.New(t)
			sql := `insert into idempotency_keys (id, scope, purge_after) values ('i', 's', now() + interval '1 day');`
			for _, column := range columns {
				sql += fmt.Sprintf("alter table %s drop column %s;"+theirs, table, column, column, table)
			}
			sql += `alter schema public owner to stranger; alter table idempotency_keys owner to stranger; alter table idempotency_operations owner to stranger`
			do(t, pool, strings.ReplaceAll(sql, "stranger", map[string]string{"current_user": "current_user", "stranger": stranger(t, pool)}[owner]))
			for _, args := range []string{"get s i", "find i", "list", "stats", "delete -unfinished -yes s i", "settle -yes s i call 1", "delete -yes s i"} {
				r := run(t, on(pool), strings.Fields(args)...)
				if strings.Contains(r.stdout+r.stderr, "theirs runs") {
					t.Errorf("%s of %s: %s: %+v", table, owner, args, r)
				}
				writes := strings.HasPrefix(args, "delete -") || strings.HasPrefix(args, "settle")
				switch says := "it has no column " + strings.Join(columns, ", "); {
				case owner == "current_user" && (table == "idempotency_keys" || writes):
					r.wantLine(t, 1, table, says)
				case owner == "stranger" && table == "idempotency_keys":
					r.wantLine(t, 1, table, "belongs to role")
				}
			}
		}
	}
}

// An installation before the migration that makes the table of the operations.
func TestNothingInTheNameOfTheOperationsIsReadThatWasNotLookedAt(t *testing.T) {
	t.Parallel()
	const theirs = `create function theirs() returns text language plpgsql as $$ begin raise exception 'theirs runs'; end $$; `
	for _, row := range []struct{ sql, says string }{
		{theirs + `create view idempotency_operations as select theirs() as id, 's'::text as scope; alter view idempotency_operations owner to stranger`, "is not a table"},
		{`create table idempotency_operations (id text, scope text); alter table idempotency_operations owner to stranger`, "belongs to role"},
		{`create table idempotency_operations (id varchar, scope text)`, "it has no column"},
		{"", ""},
	} {
		pool := pgtest.New(t)
		do(t, pool, `drop table idempotency_operations; insert into idempotency_keys (id, scope, purge_after) values ('i', 's', now() + interval '1 day');`+strings.ReplaceAll(row.sql, "stranger", stranger(t, pool)))
		r := run(t, on(pool), "delete", "-yes", "s", "i")
		if row.sql == "" {
			r.wantAll(t, 0, "deleted")
			continue
		}
		r.wantLine(t, 1, "idempotency_operations", row.says)
		run(t, on(pool), "purge", "-once").wantAll(t, 0) // names no such table
	}
}

// There, an operator in another schema is preferred to PostgreSQL's even if both fit
// exactly.
func TestNoCommandWorksWherePgCatalogIsSearchedLast(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	do(t, pool, `create function public.trap(text, text) returns bool language plpgsql as $$ begin raise exception 'planted'; end $$;
		create operator public.= (leftarg = text, rightarg = text, function = public.trap);
		create function public.current_database() returns name language plpgsql as $$ begin raise exception 'planted'; end $$`)
	env := []string{"DATABASE_URL=" + with(pool, "search_path", "public,pg_catalog")}
	for _, args := range append([]string{"migrate up", "migrate version"}, onTheTable...) {
		r := run(t, env, strings.Fields(args)...)
		if strings.HasPrefix(args, "migrate") { // has no schema in its search_path
			r.wantAll(t, 0)
		} else {
			r.wantLine(t, 1, "names pg_catalog behind another schema")
		}
		if strings.Contains(r.stdout+r.stderr, "planted") {
			t.Errorf("%s: %+v", args, r)
		}
	}
}

// It looks at the session that the program gets, and so has to find what others refuse.
func TestDoctorExaminesTheSessionAsTheURLMakesIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	r := run(t, []string{"DATABASE_URL=" + with(pool, "search_path", "public,pg_catalog")}, "doctor")
	r.wantAll(t, 1, "error: ", "pg_catalog", "to do: ")
}

func TestTableOfOperationsOfOtherTypesIsNotRead(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	do(t, pool, `alter table idempotency_operations alter id type varchar collate "C";
		create function public.trap(varchar, text) returns boolean language plpgsql as $$ begin raise exception 'planted'; end $$;
		create operator public.= (leftarg = varchar, rightarg = text, function = public.trap);
		insert into idempotency_keys (purge_after, id, scope) values (now(), 'k', 's')`)
	for _, args := range []string{"get s k", "find k", "list", "stats"} {
		runOn(t, pool, args).wantLine(t, 1, "idempotency_operations", "was not made by this package", "it needs id text")
	}
}
