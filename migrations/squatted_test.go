package migrations_test

import (
	"context"
	"strings"
	"testing"

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
	pool := pgtest.Empty(t)
	name, theirs := squatter(t, pool)
	up(t, theirs, "")
	do(t, pool, "drop table idempotency_migrations") // as if they had made the one table only
	err := migrations.Up(t.Context(), pool, "")
	wantError(t, err, `"public"."idempotency_keys" belongs to role "`+name+`"`, "drop or rename")
	if n := query[int](t, pool, "select count(*) from pg_class where relname = 'idempotency_migrations'"); n != 0 {
		t.Error("Up has begun all the same")
	}
	up(t, theirs, "") // it is theirs

	// Whom the owner of the table could not harm.
	other := name + "_other"
	do(t, pool, "create role "+other+"; grant "+name+" to "+other)
	t.Cleanup(func() {
		if _, err := pool.Exec(context.Background(), "drop role "+other); err != nil {
			t.Error(err)
		}
	})
	up(t, pgtest.Pool(t, pool, param("role", other)), "")
	do(t, pool, "create schema theirs authorization "+name)
	up(t, theirs, "theirs")
	up(t, pool, "theirs")
}

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
	do(t, pool, `create function planted.trap(information_schema.sql_identifier, information_schema.sql_identifier) returns bool
			language plpgsql as $$ begin raise exception 'what somebody has planted runs'; end $$;
		create operator planted.= (leftarg = information_schema.sql_identifier, rightarg = information_schema.sql_identifier, function = planted.trap)`)
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
