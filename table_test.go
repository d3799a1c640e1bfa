package idempotency_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
	"github.com/pgidem/idempotency/migrations"
)

// inEachWay runs a test for each, with a key of its own and without charges, in a
// database that they share.
func (b *bundle) inEachWay(name string, test func(b *bundle, w way)) {
	b.Helper()
	for _, w := range ways() {
		b.TB.(*testing.T).Run(name+", "+w.name, func(t *testing.T) {
			each := *b
			each.TB = t
			each.key.ID = name + ", " + w.name
			each.exec("truncate charges, public.idempotency_keys")
			test(&each, w)
		})
	}
}

func TestFunctionThatEndsItsTransactionNeverLeadsToASecondExecution(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for _, end := range []string{"commit", "commit; begin", "commit and chain", "rollback", "rollback; begin", "rollback and chain", "end; start transaction", "abort; begin isolation level repeatable read"} {
		b.inEachWay(end, func(b *bundle, w way) {
			got := w.call(b, func(ctx context.Context, tx pgx.Tx) (int, error) {
				charge(b.key.ID, 1)(ctx, tx)
				_, err := tx.Exec(ctx, end)
				return 1, err
			})
			b.wantErr(got.err, idempotency.ErrOutcomeUnknown)
			if text := got.err.Error(); !strings.Contains(text, "Store.Delete") || strings.Contains(text, "call again") {
				b.Errorf("the error is %q", text)
			}
			kept := 0
			if strings.HasPrefix(end, "commit") || strings.HasPrefix(end, "end") {
				kept = 1
				if n := query[int](b, `select count(*) from idempotency_keys where purge_after > now() + interval '23 hours'
					and num_nulls(fingerprint, result, origin, completed_at, expires_at) = 5`); n != 1 {
					b.Error("the row is not as a claim leaves it")
				}
				for range 3 {
					_, _, err := b.do(charge(b.key.ID, 2))
					b.wantErr(err, idempotency.ErrAbandoned)
				}
			}
			if n := query[int](b, "select count(*) from charges"); n != kept {
				b.Errorf("%d charges, want %d", n, kept)
			}
			if kept == 1 {
				if err := b.store.Delete(context.Background(), b.key); err != nil {
					b.Fatal(err)
				}
			}
			b.executes(3)
		})
	}
}

// anotherTenant puts a result under the same key into another table, and returns a
// check that it is untouched, and the only one there.
func (b *bundle) anotherTenant(table string) (untouched func()) {
	b.Helper()
	b.exec("delete from " + table)
	b.exec("insert into "+table+` (id, scope, purge_after, result, completed_at, expires_at)
		values ($1, $2, now(), '777', now(), now() + interval '1 hour')`, b.key.ID, b.key.Scope)
	all := "select string_agg(t::text, ';') from " + table + " t"
	before := query[string](b, all)
	return func() {
		b.Helper()
		if after := query[string](b, all); after != before {
			b.Errorf("the other tenant has\n%s\nand had\n%s", after, before)
		}
	}
}

func TestRecordGoesToTheTableOfTheClaimWhateverTheFunctionDoesToItsNames(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{}, pgtest.Direct) // behind a pooler, sessions are others' afterwards
	tenant := b.anotherTable("tenant")
	for name, statements := range map[string][]string{
		"set local search_path":        {"set local search_path = tenant"},
		"set search_path":              {"set search_path = tenant, public"},
		"set_config":                   {"select set_config('search_path', 'tenant', true)"},
		"no search_path":               {"set local search_path = ''"},
		"a temporary table":            {"create temp table idempotency_keys (like public.idempotency_keys including all) on commit drop"},
		"a temporary table, kept":      {"create temp table if not exists idempotency_keys (id int)"},
		"a temporary view":             {"create or replace temp view idempotency_keys as select 1 as id"},
		"a schema in front":            {"set local search_path = tenant, public", "select count(*) from idempotency_keys"},
		"the function's own savepoint": {"savepoint s", "set local search_path = tenant", "release savepoint s"},
	} {
		b.inEachWay(name, func(b *bundle, w way) {
			untouched := b.anotherTenant(tenant)
			got := w.call(b, func(ctx context.Context, tx pgx.Tx) (int, error) {
				for _, statement := range statements {
					if _, err := tx.Exec(ctx, statement); err != nil {
						return 0, err
					}
				}
				_, err := tx.Exec(ctx, "insert into public.charges (key, amount) values ($1, 5)", b.key.ID)
				return 5, err
			})
			b.wantOutcome(got, outcome{5, false, nil})
			b.pool.Reset() // what the function has set for its session goes with it
			untouched()
			b.effects(1)
			b.replays(5)
		})
	}
}

func TestTableReplacedByTheFunctionIsAnErrorAndLeavesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for _, w := range ways()[:2] {
		t.Run(w.name, func(t *testing.T) {
			b := *b
			b.TB, b.key.ID = t, w.name
			got := w.call(&b, func(ctx context.Context, tx pgx.Tx) (int, error) {
				for _, statement := range replaceTable {
					if _, err := tx.Exec(ctx, statement); err != nil {
						return 0, err
					}
				}
				return charge(b.key.ID, 1)(ctx, tx)
			})
			if got.err == nil || !strings.Contains(got.err.Error(), "another one in its place") {
				t.Errorf("got %+v", got)
			}
			b.effects(0)
			b.executes(2)
		})
	}
	b.key.ID = "a procedure"
	err := b.proceed(func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Step(ctx, op, "a", func(ctx context.Context, tx pgx.Tx) (int, error) {
			for _, statement := range replaceTable {
				if _, err := tx.Exec(ctx, statement); err != nil {
					return 0, err
				}
			}
			return charge(b.key.ID, 1)(ctx, tx)
		})
		return err
	}, ok("b"))
	if err == nil || !strings.Contains(err.Error(), "another one in its place") {
		t.Error(err)
	}
	b.effects(0)
}

// replaceTable puts another table in the place of that of the claim.
var replaceTable = []string{
	"alter table idempotency_keys rename to former",
	"create table idempotency_keys (like former including all)",
}

func searchPath(path string) pgtest.Option { return param("search_path", path) }

func TestConnectionThatLeadsToAnotherTableIsRefusedWithBothNames(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	untouched := b.anotherTenant(b.anotherTable(`Tenant "2"`))
	paths := []string{"public", `"Tenant ""2"""`}
	connected := 0
	pool := b.anotherPool(pgtest.MaxConns(1), func(cfg *pgxpool.Config) {
		cfg.ConnConfig.RuntimeParams["search_path"] = "public"
		cfg.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
			c.RuntimeParams["search_path"] = paths[min(connected, 1)]
			connected++
			return nil
		}
	})
	b.store = b.storeOn(pool, idempotency.Config{})
	b.executes(1)
	pool.Reset()
	ctx := t.Context()
	fn := func(context.Context, pgx.Tx) (int, error) { t.Error("the function was run"); return 0, nil }
	for _, id := range []string{b.key.ID, "key-2"} {
		key := idempotency.Key{Scope: b.key.Scope, ID: id}
		for operation, call := range map[string]func() error{
			"Do": func() error { _, _, err := idempotency.Do(ctx, b.store, key, fn); return err },
			"DoTx": func() error {
				return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
					_, _, err := idempotency.DoTx(ctx, b.store, tx, key, fn)
					if _, usable := tx.Exec(ctx, "select 1"); usable != nil {
						t.Errorf("DoTx: the transaction is not usable: %v", usable)
					}
					return err
				})
			},
			"Get": func() error { _, err := b.store.Get(ctx, key); return err },
			"All": func() error {
				for _, err := range b.store.All(ctx, key.Scope) {
					return err
				}
				return nil
			},
			"Delete": func() error { return b.store.Delete(ctx, key) },
			"Purge":  func() error { _, err := b.store.Purge(ctx); return err },
		} {
			err := call()
			if err == nil || !strings.Contains(err.Error(), `"Tenant ""2"""."idempotency_keys"`) || !strings.Contains(err.Error(), `"public"."idempotency_keys"`) || !strings.Contains(err.Error(), "Config.Schema") {
				t.Errorf("%s of %s: %v", operation, id, err)
			}
		}
	}
	untouched()
	// With a schema in the Config, every connection of the pool is as good.
	b.store = b.storeOn(pool, idempotency.Config{Schema: "public"})
	b.replays(1)
}

func TestSearchPathThatLeadsToNoTableIsGoodEnoughOnceTheTableIsKnown(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	pool := b.anotherPool(pgtest.MaxConns(1), pgtest.Direct)
	b.store = b.storeOn(pool, idempotency.Config{})
	b.executes(1)
	if _, err := pool.Exec(t.Context(), "set search_path = ''"); err != nil {
		t.Fatal(err)
	}
	b.replays(1)
	if _, err := b.store.Get(t.Context(), b.key); err != nil {
		t.Error(err)
	}
	// A temporary table of that name is in nobody's way, whatever its columns are.
	if _, err := pool.Exec(t.Context(), "create temp table idempotency_keys (n int)"); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), "set search_path = pg_temp, public"); err != nil {
		t.Fatal(err)
	}
	b.replays(1)
	if err := b.store.Delete(t.Context(), b.key); err != nil {
		t.Error(err)
	}
	fresh := b.storeOn(pool, idempotency.Config{})
	if _, replayed, err := idempotency.Do(t.Context(), fresh, b.key, func(context.Context, pgx.Tx) (int, error) { return 2, nil }); replayed || err != nil {
		t.Errorf("a Store that is made now: replayed %v, %v", replayed, err)
	}
	b.replays(2)
}

func TestTableThatHasMovedIsFoundAgain(t *testing.T) {
	t.Parallel()
	operations := map[string]func(b *bundle) error{
		"Do": func(b *bundle) error {
			_, replayed, err := b.do(charge(b.key.ID, 9))
			if err == nil && !replayed {
				err = fmt.Errorf("it was not replayed")
			}
			return err
		},
		"DoTx": func(b *bundle) error {
			tx := b.begin(pgx.TxOptions{})
			got := b.doTx(tx, charge(b.key.ID, 9))
			b.usable(tx)
			b.commit(tx)
			return got.err
		},
		"Get":    func(b *bundle) error { _, err := b.store.Get(context.Background(), b.key); return err },
		"Delete": func(b *bundle) error { return b.store.Delete(context.Background(), b.key) },
		"Purge":  func(b *bundle) error { _, err := b.store.Purge(context.Background()); return err },
		"All": func(b *bundle) error {
			for rec, err := range b.store.All(context.Background(), b.key.Scope) {
				if rec.Key.ID != b.key.ID {
					b.Errorf("All: %+v", rec)
				}
				return err
			}
			return fmt.Errorf("All: nothing")
		},
	}
	for name, operation := range operations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{}, searchPath("public, elsewhere"))
			b.executes(1)
			b.exec("create schema elsewhere")
			b.exec("alter table idempotency_keys set schema elsewhere")
			if err := operation(b); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("made only after the first call", func(t *testing.T) {
		t.Parallel()
		b := setup(t, idempotency.Config{})
		b.exec("alter table idempotency_keys rename to later")
		_, _, err := b.do(charge(b.key.ID, 1))
		if sqlState(err) != "42P01" || !strings.Contains(err.Error(), "migrations.Up") {
			t.Errorf("without the table: %v", err)
		}
		b.exec("alter table later rename to idempotency_keys")
		b.executes(1)
		b.effects(1)
	})
	// One table of that name is gone for good, and a connection finds another: but the
	// Store keeps to its own as long as that is there.
	t.Run("back where it was", func(t *testing.T) {
		t.Parallel()
		b := setup(t, idempotency.Config{}, searchPath("elsewhere, public"))
		b.executes(1)
		b.exec("alter table idempotency_keys rename to away")
		_, _, err := b.do(charge(b.key.ID, 1))
		if sqlState(err) != "42P01" {
			t.Errorf("without the table: %v", err)
		}
		b.exec("alter table away rename to idempotency_keys")
		b.anotherTable("elsewhere")
		_, _, err = b.do(charge(b.key.ID, 1))
		if err == nil || !strings.Contains(err.Error(), `"public"."idempotency_keys"`) {
			t.Errorf("with another table in front: %v", err)
		}
	})
}

func TestRoleOfTheFunctionWithoutTheGrantsIsNamedAndKeepsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	role := b.aRole()
	for name, change := range map[string]string{
		"set local role":            `set local role %s`,
		"set_config":                `select set_config('role', %[2]s, true)`,
		"set session authorization": `set local session authorization %s`,
		"in a block":                `do $$ begin execute 'set local role %s'; end $$`,
	} {
		b.inEachWay(name, func(b *bundle, w way) {
			change := fmt.Sprintf(change+"%[3]s", pgx.Identifier{role}.Sanitize(), "'"+role+"'", "")
			got := w.call(b, func(ctx context.Context, tx pgx.Tx) (int, error) {
				if _, err := tx.Exec(ctx, change); err != nil {
					return 0, err
				}
				return charge(b.key.ID, 1)(ctx, tx)
			})
			if sqlState(got.err) != "42501" || !strings.Contains(got.err.Error(), fmt.Sprintf("%q", role)) || !strings.Contains(got.err.Error(), `"public"."idempotency_keys"`) {
				b.Errorf("got %+v", got)
			}
			if n := query[int](b, "select count(*) from charges"); n != 0 {
				b.Errorf("%d charges", n)
			}
			b.executes(2)
		})
	}
}

func TestTriggerThatChangesOrDropsTheRecordIsAnErrorAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for name, body := range map[string]string{
		"keeps the old row":       "return old;",
		"drops the change":        "return null;",
		"changes the result":      "new.result := '9'; return new;",
		"drops the result":        "new.result := null; return new;",
		"changes the fingerprint": "new.fingerprint := 'x'; return new;",
		"changes the origin":      "new.origin := 'x'; return new;",
		"prolongs the retention":  "new.expires_at := new.expires_at + interval '1 day'; return new;",
		"no retention":            "new.expires_at := null; return new;",
		"puts the purge off":      "new.purge_after := new.purge_after + interval '1 second'; return new;",
		"moves the completion":    "new.completed_at := new.completed_at - interval '1 microsecond'; return new;",
	} {
		if citusTexts && name == "puts the purge off" {
			continue // only the coordinator could tell
		}
		b.inEachWay(name, func(b *bundle, w way) {
			b.exec("create or replace function spoil() returns trigger language plpgsql as $$ begin " +
				// The take-over of an expired record stays as it is.
				"if new.completed_at is null then return new; end if; " + body + " end $$")
			b.exec("create trigger spoil before update on idempotency_keys for each row execute function spoil()")
			got := w.call(b, charge(b.key.ID, 1))
			if got.err == nil || !strings.Contains(got.err.Error(), "trigger") || !strings.Contains(got.err.Error(), `"public"."idempotency_keys"`) {
				b.Errorf("got %+v", got)
			}
			if n := query[int](b, "select count(*) from charges"); n != 0 {
				b.Errorf("%d charges", n)
			}
			b.exec("drop trigger spoil on idempotency_keys")
			b.executes(2)
		})
	}
}

func TestWhatHangsOnTheTableAndLeavesTheRecordAsItIsMakesNoDifference(t *testing.T) {
	t.Parallel()
	const audit = "create function audit() returns trigger language plpgsql as $$ begin insert into public.seen values (tg_op); return new; end $$; "
	for name, c := range map[string]struct {
		sql  string
		seen string // that it is at work
	}{
		"a trigger before each row": {audit + "create trigger a before insert or update on idempotency_keys for each row execute function audit()", "select count(*) from seen"},
		"an audit of each statement": {"create function audit() returns trigger language plpgsql as $$ begin insert into public.seen select tg_op from gone; return null; end $$; " +
			"create trigger a after delete on idempotency_keys referencing old table as gone for each statement execute function audit()", "select count(*) from seen"},
		"the time of the last change": {"alter table idempotency_keys add updated_at timestamptz not null default now(); " +
			"create function touch() returns trigger language plpgsql as $$ begin new.updated_at := clock_timestamp(); return new; end $$; " +
			"create trigger touch before update on idempotency_keys for each row execute function touch()", "select count(*) from idempotency_keys where updated_at > completed_at"},
		"a parent table":            {"create table everything (scope text collate \"C\" not null); alter table idempotency_keys inherit everything", "select count(*) from everything"},
		"a publication":             {"create publication p for table idempotency_keys", "select count(*) from pg_publication_tables"},
		"rows that refer to it":     {"create table rides (k text, s text default 'customer-1', foreign key (k, s) references idempotency_keys (id, scope) on delete set null); create function ride() returns trigger language plpgsql as $$ begin insert into public.rides values (new.id); return null; end $$; create trigger ride after update on idempotency_keys for each row execute function ride()", "select count(*) from rides where k is not null"},
		"a generated column, index": {"alter table idempotency_keys add expired tstzrange generated always as (tstzrange(completed_at, expires_at)) stored; create index on idempotency_keys (expired)", "select count(expired) from idempotency_keys"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "a parent table" {
				inOnePiece(t)
			}
			b := setup(t, idempotency.Config{})
			b.exec("create table seen (what text)")
			b.exec(c.sql)
			b.executes(1)
			b.replays(1)
			deleted := b.key
			b.key.ID = "purged"
			b.executes(2)
			if err := b.store.Delete(t.Context(), deleted); err != nil {
				t.Errorf("Delete: %v", err)
			}
			if query[int](b, c.seen) == 0 {
				t.Error("nothing is seen of it, so this shows nothing")
			}
			b.exec("update idempotency_keys set expires_at = now(), purge_after = now()")
			if n, err := b.store.Purge(t.Context()); n != 1 || err != nil || b.rows() != 0 {
				t.Errorf("purged %d, %v; %d rows are left", n, err, b.rows())
			}
			b.executes(3)
		})
	}
}

func TestForeignKeyThatKeepsARecordIsNamedByDeleteAndPurge(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("create table rides (k text, s text, foreign key (k, s) references idempotency_keys (id, scope))")
	b.executes(1)
	b.exec("insert into rides select id, scope from idempotency_keys; update idempotency_keys set expires_at = now(), purge_after = now()")
	_, purged := b.store.Purge(t.Context())
	for operation, err := range map[string]error{"Purge": purged, "Delete": b.store.Delete(t.Context(), b.key)} {
		if sqlState(err) != "23503" || !strings.Contains(err.Error(), "rides_k_s_fkey") {
			t.Errorf("%s: %v", operation, err)
		}
	}
}

func TestPolicyThatRefusesTheRecordIsNamedForWhatItIs(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("alter table idempotency_keys enable row level security")
	b.exec("create policy claims on idempotency_keys for insert with check (completed_at is null or true)")
	b.exec("create policy reads on idempotency_keys for select using (true)")
	b.store = b.asRole(idempotency.Config{}).store
	runs := 0
	_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		runs++
		return charge(b.key.ID, 1)(ctx, tx)
	})
	if sqlState(err) != "42501" || !strings.Contains(err.Error(), "row-level security") || strings.Contains(err.Error(), "needs select") || runs != 1 {
		t.Errorf("%d runs, %v", runs, err)
	}
	if n := query[int](b, "select count(*) from charges"); n != 0 {
		t.Errorf("%d charges", n)
	}
}

func TestRuleOnTheTableIsAnErrorAtOnceThatNamesIt(t *testing.T) {
	t.Parallel()
	for _, event := range []string{"insert", "update"} {
		b := setup(t, idempotency.Config{})
		b.exec("create rule swallow as on " + event + " to idempotency_keys do instead nothing")
		_, _, err := b.do(charge(b.key.ID, 1))
		if sqlState(err) != "0A000" || !strings.Contains(err.Error(), "a rule on") || strings.Contains(err.Error(), "standby") {
			t.Errorf("on %s: %v", event, err)
		}
		b.exec("drop rule swallow on idempotency_keys")
		b.executes(2)
		b.effects(1)
	}
}

// A row that a take-over has cleared looks as one that was never recorded, for as
// long as its function runs, and comes back when it fails.
func TestTakeOverThatFailsLeavesTheExpiredRecordToTheNext(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	b.exec("update idempotency_keys set expires_at = now() - interval '1 second'")
	before := query[string](b, "select t::text from idempotency_keys t")
	failure := fmt.Errorf("no")
	_, _, err := b.do(func(context.Context, pgx.Tx) (int, error) { return 0, failure })
	b.wantErr(err, failure)
	if after := query[string](b, "select t::text from idempotency_keys t"); after != before {
		t.Errorf("the record is\n%s\nand was\n%s", after, before)
	}
	start := time.Now()
	b.executes(2)
	if got := query[time.Time](b, "select purge_after from idempotency_keys"); got.Before(start.Add(23 * time.Hour)) {
		t.Errorf("purged after %v", got)
	}
}

// In such a session a backslash escapes the quote behind it, and what follows would
// be SQL.
func TestNameOfASchemaIsNeverSQL(t *testing.T) {
	t.Parallel()
	for _, schema := range []string{`x\'y`, `x\`, `\' or '1'='1`, `it's "odd"`} {
		b := setup(t, idempotency.Config{})
		if err := migrations.Up(t.Context(), b.pool, schema); err != nil {
			t.Errorf("%s: Up: %v", schema, err)
			continue
		}
		for _, conforming := range []string{"on", "off"} {
			if conforming == "off" && b.pool.Config().ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol {
				continue // pgx refuses that itself
			}
			b.key.ID = "with " + conforming
			b.store = b.storeOn(b.anotherPool(param("standard_conforming_strings", conforming)), idempotency.Config{Schema: schema})
			for _, want := range []bool{false, true} {
				got, replayed, err := b.do(charge(b.key.ID, 1))
				if got != 1 || replayed != want || err != nil {
					t.Errorf("%s, %s: Do = %v, %v, %v", schema, conforming, got, replayed, err)
				}
			}
			if _, err := b.store.Get(t.Context(), b.key); err != nil {
				t.Errorf("%s, %s: %v", schema, conforming, err)
			}
			if err := b.store.Delete(t.Context(), b.key); err != nil {
				t.Errorf("%s, %s: %v", schema, conforming, err)
			}
		}
	}
}

// settings let a session show values in other forms than the usual.
var settings = map[string]map[string]string{
	"SQL, DMY": {"bytea_output": "escape", "DateStyle": "SQL, DMY", "IntervalStyle": "sql_standard", "TimeZone": "<-13:30>+13:30"},
	"German":   {"DateStyle": "German", "IntervalStyle": "postgres_verbose", "TimeZone": "Asia/Kathmandu", "extra_float_digits": "-15"},
	"Postgres": {"bytea_output": "escape", "DateStyle": "Postgres, YMD", "IntervalStyle": "iso_8601", "TimeZone": "America/St_Johns"},
}

// inPool is the bundle with a pool and a Store of a subtest's own, on an empty table.
func (b *bundle) inPool(t *testing.T, cfg idempotency.Config, opts ...pgtest.Option) *bundle {
	t.Helper()
	each := *b
	each.TB = t
	each.pool = each.anotherPool(opts...)
	each.store = each.storeOn(each.pool, cfg)
	each.exec("truncate charges, idempotency_keys")
	return &each
}

func TestNoResultDependsOnHowASessionShowsValues(t *testing.T) {
	t.Parallel()
	type receipt struct{ Text string }
	want := receipt{"10 € \\ \x00\x01 'x' \\x41 \\101"}
	shared := setup(t, idempotency.Config{})
	for modeName, mode := range execModes {
		for name, values := range settings {
			t.Run(modeName+", "+name, func(t *testing.T) {
				options := []pgtest.Option{execMode(mode), pgtest.MaxConns(2)}
				for setting, value := range values {
					options = append(options, param(setting, value))
				}
				start := time.Now().Add(-time.Second)
				b := shared.inPool(t, idempotency.Config{Retention: 36*time.Hour + time.Microsecond}, options...)
				b.key.Fingerprint = idempotency.FingerprintOf([]byte(`\`))
				do := func() (receipt, bool, error) {
					return idempotency.Do(t.Context(), b.store, b.key, func(ctx context.Context, tx pgx.Tx) (receipt, error) {
						_, err := tx.Exec(ctx, "insert into charges (key, amount) values ('k', 1)")
						return want, err
					})
				}
				for i := range 3 {
					if got, replayed, err := do(); got != want || replayed != (i > 0) || err != nil {
						t.Fatalf("call %d: %+v, replayed %v, %v", i, got, replayed, err)
					}
				}
				tx := b.begin(pgx.TxOptions{})
				got, replayed, err := idempotency.DoTx(t.Context(), b.store, tx, b.key, func(context.Context, pgx.Tx) (receipt, error) { return receipt{}, nil })
				if got != want || !replayed || err != nil {
					t.Errorf("DoTx: %+v, replayed %v, %v", got, replayed, err)
				}
				tx.Rollback(t.Context())
				check := func(rec idempotency.Record, err error) {
					if err != nil || rec.Key != b.key || !strings.Contains(string(rec.Result), `10 €`) {
						t.Errorf("record %+v, %v", rec, err)
					}
					if d := rec.ExpiresAt.Sub(rec.CompletedAt); d != 36*time.Hour+time.Microsecond {
						t.Errorf("it is kept for %v", d)
					}
					if rec.CreatedAt.Before(start) || rec.CreatedAt.After(rec.CompletedAt) || rec.CompletedAt.After(time.Now().Add(time.Second)) {
						t.Errorf("created %v, completed %v", rec.CreatedAt, rec.CompletedAt)
					}
				}
				check(b.store.Get(t.Context(), b.key))
				for rec, err := range b.store.All(t.Context(), b.key.Scope) {
					check(rec, err)
				}
				b.exec("update idempotency_keys set expires_at = now(), purge_after = now()")
				if _, replayed, err := do(); replayed || err != nil {
					t.Errorf("taken over: replayed %v, %v", replayed, err)
				}
				if err := b.store.Delete(t.Context(), b.key); err != nil {
					t.Errorf("Delete: %v", err)
				}
				if n, err := b.store.Purge(t.Context()); n != 0 || err != nil {
					t.Errorf("Purge: %d, %v", n, err)
				}
			})
		}
	}
}

// An operator can keep a key for good, and a table can have been filled by others.
func TestTimesThatGoDoesNotHaveFailNothing(t *testing.T) {
	t.Parallel()
	shared := setup(t, idempotency.Config{})
	for modeName, mode := range execModes {
		for _, value := range []string{"infinity", "294276-12-31"} {
			t.Run(modeName+", "+value, func(t *testing.T) {
				b := shared.inPool(t, idempotency.Config{}, pgtest.Direct, execMode(mode), pgtest.MaxConns(2))
				b.executes(1)
				b.exec("update idempotency_keys set expires_at = '" + value + "'")
				b.replays(1)
				rec, err := b.store.Get(t.Context(), b.key)
				if err != nil || rec.ExpiresAt.UTC().Year() != 9999 || rec.CreatedAt.After(rec.CompletedAt) || time.Since(rec.CompletedAt) > time.Minute {
					t.Errorf("Get: %+v, %v", rec, err)
				}
				if _, err := rec.ExpiresAt.MarshalJSON(); err != nil {
					t.Error(err)
				}
				n := 0
				for _, err := range b.store.All(t.Context(), b.key.Scope) {
					n++
					if err != nil {
						t.Errorf("All: %v", err)
					}
				}
				if n != 1 {
					t.Errorf("All: %d records", n)
				}
				b.exec("update idempotency_keys set expires_at = '-infinity', completed_at = '-infinity', purge_after = '-infinity'")
				if _, err := b.store.Get(t.Context(), b.key); err != idempotency.ErrNotFound {
					t.Errorf("Get: %v", err)
				}
				if n, err := b.store.Purge(t.Context()); n != 1 || err != nil {
					t.Errorf("Purge: %d, %v", n, err)
				}
			})
		}
	}
}

func TestNoTimeOfARecordFailsGetOrAll(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	times := []string{"now()", "'infinity'", "'-infinity'", "'4714-11-24 00:00:00+00 BC'", "'294276-12-31 23:59:59.999999+00'", "'0001-01-01 00:00:00+00'"}
	n := 0
	for i, completed := range append(times, "null") {
		for j, expires := range []string{"now() + '1 day'", "'infinity'", "'294276-12-31 23:59:59.999999+00'"} {
			for k, purge := range times {
				id := fmt.Sprint(i, j, k)
				b.exec("insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after) values ($1, 's', '1', "+completed+", "+expires+", "+purge+")", id)
				n++
				rec, err := b.store.Get(t.Context(), idempotency.Key{Scope: "s", ID: id})
				if err != nil || string(rec.Result) != "1" || rec.CreatedAt.After(rec.CompletedAt) {
					t.Errorf("Get, completed at %s, expires at %s, purged after %s: %+v, %v", completed, expires, purge, rec, err)
				}
				if _, err := json.Marshal(rec); err != nil {
					t.Errorf("completed at %s, expires at %s, purged after %s: %v", completed, expires, purge, err)
				}
			}
		}
	}
	for rec, err := range b.store.All(t.Context(), "s") {
		if n--; err != nil || string(rec.Result) != "1" {
			t.Errorf("All: %+v, %v", rec, err)
		}
	}
	if n != 0 {
		t.Errorf("All left out %d records", n)
	}
}

// shim is set_config on a server that refuses a setting: the function stands before
// PostgreSQL's own in the search_path.
func (b *bundle) shim(refused string) *pgxpool.Pool {
	b.Helper()
	b.exec("create schema shim")
	b.exec(`create function shim.set_config(name text, value text, is_local bool) returns text language plpgsql as $$ begin
		if name = '` + refused + `' and value <> '0' then
			raise exception 'invalid value for parameter "%": %', name, value using errcode = '22023';
		end if;
		return pg_catalog.set_config(name, value, is_local); end $$`)
	return b.anotherPool(searchPath("shim, pg_catalog, public"))
}

// PostgreSQL on Windows, and before release 15 on macOS, takes no value of
// client_connection_check_interval but 0.
func TestServerThatCannotWatchItsClientsIsServedWithoutIt(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	pool := b.shim("client_connection_check_interval")
	for name, operation := range map[string]func(store *idempotency.Store, key idempotency.Key) error{
		"Do": func(store *idempotency.Store, key idempotency.Key) error {
			_, _, err := idempotency.Do(t.Context(), store, key, charge("k", 1))
			return err
		},
		"QueryRow": func(store *idempotency.Store, _ idempotency.Key) error {
			for i := range 2 { // the first one finds out in Do's way
				key := idempotency.Key{Scope: "statements", ID: fmt.Sprint(i)}
				if _, _, err := idempotency.QueryRow[int](t.Context(), store, key, "select 1"); err != nil {
					return err
				}
			}
			return nil
		},
		"Delete": func(store *idempotency.Store, key idempotency.Key) error { return store.Delete(t.Context(), key) },
		"Purge": func(store *idempotency.Store, key idempotency.Key) error {
			_, err := store.Purge(t.Context())
			return err
		},
	} {
		key := idempotency.Key{Scope: "s", ID: name}
		if _, _, err := idempotency.Do(t.Context(), b.store, key, charge("k", 1)); err != nil {
			t.Fatal(err)
		}
		store := b.storeOn(pool, idempotency.Config{})
		for i := range 2 {
			if err := operation(store, key); err != nil && !(name == "Delete" && i == 1 && err == idempotency.ErrNotFound) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if !idempotency.Unwatched(store) {
			t.Errorf("%s: the setting is asked for again each time", name)
		}
	}
	if idempotency.Unwatched(b.store) {
		t.Error("a Store on a server that takes the setting does without it")
	}
}

func TestAnotherSettingThatIsRefusedIsAnError(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	store := b.storeOn(b.shim("idle_in_transaction_session_timeout"), idempotency.Config{})
	for range 2 {
		_, _, err := idempotency.Do(t.Context(), store, b.key, charge(b.key.ID, 1))
		if sqlState(err) != "22023" || !strings.Contains(err.Error(), "idle_in_transaction") {
			t.Errorf("got %v", err)
		}
		if idempotency.Unwatched(store) {
			t.Error("the connection check is taken for the cause")
		}
	}
	b.effects(0)
}

const timeoutSettings = `select string_agg(name || '=' || setting, ' ' order by name) || coalesce(current_setting('idempotency.seqscan', true), '') from pg_settings where name in ('idle_in_transaction_session_timeout', 'client_connection_check_interval')`

// A client that is gone or frozen frees what it holds, whatever it was about to do. What
// deletes looks again at rows that it had to wait for.
func TestEachTransactionEndsWithItsClient(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{}, param("default_transaction_isolation", "serializable"))
	const watch, idle = "select setting from pg_settings where name = 'client_connection_check_interval'", "select setting from pg_settings where name = 'idle_in_transaction_session_timeout'"
	looks := func(ctx context.Context, tx pgx.Tx) (int, error) {
		for sql, want := range map[string]string{watch: "1000", idle: "60000"} {
			var got string
			if err := tx.QueryRow(ctx, sql).Scan(&got); err != nil || got != want {
				return 0, fmt.Errorf("%s: %q, %w; want %s", sql, got, err, want)
			}
		}
		return 1, nil
	}
	_, _, err := b.do(looks)
	b.wantErr(err, nil)
	got, _, err := idempotency.QueryRow[string](t.Context(), b.store, idempotency.Key{Scope: "s", ID: "a statement"}, watch)
	if got != "1000" || err != nil {
		t.Errorf("a statement: %s, %v", got, err)
	}
	step := func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Step(ctx, op, "b", looks)
		return err
	}
	b.key.ID = "a procedure"
	b.wantErr(b.proceed(ok("a"), step), nil)
	b.trigger("delete", `
		if (`+watch+`) <> '1000' or (`+idle+`) <> '60000' or current_setting('transaction_isolation') <> 'read committed' then
			raise 'not as it has to be';
		end if;`)
	b.wantErr(b.store.Delete(t.Context(), b.key), nil)
	b.expiredRows(3)
	if n, err := b.store.Purge(t.Context()); n != 3 || err != nil {
		t.Errorf("purged %d, %v", n, err)
	}
}

const plannerSettings = `select string_agg(name || '=' || setting, ' ' order by name) from pg_settings where name like 'enable\_%'`

func TestNoPlannerSettingOfOursIsInForceInTheFunctionOrAfterTheCall(t *testing.T) {
	t.Parallel()
	shared := setup(t, idempotency.Config{})
	for modeName, mode := range execModes {
		for _, seqscan := range []string{"on", "off"} {
			if seqscan == "off" && modeName != "cache_statement" {
				continue // the former value is kept in the same way in all modes
			}
			t.Run(modeName+", "+seqscan, func(t *testing.T) {
				b := shared.inPool(t, idempotency.Config{}, pgtest.MaxConns(1), execMode(mode), param("enable_seqscan", seqscan))
				want, timeouts := query[string](b, plannerSettings), query[string](b, timeoutSettings)
				if !strings.Contains(want, "enable_seqscan="+seqscan) {
					b.Fatal(want)
				}
				look := func(when string, q interface {
					QueryRow(context.Context, string, ...any) pgx.Row
				}) {
					var got string
					if err := q.QueryRow(context.Background(), plannerSettings).Scan(&got); err != nil || got != want {
						b.Errorf("%s: %v\n%s\nwant\n%s", when, err, got, want)
					}
					if q != b.pool { // a function of Do runs with the timeouts of the call
						return
					}
					if err := q.QueryRow(context.Background(), timeoutSettings).Scan(&got); err != nil || got != timeouts {
						b.Errorf("%s: %v\n%s\nwant\n%s", when, err, got, timeouts)
					}
				}
				for i := range 7 { // pgx's and PostgreSQL's caches have settled by then
					for _, w := range ways() {
						b.key.ID = fmt.Sprint(w.name, i)
						got := w.call(b, func(ctx context.Context, tx pgx.Tx) (int, error) {
							look("in the function of "+w.name, tx)
							return 1, nil
						})
						b.wantOutcome(got, outcome{1, false, nil})
						look("after "+w.name, b.pool)
					}
					tx := b.begin(pgx.TxOptions{})
					b.wantOutcome(b.doTx(tx, charge(b.key.ID, 2)), outcome{1, true, nil})
					look("after a replay of DoTx", tx)
					tx.Rollback(context.Background())
					if _, err := b.store.Get(context.Background(), b.key); err != nil {
						b.Error(err)
					}
					look("after Get", b.pool)
					b.store.Delete(context.Background(), b.key)
					look("after Delete", b.pool)
				}
			})
		}
	}
}

// The names of the settings that calls make for themselves are anybody's: also a setting
// of the database or of the role, or one that the application has made in the session.
func TestSettingsUnderOurNamesChangeNoCall(t *testing.T) {
	t.Parallel()
	shared := setup(t, idempotency.Config{})
	for _, value := range []string{"yes", "", "on", "0"} {
		for _, level := range []pgx.TxIsoLevel{"", pgx.Serializable} {
			b := shared.inPool(t, idempotency.Config{Wait: time.Second, TxOptions: pgx.TxOptions{IsoLevel: level}}, param("idempotency.claimed", value), param("idempotency.seqscan", value))
			runs := 0
			for i := range 4 {
				store := b.storeOn(b.pool, b.store.Config()) // which does not know the key yet
				_, _, err := idempotency.Do(t.Context(), store, idempotency.Key{Scope: "s", ID: fmt.Sprint(i / 2)}, func(context.Context, pgx.Tx) (int, error) {
					runs++
					return i, nil
				})
				if want := i/2 + 1; err != nil || runs != want {
					t.Errorf("%q, %q: call %d: %d runs, want %d, %v", value, level, i, runs, want, err)
				}
			}
		}
	}
}

// Callers of one Store share answers in the process, whatever role each has: row-level
// security is a wall between Stores.
func TestStoreForEachRoleGivesNoAnswerThatItsPolicyHides(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("alter table idempotency_keys enable row level security")
	b.exec("create policy own on idempotency_keys using (scope like 'x%') with check (scope like 'x%')")
	restricted := b.asRole(idempotency.Config{}).store
	keys := []idempotency.Key{{Scope: "a", ID: "x"}, {Scope: "x", ID: "a"}, {Scope: "ax", ID: "x"}, {Scope: "xa", ID: ""}, {Scope: "X", ID: "x"}}
	var wg sync.WaitGroup
	for i := range 8 {
		store := []*idempotency.Store{b.store, restricted}[i%2]
		wg.Go(func() {
			for n := range 60 {
				key := keys[n%len(keys)]
				key.ID += fmt.Sprint("-", n)
				want := fmt.Sprintf("%q", key)
				got, _, err := idempotency.Do(t.Context(), store, key, func(context.Context, pgx.Tx) (string, error) { return want, nil })
				if hidden := store == restricted && key.Scope[0] != 'x'; hidden != (err != nil) || err == nil && got != want {
					t.Errorf("%s (hidden: %v): got %s, %v", want, hidden, got, err)
				}
			}
		})
	}
	wg.Wait()
}

// inDoAndDoTx are the two ways of one call.
var inDoAndDoTx = map[string]func(b *bundle, fn func(context.Context, pgx.Tx) (int, error)) error{
	"Do": func(b *bundle, fn func(context.Context, pgx.Tx) (int, error)) error {
		_, _, err := b.do(fn)
		return err
	},
	"DoTx": func(b *bundle, fn func(context.Context, pgx.Tx) (int, error)) error {
		tx := b.begin(pgx.TxOptions{})
		defer tx.Rollback(context.Background())
		err := b.doTx(tx, fn).err
		b.unlocked(tx)
		b.usable(tx)
		return err
	},
}

func TestRowThatACallCannotHaveIsAnErrorAndNotACallInProgress(t *testing.T) {
	t.Parallel()
	const policies = "alter table idempotency_keys enable row level security; create policy i on idempotency_keys for insert with check (true);"
	const trigger = `create function drops() returns trigger language plpgsql as $$ begin return null; end $$;
		create trigger drops before `
	for name, c := range map[string]struct {
		sql      string
		recorded string // when the record expires; empty: there is none
	}{
		"a policy hides the record":        {policies + "create policy s on idempotency_keys for select using (completed_at is null)", "now() + interval '1 day'"},
		"a policy keeps the expired one":   {policies + "create policy s on idempotency_keys for select using (true)", "now()"},
		"a trigger drops the claim":        {trigger + "insert on idempotency_keys for each row execute function drops()", ""},
		"a trigger drops the take-over":    {trigger + "update on idempotency_keys for each row execute function drops()", "now()"},
		"a policy hides the expired one":   {policies + "create policy s on idempotency_keys for select using (completed_at is null)", "now()"},
		"a policy refuses the claim":       {policies + "create policy s on idempotency_keys for select using (id <> 'key-1')", "now() + interval '1 day'"},
		"a policy for updates hides one":   {policies + "create policy s on idempotency_keys for select using (true); create policy u on idempotency_keys for update using (false)", "now()"},
		"a trigger drops what is recorded": {trigger + "insert on idempotency_keys for each row when (new.id = 'key-1') execute function drops()", ""},
	} {
		for way, call := range inDoAndDoTx {
			t.Run(name+", "+way, func(t *testing.T) {
				t.Parallel()
				owner := setup(t, idempotency.Config{})
				if c.recorded != "" {
					owner.exec("insert into idempotency_keys (id, scope, purge_after, result, completed_at, expires_at) values ($1, $2, now(), '1', now() - interval '1 hour', "+c.recorded+")", owner.key.ID, owner.key.Scope)
				}
				owner.exec(c.sql)
				b := owner.asRole(idempotency.Config{Wait: time.Minute})
				start := time.Now()
				err := call(b, func(context.Context, pgx.Tx) (int, error) {
					t.Error("the function was run")
					return 0, nil
				})
				if err == nil || errors.Is(err, idempotency.ErrInProgress) || !strings.Contains(err.Error(), "policy") {
					t.Errorf("got %v", err)
				}
				if d := time.Since(start); d > 30*time.Second { // half of Wait
					t.Errorf("it was found after %v", d)
				}
			})
		}
	}
}

// A purge locks what it deletes, for the moment of its transaction.
func TestExpiredRowThatIsLockedIsACallInProgressForAllOfWait(t *testing.T) {
	t.Parallel()
	for way, call := range inDoAndDoTx {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{Wait: 300 * time.Millisecond})
			b.executes(1)
			b.exec("update idempotency_keys set expires_at = now(), purge_after = now()")
			purge := b.begin(pgx.TxOptions{})
			if _, err := purge.Exec(t.Context(), "select from idempotency_keys for update"); err != nil {
				t.Fatal(err)
			}
			b.wantErr(call(b, charge(b.key.ID, 2)), idempotency.ErrInProgress)
		})
	}
}

func TestDeleteOrPurgeThatAPolicyOrATriggerMakesDoNothingSaysSo(t *testing.T) {
	onOneServer(t, "a purge of all nodes locks nothing by itself, so that no policy for updates hinders it")
	t.Parallel()
	const seen = "alter table idempotency_keys enable row level security; create policy s on idempotency_keys for select using (true);"
	for name, sql := range map[string]string{
		"a policy for deletes":  seen + "create policy u on idempotency_keys for update using (true); create policy d on idempotency_keys for delete using (false)",
		"no policy for updates": seen + "create policy d on idempotency_keys for delete using (true)",
		"an update policy":      seen + "create policy d on idempotency_keys for delete using (true); create policy u on idempotency_keys for update using (false)",
		"a trigger":             "create function drops() returns trigger language plpgsql as $$ begin return null; end $$; create trigger drops before delete on idempotency_keys for each row execute function drops()",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			owner := setup(t, idempotency.Config{})
			owner.executes(1)
			owner.exec(sql)
			owner.exec("update idempotency_keys set expires_at = now(), purge_after = now()")
			b := owner.asRole(idempotency.Config{})
			_, purged := b.store.Purge(t.Context())
			for what, err := range map[string]error{"Delete": b.store.Delete(t.Context(), b.key), "Purge": purged} {
				if err == nil || errors.Is(err, idempotency.ErrInProgress) || errors.Is(err, idempotency.ErrNotFound) || !strings.Contains(err.Error(), "policy") {
					t.Errorf("%s: %v", what, err)
				}
			}
			if n := owner.rows(); n != 1 {
				t.Errorf("%d rows", n)
			}
		})
	}
}

// What a policy hides from a role is not there for it, as for a purge of one tenant.
func TestPurgeOfWhatAPolicyShowsIsDone(t *testing.T) {
	t.Parallel()
	owner := setup(t, idempotency.Config{})
	for _, scope := range []string{"tenant-1", "tenant-2"} {
		owner.key.Scope = scope
		owner.executes(1)
	}
	owner.exec("update idempotency_keys set expires_at = now(), purge_after = now()")
	owner.exec("alter table idempotency_keys enable row level security; create policy t on idempotency_keys using (scope = 'tenant-1')")
	b := owner.asRole(idempotency.Config{})
	for want := int64(1); want >= 0; want-- {
		if n, err := b.store.Purge(t.Context()); n != want || err != nil {
			t.Errorf("purged %d, %v; want %d", n, err, want)
		}
	}
}

func TestPurgePassesOverRowsThatAreAllLocked(t *testing.T) {
	onOneServer(t, "a purge of all nodes waits for a row that is locked")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	b.exec("update idempotency_keys set expires_at = now(), purge_after = now()")
	tx := b.begin(pgx.TxOptions{})
	if _, err := tx.Exec(t.Context(), "select from idempotency_keys for update"); err != nil {
		t.Fatal(err)
	}
	if n, err := b.store.Purge(t.Context()); n != 0 || err != nil {
		t.Errorf("purged %d, %v", n, err)
	}
	b.commit(tx)
}

// Citus refuses, or runs on the wrong node, what these patterns find. It cannot be asked
// here: the rules are those of its planner (multi_router_planner.c of Citus 13).
func TestStatementsForCitusHoldToItsRules(t *testing.T) {
	t.Parallel()
	forbidden := []struct {
		rule         string
		part, expect *regexp.Regexp
	}{
		{"what changes rows has no volatile function in WHERE",
			regexp.MustCompile(`(?s)(?:update|delete from) \S+\s.*?where(.*)`), regexp.MustCompile(`clock_timestamp|pg_try_|set_config|current_setting`)},
		{"SET of an update has no volatile function",
			regexp.MustCompile(`(?s)update "\S+\s+set(.*?)where`), regexp.MustCompile(`clock_timestamp|pg_try_|set_config|current_setting`)},
		{"SET of an upsert has no function",
			regexp.MustCompile(`(?s)do update\s+set(.*?)returning`), regexp.MustCompile(`\w\(|interval`)},
		{"RETURNING has no function that is not immutable",
			regexp.MustCompile(`(?s)\breturning(.*?)(?:\)\s*select|$)`), regexp.MustCompile(`\w\(|\+`)},
		{"what is asked of the table needs nothing of the session, nor an oid of one node",
			regexp.MustCompile(`(?s)^(.*(?:from|into|update) "s"\."idempotency.*)$`), regexp.MustCompile(`set_config|current_setting|regclass|pg_current_xact|pg_backend_pid\(\)$`)},
	}
	ofManyKeys := map[string]bool{"purge": true, "list": true, "expired": true, "lockExpired": true, "lockAt": true, "existsAt": true, "journal.pending": true}
	plainOnly := map[string]bool{"claim": true, "read": true, "claimInTx": true, "readInTx": true, "expired": true, "lockExpired": true, "lockAt": true, "existsAt": true}
	onTheTable, key := regexp.MustCompile(`(?:from|into|update) "s"\."idempotency`), regexp.MustCompile(`\bid = \$1::text and (?:k\.)?scope = \$2::text|\(id, scope,`)
	all := idempotency.StatementsOnCitus()
	if len(all) < 40 {
		t.Errorf("%d statements", len(all))
	}
	for name, sql := range all {
		if plainOnly[name] || !onTheTable.MatchString(sql) {
			continue
		}
		if !ofManyKeys[name] && !key.MatchString(sql) {
			t.Errorf("%s names a row without its id and scope:\n%s", name, sql)
		}
		for _, f := range forbidden {
			for _, part := range f.part.FindAllStringSubmatch(sql, -1) {
				if found := f.expect.FindString(part[1]); found != "" {
					t.Errorf("%s: %s: %q in\n%s", name, f.rule, found, sql)
				}
			}
		}
	}
}

func TestErrorsThatSayThatTheNodeOfTheKeyIsLost(t *testing.T) {
	t.Parallel()
	for code, lost := range map[string]bool{"08006": true, "08000": true, "57P01": true, "57P02": true, "XX000": true,
		"57014": false, "40001": false, "23505": false, "22012": false, "XX001": false, "25006": false} {
		if got := idempotency.LostNode(true, code); got != lost {
			t.Errorf("%s: %v", code, got)
		}
		if idempotency.LostNode(false, code) {
			t.Errorf("%s, and the table is not distributed", code)
		}
	}
}

// Citus is played by its setting and a table of its catalog.
func TestStoreFindsOutOnceWhetherCitusDistributesItsTable(t *testing.T) {
	t.Parallel()
	for _, schema := range []string{"", "public"} {
		b := &bundle{TB: t, pool: pgtest.Empty(t, pgtest.Direct), key: idempotency.Key{Scope: "customer-1", ID: "key-1"}}
		b.exec("create table charges (id bigint generated always as identity, key text not null, amount int not null)")
		if !citusTexts {
			b.play("drop view if exists pg_catalog.pg_dist_partition; create table pg_catalog.pg_dist_partition (logicalrelid regclass)")
		}
		plain := b.storeOn(b.pool, idempotency.Config{Schema: schema})
		on := b.anotherPool(pgtest.Direct, param("citus.cluster_name", "default"))
		store := b.storeOn(on, idempotency.Config{Schema: schema})
		b.store = store
		if _, _, err := b.do(charge(b.key.ID, 1)); err == nil || store.Distributed() {
			t.Errorf("there is no table: %v", err)
		}
		if err := migrations.Up(t.Context(), b.pool, "public"); err != nil {
			t.Fatal(err)
		}
		local := b.storeOn(on, idempotency.Config{Schema: schema})
		b.store = local
		b.executes(1)
		if local.Distributed() != citusTexts {
			t.Error("it takes a local table for a distributed one")
		}
		if !citusTexts {
			b.play("insert into pg_catalog.pg_dist_partition values ('public.idempotency_keys')")
		}
		b.store = store
		b.replays(1)
		b.key.ID = "another one"
		b.executes(2)
		if !store.Distributed() {
			t.Error("it takes a distributed table for a local one")
		}
		b.store = plain
		b.replays(2)
		if plain.Distributed() != citusTexts {
			t.Error("it asks for the catalog of Citus where that is not loaded")
		}
	}
}

// play changes what only PostgreSQL itself, or an extension, may change.
func (b *bundle) play(sql string) {
	b.Helper()
	b.exec("set allow_system_table_mods = on; "+sql+"; set allow_system_table_mods = off", pgx.QueryExecModeSimpleProtocol)
}

// An ERROR of the node before COMMIT leaves nothing; one at COMMIT is in doubt. Both are
// found out, and the function runs again, but only where the table is distributed.
func TestCallIsMadeAgainWhereTheNodeOfTheKeyIsLost(t *testing.T) {
	t.Parallel()
	const lose = "create function lose() returns trigger language plpgsql as $$ begin if nextval('n') = 1 then raise exception 'the node is lost' using errcode = 'XX000'; end if; return new; end $$; create sequence n; "
	for name, c := range map[string]struct {
		trigger string
		doubt   string
	}{
		"by the claim":    {"create trigger lose before insert on idempotency_keys for each row execute function lose()", ""},
		"in the function": {"create trigger lose before insert on charges for each row execute function lose()", ""},
		"by the COMMIT":   {"create constraint trigger lose after insert on charges deferrable initially deferred for each row execute function lose()", "aborted"},
	} {
		for _, distributed := range []bool{true, false} {
			if !distributed && citusTexts {
				continue
			}
			t.Run(fmt.Sprintf("%s, distributed: %v", name, distributed), func(t *testing.T) {
				t.Parallel()
				b := setup(t, idempotency.Config{}, pgtest.Direct)
				if !citusTexts {
					b.play("create table pg_catalog.pg_dist_partition (logicalrelid regclass); insert into pg_catalog.pg_dist_partition values ('public.idempotency_keys')")
				}
				var event idempotency.Event
				pool := b.pool
				if distributed {
					pool = b.anotherPool(pgtest.Direct, param("citus.cluster_name", "default"))
				}
				b.exec(lose+c.trigger, pgx.QueryExecModeSimpleProtocol)
				b.store = b.storeOn(pool, idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) { event = e }})
				_, _, err := b.do(charge(b.key.ID, 1))
				if !distributed {
					if sqlState(err) != "XX000" {
						t.Errorf("on one server: %v", err)
					}
					return
				}
				if err != nil || event.InDoubt != c.doubt {
					t.Errorf("%v, %+v", err, event)
				}
				b.effects(1)
			})
		}
	}
}
