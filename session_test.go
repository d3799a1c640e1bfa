package idempotency_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// The tests here are about the settings of a session: those that somebody has made,
// and those that calls make for themselves.

func execMode(mode pgx.QueryExecMode) pgtest.Option {
	return func(cfg *pgxpool.Config) { cfg.ConnConfig.DefaultQueryExecMode = mode }
}

var execModes = map[string]pgx.QueryExecMode{
	"cache_statement": pgx.QueryExecModeCacheStatement,
	"cache_describe":  pgx.QueryExecModeCacheDescribe,
	"describe_exec":   pgx.QueryExecModeDescribeExec,
	"exec":            pgx.QueryExecModeExec,
	"simple_protocol": pgx.QueryExecModeSimpleProtocol,
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
				want := query[string](b, plannerSettings)
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
