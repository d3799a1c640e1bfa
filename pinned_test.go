package idempotency_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// The tests here are about functions and sessions that would take a call away from
// the transaction or the table of its claim.

// A way to run a function under the bundle's key.
type way struct {
	name string
	call func(b *bundle, fn func(context.Context, pgx.Tx) (int, error)) outcome
}

// ways are Do and DoTx, each with a new key and with one whose record has expired.
func ways() []way {
	do := func(b *bundle, fn func(context.Context, pgx.Tx) (int, error)) outcome {
		value, replayed, err := b.do(fn)
		return outcome{value, replayed, err}
	}
	doTx := func(b *bundle, fn func(context.Context, pgx.Tx) (int, error)) (got outcome) {
		tx := b.begin(pgx.TxOptions{})
		defer tx.Rollback(context.Background())
		if got = b.doTx(tx, fn); got.err == nil {
			got.err = tx.Commit(context.Background())
		}
		return got
	}
	expired := func(w way) way {
		return way{w.name + ", expired", func(b *bundle, fn func(context.Context, pgx.Tx) (int, error)) outcome {
			b.exec(`insert into public.idempotency_keys (id, scope, purge_after, result, completed_at, expires_at)
				values ($1, $2, now(), '0', now() - interval '1 hour', now())`, b.key.ID, b.key.Scope)
			return w.call(b, fn)
		}}
	}
	new := []way{{"Do", do}, {"DoTx", doTx}}
	return append(new, expired(new[0]), expired(new[1]))
}

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

// anotherTable makes a schema with a table of its own.
func (b *bundle) anotherTable(schema string) (table string) {
	b.Helper()
	table = pgx.Identifier{schema, "idempotency_keys"}.Sanitize()
	b.exec("create schema " + pgx.Identifier{schema}.Sanitize())
	b.exec("create table " + table + " (like public.idempotency_keys including all)")
	return table
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
				for _, statement := range []string{
					"alter table idempotency_keys rename to former",
					"create table idempotency_keys (like former including all)",
				} {
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

// aRole makes a role that may use the business table alone.
func (b *bundle) aRole() (name string) {
	b.Helper()
	name = "role of " + query[string](b, "select current_database()::text")
	quoted := pgx.Identifier{name}.Sanitize()
	b.exec("create role " + quoted)
	b.exec("grant insert on charges to " + quoted)
	b.Cleanup(func() {
		b.exec("drop owned by " + quoted)
		b.exec("drop role " + quoted)
	})
	return name
}

// asRole is b whose Store and pool act as a role that may use the table, and owns nothing.
func (b *bundle) asRole(cfg idempotency.Config) *bundle {
	b.Helper()
	quoted := pgx.Identifier{b.aRole()}.Sanitize()
	b.exec("grant select, insert, update, delete on idempotency_keys to " + quoted)
	b.exec("grant usage on schema public to " + quoted)
	as := *b
	as.pool = b.anotherPool(pgtest.Direct, func(cfg *pgxpool.Config) {
		cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "set role "+quoted)
			return err
		}
	})
	as.store = as.storeOn(as.pool, cfg)
	return &as
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
