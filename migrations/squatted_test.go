package migrations_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgtest"
	"github.com/pgidem/idempotency/migrations"
)

// squatter is a role that may create in schema public, as everybody could up to
// PostgreSQL 14.
func squatter(t *testing.T, pool *pgxpool.Pool) (name string, theirs *pgxpool.Pool) {
	t.Helper()
	name = role(t, pool)
	do(t, pool, "grant usage, create on schema public to "+name)
	return name, pgtest.Pool(t, pool, param("role", name))
}

func TestTableOfAStrangerIsRefused(t *testing.T) {
	t.Parallel()
	for table := range made {
		t.Run(table, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Empty(t)
			name, theirs := squatter(t, pool)
			ownOthers := func(role string) {
				for other := range made {
					if other != table {
						do(t, pool, "alter table "+other+" owner to "+role)
					}
				}
			}
			is := `"public"."` + table + `" belongs to role "` + name + `"`
			up(t, theirs, "")
			do(t, pool, "drop table idempotency_migrations") // as if they had made the one table only
			ownOthers("current_user")
			err := migrations.Up(t.Context(), pool, "")
			wantError(t, err, is, "drop or rename", `connect as role "`+name+`"`)
			if n := query[int](t, pool, "select count(*) from pg_class where relname = 'idempotency_migrations'"); n != 0 {
				t.Error("Up has begun all the same")
			}
			ownOthers(name)
			up(t, theirs, "") // it is theirs
			ownOthers("current_user")
			do(t, pool, "alter table idempotency_migrations owner to current_user")
			wantError(t, migrations.Up(t.Context(), pool, ""), is) // though up to date
			do(t, pool, "alter schema public owner to "+name)
			up(t, pool, "") // the owner of the schema may have made it, but a superuser changes nothing of it
			newest := len(files(t))
			for doing, version := range map[string]int{"up": newest - 1, "down": newest} {
				do(t, pool, fmt.Sprint("update idempotency_migrations set version = ", version))
				wantError(t, jobs[doing](t.Context(), pool, ""), is)
				if n := query[int](t, pool, "select version from idempotency_migrations where not dirty"); n != version {
					t.Error("version", n)
				}
			}
			do(t, pool, "alter schema public owner to current_user")
		})
	}
}

// Membership means trust: who is a member of the owner works with what all others who
// are may have put there.
func TestMemberOfTheOwnerMigratesAndNobodyElseDoes(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	owner, owners := squatter(t, pool)
	member, memberless := owner+"_member", owner+"_none"
	do(t, pool, "create role "+member+" in role "+owner+"; create role "+memberless+"; create schema theirs authorization "+owner)
	t.Cleanup(func() {
		if _, err := pool.Exec(context.Background(), "drop owned by "+member+", "+memberless+"; drop role "+member+", "+memberless, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Error(err)
		}
	})
	as := func(role string) *pgxpool.Pool { return pgtest.Pool(t, pool, param("role", role)) }
	for version := 1; version <= len(files(t)); version++ { // changed, and at last only read
		up(t, owners, "theirs")
		do(t, pool, fmt.Sprint("update theirs.idempotency_migrations set version = ", version))
		up(t, as(member), "theirs")
		up(t, owners, "theirs")
		down(t, as(member), "theirs")
		up(t, as(member), "theirs")
		down(t, as(member), "theirs")
	}
	up(t, owners, "theirs")
	do(t, pool, "grant usage on schema theirs to "+memberless+"; grant select on theirs.idempotency_migrations to "+memberless)
	up(t, as(memberless), "theirs") // up to date: the owner of the schema may have made it
	up(t, pool, "theirs")           // and a superuser, who runs nothing of it
	wantVersion(t, pool, "theirs", uint(len(files(t))))
	do(t, pool, "update theirs.idempotency_migrations set version = 1")
	for who, pool := range map[string]*pgxpool.Pool{"superuser": pool, "no member": as(memberless)} {
		for doing, job := range jobs {
			err := job(t.Context(), pool, "theirs")
			if err == nil || !strings.Contains(err.Error(), `belongs to role "`+owner+`"`) || !strings.Contains(err.Error(), `connect as role "`+owner+`"`) {
				t.Errorf("%s, %s: %v", who, doing, err)
			}
		}
	}
	if n := query[int](t, pool, "select version from theirs.idempotency_migrations"); n != 1 {
		t.Error("version", n)
	}
}

// They could drop the table of another, and make their own.
func TestOwnerOfTheSchemaOrTheDatabaseDoesNotBecomeSuperuser(t *testing.T) {
	t.Parallel()
	for what, sql := range map[string]string{"schema": "alter schema public owner to ", "database": "alter database $ owner to "} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Empty(t)
			name, theirs := squatter(t, pool)
			former := query[string](t, pool, "select current_user::text")
			sql := strings.Replace(sql, "$", pool.Config().ConnConfig.Database, 1)
			do(t, pool, sql+name)
			t.Cleanup(func() {
				if _, err := pool.Exec(context.Background(), sql+former); err != nil {
					t.Error(err)
				}
			})
			up(t, theirs, "")
			do(t, theirs, theirRun+`create trigger t before truncate on idempotency_migrations execute function run();
				create trigger i before insert on idempotency_migrations execute function run()`)
			do(t, pool, "update idempotency_migrations set version = 1")
			for doing, job := range jobs {
				err := job(t.Context(), pool, "")
				wantError(t, err, `belongs to role "`+name+`"`)
				wantNot(t, doing, err, "theirs runs")
			}
		})
	}
}

// A superuser may read the version of an app that owns its schema or database, and
// nothing that could run what the app has put there.
func TestSuperuserReadsNoVersionOfAnotherWhereSomethingCouldRun(t *testing.T) {
	t.Parallel()
	for what, sql := range map[string]string{
		"trigger":           theirRun + `create trigger t before insert on idempotency_migrations execute function run()`,
		"index":             `create index on idempotency_migrations (version) where version > 0`,
		"expression":        `create index on idempotency_migrations ((version + 1))`,
		"statistics":        `create statistics s on (version + 1), dirty from idempotency_migrations`,
		"policy":            `create policy p on idempotency_migrations using (true)`,
		"rule":              `create rule r as on delete to idempotency_migrations do also select 1`,
		"default":           `alter table idempotency_migrations alter version set default pg_backend_pid()`,
		"constraint":        `alter table idempotency_migrations add check (version > 0)`,
		"child":             `create table kid () inherits (idempotency_migrations)`,
		"partitioned table": `drop table idempotency_migrations; create table idempotency_migrations (version bigint not null, dirty boolean not null) partition by list (version);`,
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Empty(t)
			name, theirs := squatter(t, pool)
			do(t, pool, "create schema theirs authorization "+name)
			up(t, theirs, "theirs")
			wantVersion(t, pool, "theirs", uint(len(files(t))))
			do(t, theirs, "set local search_path = theirs; "+sql)
			_, err := migrations.Version(t.Context(), pool, "theirs")
			wantError(t, err, `belongs to role "`+name+`"`)
			if what != "partitioned table" { // which has no place for a version
				up(t, pgtest.Pool(t, pool, param("role", name)), "theirs")
			}
		})
	}
}

const theirRun = `create function run() returns trigger language plpgsql as $$ begin raise exception 'theirs runs'; end $$;`

// What a stranger has put on a table of a trusted role runs with the rights of whoever
// uses the table: they may have owned it before, or have had a grant of trigger,
// references or all.
func TestWhatAStrangerHasPutOnTheTableIsRefused(t *testing.T) {
	t.Parallel()
	const theirs = `create function theirs(text) returns bool immutable language plpgsql as $$ begin raise exception 'theirs runs'; end $$;`
	all := map[string]string{
		`trigger "t"`:     theirRun + `create trigger t before insert on idempotency_keys for each row execute function run()`,
		`policy "p"`:      theirs + `create policy p on idempotency_keys using (theirs(id))`,
		`rule "r"`:        theirs + `create rule r as on delete to idempotency_keys do also select theirs('x')`,
		`index "i"`:       theirs + `set check_function_bodies = off; create index i on idempotency_keys (id) where scope > 'x' and theirs(scope)`,
		`constraint "c"`:  theirs + `alter table idempotency_keys add constraint c check (theirs(id))`,
		`default "extra"`: theirs + `alter table idempotency_keys add extra bool; alter table idempotency_keys alter extra set default theirs('x')`,
		`column "more"`:   theirs + `create domain d as text check (theirs(value)); alter table idempotency_keys add more d`,
		`statistics "s"`:  theirs + `create statistics s on (theirs(id)) from idempotency_keys`,
		`foreign key "f"`: `create table refers (id text, scope text, constraint f foreign key (id, scope) references idempotency_keys on delete cascade)`,
		`child "kid"`:     `create table kid () inherits (idempotency_keys)`,
		`operator`: theirs + `create function two(text, text) returns bool immutable language sql as 'select true';
			create operator %% (leftarg = text, rightarg = text, function = two); create index operator on idempotency_keys ((id %% scope))`,
	}
	for table := range made {
		t.Run(table, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Empty(t)
			up(t, pool, "")
			name := role(t, pool)
			undo := "drop owned by " + name + " cascade; drop function if exists two(text, text); alter table " + table + " drop column if exists extra; revoke " + name + " from current_user"
			for what, sql := range all {
				t.Run(what, func(t *testing.T) {
					do(t, pool, strings.ReplaceAll(sql, "idempotency_keys", table))
					for _, o := range []string{"function run()", "function theirs(text)", "table refers", "table kid", "domain d", "operator %% (text, text)"} {
						do(t, pool, `do $$ begin alter `+o+` owner to `+name+`; exception when undefined_object or undefined_function or undefined_table then null; end $$`)
					}
					err := migrations.Up(t.Context(), pool, "")
					wantError(t, err, `"public"."`+table+`"`, what, `of role "`+name+`"`)
					wantNot(t, "up", err, "theirs runs")
					err = migrations.Down(t.Context(), pool, "")
					wantError(t, err, `of role "`+name+`"`)
					do(t, pool, "grant "+name+" to current_user") // which is no reason for a superuser
					wantError(t, migrations.Up(t.Context(), pool, ""), `of role "`+name+`"`)
				})
				do(t, pool, undo)
				up(t, pool, "")
			}
		})
	}
}

func TestTriggerOfATrustedRoleIsAccepted(t *testing.T) {
	t.Parallel()
	for table := range made {
		t.Run(table, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Empty(t)
			up(t, pool, "")
			do(t, pool, theirRun+`create trigger t before insert on `+table+` for each row execute function run()`)
			up(t, pool, "")
			// A comment could be one of the owner before.
			name := role(t, pool)
			do(t, pool, `comment on trigger t on `+table+` is 'audit; idempotency: wanted'; alter function run() owner to `+name)
			wantError(t, migrations.Up(t.Context(), pool, ""), `trigger "t"`)
		})
	}
}

// Between the look and the statement somebody can make the table, or put another one in
// its place.
func TestTableThatComesBetweenTheLookAndTheStatementIsNeitherReadNorWritten(t *testing.T) {
	t.Parallel()
	const squat = `create table idempotency_migrations (version bigint not null primary key, dirty boolean not null);
		create trigger t before truncate on idempotency_migrations execute function run()`
	for words, plant := range map[string]string{
		"CREATE TABLE IF NOT EXISTS": squat,
		"select version":             `drop table idempotency_migrations; create view idempotency_migrations as select 1::bigint as version, f() as dirty`,
		"truncate":                   "drop table idempotency_migrations; " + squat,
		"insert into":                "drop table idempotency_migrations; " + squat,
	} {
		t.Run(words, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Empty(t)
			name, theirs := squatter(t, pool)
			do(t, pool, "alter schema public owner to "+name)
			t.Cleanup(func() { _, _ = pool.Exec(context.Background(), "alter schema public owner to current_user") })
			do(t, theirs, theirRun+`create function f() returns bool language plpgsql as $$ begin raise exception 'theirs runs'; end $$`)
			if words == "select version" {
				up(t, pool, "")
			}
			planted := false
			tracer := &before{words: words, do: func() {
				if !planted {
					planted = true
					_, err := theirs.Exec(context.Background(), "set lock_timeout = '200ms'; "+plant, pgx.QueryExecModeSimpleProtocol)
					t.Log("they tried: ", err)
				}
			}}
			err := migrations.Up(t.Context(), pgtest.Pool(t, pool, traced(tracer)), "")
			wantNot(t, "up", err, "theirs runs")
			if !planted {
				t.Fatal("they had no occasion")
			}
			if words == "CREATE TABLE IF NOT EXISTS" {
				wantError(t, err, `"public"."idempotency_migrations" belongs to role "`+name+`"`)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

// A superuser reads it only as long as nothing on it can run.
func TestNothingIsPutOnTheVersionsOfAnotherWhileASuperuserReadsThem(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	name, theirs := squatter(t, pool)
	do(t, pool, "create schema theirs authorization "+name)
	up(t, theirs, "theirs")
	tried := 0
	tracer := &before{words: "select version", do: func() {
		tried++
		for _, plant := range []string{"create index i on theirs.idempotency_migrations (version) where version > 0", "create policy p on theirs.idempotency_migrations using (true)"} {
			if _, err := theirs.Exec(context.Background(), "set lock_timeout = '200ms'; "+plant, pgx.QueryExecModeSimpleProtocol); err == nil {
				t.Error("they could ", plant)
			}
		}
	}}
	wantVersion(t, pgtest.Pool(t, pool, traced(tracer)), "theirs", uint(len(files(t))))
	if tried == 0 {
		t.Error("they had no occasion")
	}
}

// Who may create triggers on it could have one run with the rights of who writes.
func TestNothingIsPutOnTheVersionsWhileTheyAreWritten(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	name, theirs := squatter(t, pool)
	up(t, pool, "")
	do(t, pool, "grant trigger on idempotency_migrations to "+name+"; create schema theirs authorization "+name)
	do(t, theirs, "create function theirs.run() returns trigger language plpgsql as $$ begin raise exception 'theirs runs'; end $$")
	tried := 0
	tracer := &before{words: "truncate", do: func() {
		tried++
		const plant = "set lock_timeout = '200ms'; create trigger t before truncate on public.idempotency_migrations execute function theirs.run()"
		if _, err := theirs.Exec(context.Background(), plant, pgx.QueryExecModeSimpleProtocol); err == nil || !strings.Contains(err.Error(), "55P03") {
			t.Error("they could plant, or were kept from it by something else: ", err)
		}
	}}
	if err := migrations.Down(t.Context(), pgtest.Pool(t, pool, traced(tracer)), ""); err != nil {
		t.Error(err)
	}
	if tried == 0 {
		t.Error("they had no occasion")
	}
}

// before calls do before each statement that has these words.
type before struct {
	words string
	do    func()
}

func (b *before) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(strings.ToLower(data.SQL), strings.ToLower(b.words)) && strings.Contains(data.SQL, "idempotency_migrations") {
		b.do()
	}
	return ctx
}

func (b *before) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// The record of the versions is written by whoever migrates: a trigger on it, or a
// view in its place, would run with their rights.
func TestRecordOfTheVersionsOfAStrangerIsNeitherReadNorWritten(t *testing.T) {
	t.Parallel()
	for kind, made := range map[string]string{
		"a trigger": `create table idempotency_migrations (version bigint not null primary key, dirty boolean not null);
			create trigger t before truncate on idempotency_migrations execute function run()`,
		"a view": `create function f() returns bool language plpgsql as $$ begin raise exception 'theirs runs'; end $$;
			create view idempotency_migrations as select 1::bigint as version, f() as dirty`,
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Empty(t)
			_, theirs := squatter(t, pool)
			do(t, theirs, `create function run() returns trigger language plpgsql as $$ begin raise exception 'theirs runs'; end $$;`+made)
			for name, job := range jobs {
				err := job(t.Context(), pool, "")
				wantError(t, err, `"public"."idempotency_migrations"`, "rename")
				wantNot(t, name, err, "theirs runs")
			}
			_, err := migrations.Version(t.Context(), pool, "")
			wantError(t, err, `"public"."idempotency_migrations"`)
			wantNot(t, "version", err, "theirs runs")
		})
	}
}

func TestNothingPlantedInTheSchemaRuns(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	pgtest.Plant(t, pool, "*.go", "../internal/keytable/*.go")
	// golang-migrate compares domains of the information schema.
	for _, schema := range []string{"planted", "public"} {
		do(t, pool, `create function `+schema+`.trap(information_schema.sql_identifier, information_schema.sql_identifier) returns bool
				language plpgsql as $$ begin raise exception 'what somebody has planted runs'; end $$;
			create operator `+schema+`.= (leftarg = information_schema.sql_identifier, rightarg = information_schema.sql_identifier, function = `+schema+`.trap)`)
	}
	for _, schema := range []string{"planted", "", "new"} {
		planted := pgtest.Pool(t, pool)
		up(t, planted, schema)
		up(t, planted, schema)
		if v, err := migrations.Version(t.Context(), planted, schema); err != nil || v != uint(len(files(t))) {
			t.Errorf("%q: %d, %v", schema, v, err)
		}
		down(t, planted, schema)
	}
}

func wantNot(t *testing.T, what string, err error, word string) {
	t.Helper()
	if err != nil && strings.Contains(err.Error(), word) {
		t.Errorf("%s: %v", what, err)
	}
}

// In a search_path that names pg_catalog behind another schema, a type of that schema is
// preferred, and a domain runs its constraints when something is cast to it.
func TestTypesPlantedInFrontOfPostgreSQLsOwnDoNotRun(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	do(t, pool, `create schema evil; create function evil.runs() returns bool language plpgsql as $$ begin raise exception 'theirs runs'; end $$;
		do $$ declare t text; begin
			for t in select typname from pg_type where typnamespace = 'pg_catalog'::regnamespace and typtype = 'b' and typname not like '\_%' loop
				execute format('create domain evil.%1$I as pg_catalog.%1$I check (evil.runs())', t);
			end loop;
		end $$`)
	theirs := pgtest.Pool(t, pool, param("search_path", "evil, pg_catalog"))
	if _, err := theirs.Exec(t.Context(), "select 'x'::text"); err == nil || !strings.Contains(err.Error(), "theirs runs") {
		t.Fatal("nothing is planted: ", err)
	}
	for what, do := range map[string]func() error{
		"Version": func() error { _, err := migrations.Version(t.Context(), theirs, "public"); return err },
		"Up":      func() error { return migrations.Up(t.Context(), theirs, "public") },
		"Down":    func() error { return migrations.Down(t.Context(), theirs, "public") },
	} {
		if err := do(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}
