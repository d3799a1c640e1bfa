package migrations_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgtest"
	"github.com/pgidem/idempotency/migrations"
)

func TestUpMakesTheTable(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	wantNothing(t, pool, "public")
	up(t, pool, "")
	wantWhole(t, pool, "public")
}

// Only error, which no statement compares, has the collation of the database. Where that
// sorts otherwise, an index has to be built anew after each upgrade of its library.
func TestTextIsComparedAsBytesWhateverTheDatabaseSortsBy(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pool, "")
	others := query[string](t, pool, `
		select coalesce(string_agg(attrelid::regclass || '.' || attname, ' ' order by attrelid, attnum), '')
		from pg_attribute join pg_class c on c.oid = attrelid join pg_namespace n on n.oid = relnamespace
		where nspname = 'public' and relkind in ('r', 'i') and attnum > 0 and atttypid = 'text'::regtype
			and attcollation <> 'pg_catalog."C"'::regcollation`)
	if others != "idempotency_operations.error" {
		t.Errorf("with another collation than C: %s", others)
	}
	do(t, pool, `insert into idempotency_keys (id, scope, purge_after) values ('a', 'a', now()), ('B', 'a', now()), ('a', 'B', now())`)
	if got := query[string](t, pool, `select string_agg(id || scope, ' ' order by id, scope) from idempotency_keys`); got != "Ba aB aa" {
		t.Errorf("the keys sort as %s", got)
	}
}

// The order of the columns in the primary key, and the room on a page, are what the costs of
// a call rest on.
func TestTablesHaveTheShapeThatCallsRelyOn(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pool, "")
	for table, want := range map[string]string{
		"idempotency_keys":       "idempotency_keys_pkey (id, scope), idempotency_keys_purge_after (purge_after), fillfactor=95",
		"idempotency_operations": "idempotency_operations_pkey (id, scope), fillfactor=60",
	} {
		got := query[string](t, pool, `
			select string_agg(i.indexrelid::regclass::text || regexp_replace(pg_get_indexdef(i.indexrelid), '.* USING btree', ''), ', ' order by i.indexrelid::regclass::text)
				|| ', ' || array_to_string(c.reloptions, ' ')
			from pg_index i join pg_class c on c.oid = i.indrelid where c.oid = $1::text::regclass group by c.reloptions`, table)
		if got != want {
			t.Errorf("%s has %s, want %s", table, got, want)
		}
	}
}

func TestUpTwiceChangesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pool, "")
	do(t, pool, `insert into idempotency_keys (id, scope, purge_after) values ('i', 's', now())`)
	up(t, pool, "")
	up(t, pool, "public")
	wantWhole(t, pool, "public")
	if n := query[int](t, pool, `select count(*) from idempotency_keys`); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

func TestDownRemovesWhatUpMadeAndUpMakesItAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	for range 2 {
		up(t, pool, "apart")
		wantWhole(t, pool, "apart")
		down(t, pool, "apart")
		wantNothing(t, pool, "apart")
		if n := query[int](t, pool, `select count(*) from pg_class where relnamespace = 'apart'::regnamespace`); n != 0 {
			t.Errorf("%d relations left", n)
		}
	}
	down(t, pool, "apart")
}

func TestDownWithoutUpDoesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	do(t, pool, `create table idempotency_keys ()`)
	down(t, pool, "")
	down(t, pool, "missing")
	if !query[bool](t, pool, `select to_regclass('idempotency_keys') is not null and to_regnamespace('missing') is null`) {
		t.Error("a table that Up did not make is gone, or a schema was made")
	}
}

func TestAnySchemaName(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	for _, schema := range []string{"plain", "My-Schema", `"quoted"`, `it's "odd"`, " ", "a.b", "select", "$USER", "схема", "%s", strings.Repeat("é", 40)} {
		t.Run(schema, func(t *testing.T) {
			up(t, pool, schema)
			stored := query[string](t, pool, `select $1::name::text`, schema) // the server shortens long names
			wantVersion(t, pool, schema, uint(len(files(t))))
			wantWhole(t, pool, stored)
			down(t, pool, schema)
			wantNothing(t, pool, stored)
			if !query[bool](t, pool, `select exists (select from pg_namespace where nspname = $1)`, stored) {
				t.Error("Down dropped the schema")
			}
		})
	}
	for _, schema := range []string{"nul\x00", "bad\xff", "pg_reserved", "$user"} {
		if err := migrations.Up(t.Context(), pool, schema); err == nil || schema == "$user" && !strings.Contains(err.Error(), "name another") {
			t.Errorf("schema %q: %v", schema, err)
		}
	}
	wantNothing(t, pool, "public")
}

func TestEmptySchemaIsTheFirstOfTheSearchPath(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t, param("search_path", `missing, "My-Schema", public`))
	do(t, pool, `create schema "My-Schema"`)
	up(t, pool, "")
	wantWhole(t, pool, "My-Schema")
	wantNothing(t, pool, "public")
}

func TestSearchPathWithoutASchemaIsAnError(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t, param("search_path", "missing"))
	err := migrations.Up(t.Context(), pool, "")
	wantError(t, err, "no existing schema", "name one")
}

// A table of the same name in another schema of the search_path must be neither
// taken for ours nor dropped.
func TestOtherSchemasInTheSearchPathAreLeftAlone(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t, param("search_path", "apart, public"))
	up(t, pool, "public")
	up(t, pool, "apart")
	wantWhole(t, pool, "apart")
	do(t, pool, `drop table apart.idempotency_keys`)
	down(t, pool, "apart")
	wantWhole(t, pool, "public")
}

func TestVersionOnlyReads(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	reader := pgtest.Pool(t, pool, param("default_transaction_read_only", "on"), param("role", role(t, pool)))
	wantVersion(t, reader, "public", 0)
	wantVersion(t, reader, "missing", 0)
	if n := query[int](t, pool, `select count(*) from pg_class where relnamespace = 'public'::regnamespace`); n != 0 {
		t.Errorf("Version made %d relations", n)
	}
	up(t, pool, "")
	do(t, pool, `grant select on idempotency_migrations to public`)
	wantVersion(t, reader, "public", uint(len(files(t))))
}

func TestVersionReportsWhatIsWhole(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pool, "")
	for _, row := range []struct {
		values string
		want   uint
	}{{"(1, false)", 1}, {"(2, true)", 1}, {"(1, true)", 0}, {"(-1, true)", 0}, {"(99, false)", 99}} {
		do(t, pool, `truncate idempotency_migrations; insert into idempotency_migrations values `+row.values)
		wantVersion(t, pool, "", row.want)
	}
	do(t, pool, `truncate idempotency_migrations`)
	wantVersion(t, pool, "", 0)
}

func TestVersionOfAnUnreadableTableIsAnError(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pool, "")
	_, err := migrations.Version(t.Context(), pgtest.Pool(t, pool, param("role", role(t, pool))), "public")
	wantCode(t, err, "42501")
}

func TestUpToDateDatabaseIsOnlyRead(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pool, "")
	do(t, pool, `grant select on idempotency_migrations to public`)
	lock(t, pool, "public") // and waits for nobody
	up(t, pgtest.Pool(t, pool, param("default_transaction_read_only", "on"), param("role", role(t, pool))), "public")
}

func TestExistingSchemaNeedsNoRightToCreateSchemas(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	name := role(t, pool)
	do(t, pool, `create schema theirs authorization `+name)
	limited := pgtest.Pool(t, pool, param("role", name))
	up(t, limited, "theirs")
	wantWhole(t, pool, "theirs")
	down(t, limited, "theirs")
	wantNothing(t, pool, "theirs")

	err := migrations.Up(t.Context(), limited, "new")
	wantCode(t, err, "42501")
	wantError(t, err, `schema "new" does not exist, and creating it failed`)
}

func TestPoolInFullUseDoesNotMatter(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t, pgtest.MaxConns(1))
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	up(t, pool, "")
	wantVersion(t, pool, "", uint(len(files(t))))
	down(t, pool, "")
	conn.Release()
	wantNothing(t, pool, "public")
}

func TestBeforeConnectApplies(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	name := pool.Config().ConnConfig.Database
	hooked := pgtest.Pool(t, pool, func(cfg *pgxpool.Config) {
		cfg.ConnConfig.Database = "no_such_database"
		cfg.BeforeConnect = func(_ context.Context, cc *pgx.ConnConfig) error {
			cc.Database = name
			return nil
		}
	})
	up(t, hooked, "")
	wantWhole(t, pool, "public")
}

func TestBeforeConnectErrorIsReported(t *testing.T) {
	t.Parallel()
	failure := errors.New("no token")
	pool := pgtest.Empty(t, func(cfg *pgxpool.Config) {
		cfg.BeforeConnect = func(context.Context, *pgx.ConnConfig) error { return failure }
	})
	if err := migrations.Up(t.Context(), pool, ""); !errors.Is(err, failure) {
		t.Error(err)
	}
}

func TestAfterConnectDoesNotMatter(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	up(t, pgtest.Pool(t, pool, func(cfg *pgxpool.Config) {
		cfg.AfterConnect = func(context.Context, *pgx.Conn) error { return errors.New("needs the table") }
	}), "")
	wantWhole(t, pool, "public")
}

func TestEveryQueryExecMode(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		other := pgtest.Pool(t, pool, func(cfg *pgxpool.Config) {
			cfg.ConnConfig.DefaultQueryExecMode = mode
			if mode == pgx.QueryExecModeExec || mode == pgx.QueryExecModeSimpleProtocol { // which need no cache
				cfg.ConnConfig.StatementCacheCapacity, cfg.ConnConfig.DescriptionCacheCapacity = 0, 0
			}
		})
		up(t, other, mode.String())
		wantWhole(t, pool, mode.String())
		down(t, other, mode.String())
	}
}

// role makes a role without rights that ends with the test. The connections of a
// pool take it with param("role", name).
func role(t *testing.T, pool *pgxpool.Pool) string {
	t.Helper()
	name := pool.Config().ConnConfig.Database + "_role" // unique on the server
	do(t, pool, `create role `+name+`; revoke create on schema public from public`)
	t.Cleanup(func() {
		if _, err := pool.Exec(context.Background(), `drop owned by `+name+` cascade; drop role `+name); err != nil {
			t.Error(err)
		}
	})
	return name
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || e.Code != code {
		t.Errorf("%v, want SQLSTATE %s", err, code)
	}
}
