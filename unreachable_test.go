package idempotency_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

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
