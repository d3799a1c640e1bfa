package main

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/inspect"
	"github.com/pgidem/idempotency/internal/keytable"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// A looker knows, of each connection, which tables its transaction has looked at, and
// keeps what named others.
type looker struct {
	mu     sync.Mutex
	seen   map[*pgx.Conn][]string
	blind  []string
	named  map[string]bool
	before func(sql string) // called ahead of each statement
}

func (l *looker) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if l.before != nil {
		l.before(data.SQL)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if strings.HasPrefix(data.SQL, "begin") {
		l.seen[conn] = nil
	}
	if strings.Contains(data.SQL, "recursive friends") {
		for _, arg := range data.Args {
			if text, ok := arg.(string); ok {
				l.seen[conn] = append(l.seen[conn], text)
			}
		}
		return ctx
	}
	text := strings.ReplaceAll(data.SQL, "'\"public\"", "") // a name as a text, of which the catalog is asked
	for _, table := range []string{keytable.Name, keytable.Operations} {
		if strings.Contains(text, pgx.Identifier{"public", table}.Sanitize()) && !strings.HasPrefix(text, "lock table") {
			l.named[table] = true
			if !slices.Contains(l.seen[conn], table) {
				l.blind = append(l.blind, data.SQL)
			}
		}
	}
	return ctx
}

func (l *looker) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// works calls what each command does with the rows of the table, on an abandoned key.
func works(t *testing.T, l *looker, pool *pgxpool.Pool) map[string]func() error {
	db := func(use keytable.Use) *database {
		return &database{Table: inspect.Table{Use: use}, url: pgtest.URL(pool), tracer: l}
	}
	reading, writing := db(keytable.Reading), db(keytable.Writing)
	use := func(d *database, do func(context.Context, *pgxpool.Pool) error) func() error {
		return func() error { return d.useTable(t.Context(), do) }
	}
	return map[string]func() error{
		"get": use(reading, func(ctx context.Context, pool *pgxpool.Pool) error {
			_, err := reading.LookUp(ctx, pool, "s", "i", true)
			return err
		}),
		"list": use(reading, func(ctx context.Context, pool *pgxpool.Pool) error {
			_, err := reading.page(ctx, pool, new(listing), true, inspect.Cursor{}, 10)
			return err
		}),
		"stats": use(reading, func(ctx context.Context, pool *pgxpool.Pool) error {
			return reading.Reading(ctx, pool, func(tx pgx.Tx) error {
				_, err := reading.Statistics(ctx, tx, 10, 10)
				return err
			})
		}),
		"delete": use(writing, func(ctx context.Context, pool *pgxpool.Pool) error {
			_, err := writing.delete(ctx, pool, "s", "i")
			return err
		}),
		"purge": use(writing, func(ctx context.Context, pool *pgxpool.Pool) error {
			store, err := writing.store(pool, nil)
			if err != nil {
				return err
			}
			_, err = store.Purge(writing.Purging(ctx))
			return err
		}),
		"discard": func() error {
			return writing.changeOperation(t.Context(), "s", "i", func(ctx context.Context, store *idempotency.Store, key idempotency.Key) error {
				return store.Discard(ctx, key)
			})
		},
	}
}

// Whatever is named in a statement can run something, so that the transaction has to have
// looked at it before.
func TestEachTransactionLooksAtEveryTableThatItsStatementsName(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for _, missing := range []bool{false, true} {
		if missing {
			if _, err := pool.Exec(t.Context(), "drop table idempotency_operations"); err != nil {
				t.Fatal(err)
			}
		}
		l := &looker{seen: map[*pgx.Conn][]string{}, named: map[string]bool{}}
		for command, work := range works(t, l, pool) {
			clear(l.named)
			if _, err := pool.Exec(t.Context(), "insert into idempotency_keys (id, scope, purge_after) values ('i', 's', now() + interval '1 day') on conflict do nothing"); err != nil {
				t.Fatal(err)
			}
			if err := work(); err != nil && command != "discard" {
				t.Errorf("%s: %v", command, err)
			}
			if !l.named[keytable.Name] && command != "discard" {
				t.Errorf("%s names no table", command)
			}
			if wants := !missing && command != "purge"; l.named[keytable.Operations] != wants {
				t.Errorf("%s, missing %v: named %v", command, missing, l.named)
			}
		}
		for _, sql := range l.blind {
			t.Errorf("missing %v: not looked at: %s", missing, sql)
		}
	}
}

// An installation before the migration that makes the table: what somebody puts there after
// the look is not read.
func TestOperationsThatAppearAfterTheLookAreNotRead(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	const plant = `create function theirs() returns text language plpgsql as $$ begin raise exception 'theirs runs'; end $$;
		create view idempotency_operations as select theirs() as id, 's' as scope`
	if _, err := pool.Exec(t.Context(), "drop table idempotency_operations; insert into idempotency_keys (id, scope, purge_after) values ('i', 's', now() + interval '1 day')", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	planted := false
	l := &looker{seen: map[*pgx.Conn][]string{}, named: map[string]bool{}, before: func(sql string) {
		if strings.Contains(sql, "enable_bitmapscan") && !planted { // right behind the look
			planted = true
			if _, err := pool.Exec(context.Background(), plant, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Error(err)
			}
		}
	}}
	if err := works(t, l, pool)["delete"](); err != nil || !planted {
		t.Error(planted, err)
	}
	var left int
	if err := pool.QueryRow(t.Context(), "select count(*) from idempotency_keys").Scan(&left); err != nil || left != 0 {
		t.Error(left, err)
	}
}

// A schema that comes first in the search_path can get a table of the name when it has been
// found in another one.
func TestTableThatAppearsInFrontAfterTheLookIsNotWorkedOn(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"delete", "purge"} {
		pool := pgtest.New(t)
		run := func(sql string) {
			if _, err := pool.Exec(context.Background(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Error(err)
			}
		}
		run("create schema front; insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after) values ('i', 's', '1', now(), now(), now())")
		run("alter database " + pool.Config().ConnConfig.Database + " set search_path = front, public")
		planted := false
		l := &looker{seen: map[*pgx.Conn][]string{}, named: map[string]bool{}, before: func(sql string) {
			if strings.HasPrefix(sql, "lock table") && !planted { // it has been found
				planted = true
				run("create table front.idempotency_keys (like public.idempotency_keys including all)")
			}
		}}
		if err := works(t, l, pool)[command](); err != nil || !planted {
			t.Errorf("%s: %v, planted: %v", command, err, planted)
		}
		var left int
		if err := pool.QueryRow(t.Context(), "select count(*) from public.idempotency_keys").Scan(&left); err != nil || left != 0 {
			t.Errorf("%s: %d records left, %v", command, left, err)
		}
	}
}
