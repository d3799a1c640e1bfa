package migrations_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/pgtest"
	"github.com/pgidem/idempotency/migrations"
)

// A stranger makes the schema that "$user" finds first, or one of the name that is given,
// and leaves it empty: its owner could put another table there at any time.
func TestNoTableIsMadeInTheSchemaOfAStranger(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	stranger := role(t, pool)
	app := stranger + "_app"
	do(t, pool, "create role "+app+"; create schema "+app+" authorization "+stranger+"; grant usage, create on schema "+app+" to "+app)
	t.Cleanup(func() {
		if _, err := pool.Exec(context.Background(), "drop owned by "+app+"; drop role "+app, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Error(err)
		}
	})
	as := func(role string) pgtest.Option { return param("role", role) }
	path := param("search_path", `"$user", public`)
	database := pool.Config().ConnConfig.Database
	do(t, pool, "grant create on database "+database+" to "+stranger)
	for who, theirs := range map[string]pgtest.Option{"app": as(app), "superuser": as("none")} {
		wantError(t, migrations.Up(t.Context(), pgtest.Pool(t, pool, theirs), app), `schema "`+app+`" belongs to role "`+stranger+`"`, "name another schema")
		if who == "app" {
			wantError(t, migrations.Up(t.Context(), pgtest.Pool(t, pool, theirs, path), ""), `schema "`+app+`" belongs to role "`+stranger+`"`)
		}
		if n := query[int](t, pool, "select count(*) from pg_class where relname like 'idempotency%'"); n != 0 {
			t.Errorf("%s: Up has begun all the same", who)
		}
	}
	do(t, pool, "revoke create on database "+database+" from "+stranger) // they cannot have made it themselves
	up(t, pgtest.Pool(t, pool, as(app)), app)
	do(t, pool, "grant create on database "+database+" to "+stranger)
	up(t, pgtest.Pool(t, pool, as(app)), app) // nothing is made
	do(t, pool, "alter table "+app+".idempotency_migrations rename to versions")
	wantError(t, migrations.Up(t.Context(), pgtest.Pool(t, pool, as(app)), app), "belongs to role", `"idempotency_migrations"`)
	do(t, pool, "alter table "+app+".versions rename to idempotency_migrations")
	do(t, pool, "drop table "+app+".idempotency_operations; update "+app+".idempotency_migrations set version = 2")
	wantError(t, migrations.Up(t.Context(), pgtest.Pool(t, pool, as(app)), app), "belongs to role", `"idempotency_operations"`)
	do(t, pool, "grant "+app+" to "+stranger)
	up(t, pgtest.Pool(t, pool, as(app)), app) // who has its rights already
}

// Somebody makes a schema that is found before the one with the tables: every key would be
// run again.
func TestNoSecondTableIsMadeInFrontOfTheFirst(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pool, "")
	do(t, pool, "create schema front; create schema behind")
	front := pgtest.Pool(t, pool, param("search_path", "front, public"))
	wantError(t, migrations.Up(t.Context(), front, ""), `schema "front"`, `schema "public" behind it has one`, "give the schema's name")
	if n := query[int](t, pool, "select count(*) from pg_class where relnamespace = 'front'::regnamespace"); n != 0 {
		t.Error("Up has begun all the same")
	}
	up(t, front, "public")
	up(t, front, "front")
	up(t, front, "") // nothing is made
	up(t, pgtest.Pool(t, pool, param("search_path", "behind, public")), "behind")
}
