package idempotency_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
)

// noRemedy checks that an error is the server's and gives no advice.
func (b *bundle) noRemedy(what string, err error, code string) {
	b.Helper()
	if sqlState(err) != code {
		b.Errorf("%s: got %v, want SQLSTATE %s", what, err, code)
		return
	}
	for _, advice := range []string{"migrations.Up", "the role needs", "the primary", "policy", "a rule on"} {
		if strings.Contains(err.Error(), advice) {
			b.Errorf("%s: it says %q: %v", what, advice, err)
		}
	}
}

// mistakes are statements of a trigger of somebody else's, by the SQLSTATE that they
// raise.
var mistakes = map[string]string{
	"42703": "new.updated_at = now();",
	"42P01": "perform * from tenants;",
	"3F000": "create table nowhere.idempotency_keys ();",
	"42P10": "insert into tags values ('x') on conflict (name) do nothing;",
	"25006": "raise 'read only' using errcode = '25006';",
	"0A000": "raise 'no such thing as idempotency_keys' using errcode = '0A000';",
	"42501": "raise 'idempotency_keys is forbidden' using errcode = '42501';",
	"22023": "raise 'invalid value for parameter' using errcode = '22023';",
}

// doTxAlone is the error of a DoTx in a transaction that is rolled back.
func (b *bundle) doTxAlone(fn func(context.Context, pgx.Tx) (int, error)) error {
	b.Helper()
	tx := b.begin(pgx.TxOptions{})
	defer tx.Rollback(context.Background())
	return b.doTx(tx, fn).err
}

func (b *bundle) trigger(event, statement string) {
	b.Helper()
	b.exec(`create or replace function somebodys() returns trigger language plpgsql as $$ begin ` + statement + ` return coalesce(new, old); end $$`)
	b.exec(`create trigger somebodys before ` + event + ` on idempotency_keys for each row execute function somebodys()`)
}

func TestNoRemedyForTheMistakeOfATrigger(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("create table tags (name text)")
	for code, statement := range mistakes {
		for _, event := range []string{"insert", "update", "delete"} {
			b.trigger(event, statement)
			runs := 0
			_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
				runs++
				return charge(b.key.ID, 1)(ctx, tx)
			})
			switch {
			case event != "delete":
				b.noRemedy(event+" of Do", err, code)
				b.noRemedy(event+" of DoTx", b.doTxAlone(charge(b.key.ID, 1)), code)
			case err != nil:
				t.Errorf("%s: %v", code, err)
			default:
				b.noRemedy("Delete", b.store.Delete(t.Context(), b.key), code)
				b.exec("update idempotency_keys set expires_at = now(), purge_after = now()")
				_, err := b.store.Purge(t.Context())
				b.noRemedy("Purge", err, code)
			}
			if want := map[string]int{"insert": 0, "update": 1, "delete": 1}[event]; runs != want {
				t.Errorf("%s at %s: %d runs, want %d", code, event, runs, want)
			}
			b.exec("drop trigger somebodys on idempotency_keys; truncate idempotency_keys, charges")
		}
	}
}

func TestNoRemedyForTheMistakeOfAHookOfThePool(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for code, statement := range map[string]string{
		"42P01": "select from tenants",
		"42703": "select tenant from idempotency_keys",
		"25006": "do $$ begin raise 'read only' using errcode = '25006'; end $$",
		"42501": "do $$ begin raise 'idempotency_keys' using errcode = '42501'; end $$",
	} {
		pool := b.anotherPool(func(cfg *pgxpool.Config) {
			cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
				_, err := conn.Exec(ctx, statement)
				return err
			}
		})
		store := b.storeOn(pool, idempotency.Config{})
		_, _, err := idempotency.Do(t.Context(), store, b.key, charge(b.key.ID, 1))
		b.noRemedy("Do", err, code)
		_, err = store.Get(t.Context(), b.key)
		b.noRemedy("Get", err, code)
		_, err = store.Purge(t.Context())
		b.noRemedy("Purge", err, code)
		b.noRemedy("Delete", store.Delete(t.Context(), b.key), code)
	}
	b.effects(0)
}

// The message names the table of the policy, and the server's context is empty.
func TestNoRemedyForWhatAPolicyMayNotRead(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	role := b.plainRole()
	b.exec("grant select, insert, update, delete on idempotency_keys, charges to " + role)
	b.exec("create table tenants (scope text)")
	b.exec("alter table idempotency_keys enable row level security")
	b.exec("create policy tenants on idempotency_keys using (scope in (select scope from tenants))")
	store := b.storeOn(b.anotherPool(param("role", role)), idempotency.Config{})
	_, _, err := idempotency.Do(t.Context(), store, b.key, charge(b.key.ID, 1))
	b.noRemedy("Do", err, "42501")
	_, err = store.Get(t.Context(), b.key)
	b.noRemedy("Get", err, "42501")
}

// The function is not run again to find out which role it has left.
func TestNoRemedyForWhatATriggerMayNotRead(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	role := b.plainRole()
	b.exec("grant select, insert, update, delete on idempotency_keys, charges to " + role)
	b.exec("create table tenants (scope text)")
	b.trigger("update", "perform * from tenants;")
	store, runs := b.storeOn(b.anotherPool(param("role", role)), idempotency.Config{}), 0
	_, _, err := idempotency.Do(t.Context(), store, b.key, func(ctx context.Context, tx pgx.Tx) (int, error) {
		runs++
		return charge(b.key.ID, 1)(ctx, tx)
	})
	b.noRemedy("Do", err, "42501")
	if runs != 1 {
		t.Errorf("%d runs", runs)
	}
}

func TestFunctionThatMakesItsTransactionReadOnlyIsToldSo(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	runs := 0
	readOnly := func(ctx context.Context, tx pgx.Tx) (int, error) {
		runs++
		if _, err := charge(b.key.ID, 1)(ctx, tx); err != nil {
			return 0, err
		}
		_, err := tx.Exec(ctx, "set transaction read only")
		return 1, err
	}
	_, _, err := b.do(readOnly)
	for _, err := range []error{err, b.doTxAlone(readOnly)} {
		if sqlState(err) != "25006" || !strings.Contains(err.Error(), "the function has made its transaction read-only") || strings.Contains(err.Error(), "the primary") {
			t.Errorf("got %v", err)
		}
	}
	if runs != 2 {
		t.Errorf("%d runs", runs)
	}
	b.effects(0)
}

func TestRemedyIsGivenAlsoWhereTheServerShowsParameters(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	role := b.plainRole()
	store := b.storeOn(b.anotherPool(param("role", role), param("log_parameter_max_length_on_error", "-1")), idempotency.Config{})
	_, _, err := idempotency.Do(t.Context(), store, b.key, charge(b.key.ID, 1))
	if err == nil || !strings.Contains(err.Error(), "the role needs") {
		t.Errorf("got %v", err)
	}
}

func TestPurgeEveryOutlivesTheMistakesOfOthers(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var failures atomic.Int64
	store := b.storeOn(b.pool, idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) {
		if e.Err != nil && !errors.Is(e.Err, context.Canceled) {
			failures.Add(1)
		}
	}})
	b.exec("create table tags (name text)")
	for _, code := range []string{"42P01", "3F000", "42703", "42501", "42P10"} {
		b.expiredRows(1)
		b.trigger("delete", mistakes[code])
		failures.Store(0)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- store.PurgeEvery(ctx, time.Millisecond) }()
		b.eventually("the loop goes on after "+code, func() bool {
			select {
			case err := <-ended:
				t.Fatalf("%s ended the loop: %v", code, err)
			default:
			}
			return failures.Load() >= 2
		})
		cancel()
		b.wantErr(<-ended, context.Canceled)
		b.exec("drop trigger somebodys on idempotency_keys; truncate idempotency_keys")
	}
	role := b.plainRole()
	b.exec("grant select, insert on idempotency_keys to " + role)
	store = b.storeOn(b.anotherPool(param("role", role)), idempotency.Config{})
	if err := store.PurgeEvery(t.Context(), time.Hour); err == nil || !strings.Contains(err.Error(), "the role needs") {
		t.Errorf("without the grant: %v", err)
	}
}

// A trigger that raises a code of contention by itself says nothing about the key.
func TestTriggerThatRaisesACodeOfContentionIsNotTakenForAnotherCall(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for _, code := range []string{"40001", "40P01", "55P03"} {
		b.trigger("insert", "raise 'busy' using errcode = '"+code+"';")
		start := time.Now()
		_, _, err := b.do(charge(b.key.ID, 1))
		if sqlState(err) != code || errors.Is(err, idempotency.ErrInProgress) || time.Since(start) > 8*time.Second {
			t.Errorf("%s: %v after %v", code, err, time.Since(start))
		}
		b.exec("drop trigger somebodys on idempotency_keys")
	}
	b.executes(1)
}
