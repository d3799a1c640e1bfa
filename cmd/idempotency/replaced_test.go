package main_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// The table is trusted until a command waits for it, and then it is another one: a
// statement that waits for a lock takes what has the name when it gets it.
func TestTableThatIsReplacedWhileACommandIsAtWorkRunsNothing(t *testing.T) {
	t.Parallel()
	const (
		theirs = `create function theirs(text) returns bool immutable language plpgsql as $$ begin raise exception 'theirs runs'; end $$; alter function theirs(text) owner to stranger;`
		view   = theirs + `alter table idempotency_keys rename to hidden; create view idempotency_keys as select * from hidden where theirs(id)`
		table  = theirs + `alter table idempotency_keys rename to hidden; create table idempotency_keys (like hidden including all); insert into idempotency_keys select * from hidden;
			alter table idempotency_keys owner to stranger; create rule r as on delete to idempotency_keys do also select theirs('x')`
	)
	for args, sql := range map[string]string{
		"get s i": view, "find i": view, "list": view, "list -id i": view, "stats": view, "delete -yes s i": table, "purge -once": table, "doctor": view,
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			execute(t, pool, "s", "i", 1)
			aged(t, pool, "s", 25*time.Hour)
			sql := strings.ReplaceAll(sql, "stranger", stranger(t, pool))
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(err)
			}
			wait := start(t, command(t, on(pool), strings.Fields(args)...))
			eventually(t, "the command waits for the table", func() (waits bool) {
				_ = pool.QueryRow(t.Context(), "select exists (select from pg_locks where not granted and relation is not null and database = (select oid from pg_database where datname = current_database()))").Scan(&waits)
				return waits
			})
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			r := wait()
			if strings.Contains(r.stdout+r.stderr, "theirs runs") {
				t.Errorf("%+v", r)
			}
			if args != "doctor" {
				r.wantLine(t, 1, "idempotency_keys")
			}
		})
	}
}

// A superuser reads the table of who owns the schema only since it can run nothing. Its owner
// could add an index while the command waits for the other table, and the planner runs its
// expression.
func TestIndexThatTheOwnerAddsWhileASuperuserReadsWaits(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"list", "list -id i", "stats"} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			execute(t, pool, "s", "i", 1)
			owner := stranger(t, pool)
			do(t, pool, `alter schema public owner to `+owner+`; alter table idempotency_keys owner to `+owner+`; alter table idempotency_operations owner to `+owner+`;
				create function theirs() returns text immutable language plpgsql as $$ begin
					if (select rolsuper from pg_roles where rolname = current_user) then raise exception 'theirs runs'; end if; return 'x'; end $$;
				alter function theirs() owner to `+owner)
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(context.Background())
			if _, err := tx.Exec(t.Context(), "lock table idempotency_operations in access exclusive mode"); err != nil {
				t.Fatal(err)
			}
			wait := start(t, command(t, on(pool), strings.Fields(args)...))
			eventually(t, "the command waits for the other table", func() (waits bool) {
				_ = pool.QueryRow(t.Context(), "select exists (select from pg_locks where not granted and relation is not null and database = (select oid from pg_database where datname = current_database()))").Scan(&waits)
				return waits
			})
			_, err = pool.Exec(t.Context(), "begin; set local role "+owner+"; set local lock_timeout = '500ms'; create index on idempotency_keys ((id || theirs())); commit", pgx.QueryExecModeSimpleProtocol)
			if err == nil || !strings.Contains(err.Error(), "lock timeout") {
				t.Error("the index does not wait: ", err)
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			wait().wantAll(t, 0)
		})
	}
}

// There nobody can be kept from adding an index, as on a standby.
func TestSuperuserDoesNotReadAnInertTableInAReadOnlyTransaction(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	owner := stranger(t, pool)
	do(t, pool, `alter schema public owner to `+owner+`; alter table idempotency_keys owner to `+owner)
	run(t, on(pool), "list").wantAll(t, 0)
	do(t, pool, "alter database "+pool.Config().ConnConfig.Database+" set default_transaction_read_only = on")
	run(t, on(pool), "list").wantLine(t, 1, "idempotency_keys", "belongs to role", "connect as role")
}

// It is looked at again when nobody can add anything any more.
func TestIndexThatTheOwnerHasAddedBeforeASuperuserHoldsTheTableIsSeen(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	owner := stranger(t, pool)
	do(t, pool, `alter schema public owner to `+owner+`; alter table idempotency_keys owner to `+owner+`;
		create function theirs() returns text immutable language sql as $$ select 'x' $$; alter function theirs() owner to `+owner)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), "set local role "+owner+"; lock table idempotency_keys in share mode", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	wait := start(t, command(t, on(pool), "list"))
	eventually(t, "the command waits for the table", func() (waits bool) {
		_ = pool.QueryRow(t.Context(), "select exists (select from pg_locks where not granted and relation = 'idempotency_keys'::regclass and database = (select oid from pg_database where datname = current_database()))").Scan(&waits)
		return waits
	})
	if _, err := tx.Exec(t.Context(), "create index on idempotency_keys ((id || theirs()))"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	wait().wantLine(t, 1, "idempotency_keys", "belongs to role")
}
