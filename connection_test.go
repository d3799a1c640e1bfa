package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// opened returns a pool whose n connections are all there, and idle.
func (b *bundle) opened(n int32, opts ...pgtest.Option) *pgxpool.Pool {
	b.Helper()
	pool := b.anotherPool(append(opts, pgtest.MaxConns(n), pgtest.Direct)...)
	var conns []*pgxpool.Conn
	for range n {
		conn, err := pool.Acquire(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		conn.Release()
	}
	return pool
}

// demotable is an option of a pool whose sessions are read-only until it is turned off,
// as those to a primary that has become a standby.
func demotable() (option pgtest.Option, demoted *atomic.Bool) {
	demoted = new(atomic.Bool)
	demoted.Store(true)
	return func(cfg *pgxpool.Config) {
		cfg.BeforeConnect = func(_ context.Context, cc *pgx.ConnConfig) error {
			value := "off"
			if demoted.Load() {
				value = "on"
			}
			cc.RuntimeParams["default_transaction_read_only"] = value
			return nil
		}
	}, demoted
}

// operations are those of a Store on a connection of its own, each on a record.
var operations = map[string]func(context.Context, *bundle) error{
	"Do": func(ctx context.Context, b *bundle) error {
		_, replayed, err := idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 2))
		if err == nil && !replayed {
			err = errors.New("it was executed")
		}
		return err
	},
	"Get": func(ctx context.Context, b *bundle) error { _, err := b.store.Get(ctx, b.key); return err },
	"All": func(ctx context.Context, b *bundle) error {
		for _, err := range b.store.All(ctx, b.key.Scope) {
			return err
		}
		return errors.New("no record")
	},
	"Delete": func(ctx context.Context, b *bundle) error { return b.store.Delete(ctx, b.key) },
	"Purge": func(ctx context.Context, b *bundle) error {
		b.exec("update idempotency_keys set expires_at = now(), purge_after = now()")
		n, err := b.store.Purge(ctx)
		if err == nil && n != 1 {
			err = fmt.Errorf("%d records were purged", n)
		}
		return err
	},
}

func TestConnectionsLeftBehindByAFailoverAreReplaced(t *testing.T) {
	t.Parallel()
	for name, call := range operations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			b.executes(1)
			option, demoted := demotable()
			b.store = b.storeOn(b.opened(12, option), idempotency.Config{})
			demoted.Store(false)
			if err := call(t.Context(), b); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestServerThatStaysReadOnlyIsRefusedAfterOneNewConnection(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"Do", "Delete", "Purge"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			b.executes(1)
			option, _ := demotable()
			pool := b.opened(1, option)
			b.store = b.storeOn(pool, idempotency.Config{})
			err := operations[name](t.Context(), b)
			if sqlState(err) != "25006" || !strings.Contains(err.Error(), "connect to the primary") {
				t.Errorf("got %v", err)
			}
			if n := pool.Stat().NewConnsCount(); n != 2 {
				t.Errorf("%d connections were made, want 2", n)
			}
		})
	}
}

func TestConnectionsThatDiedWhileIdleAreReplacedByEveryOperation(t *testing.T) {
	t.Parallel()
	for name, call := range operations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			b.executes(1)
			b.store = b.storeOn(b.opened(12, named("idle")), idempotency.Config{})
			b.exec("select pg_terminate_backend(pid, 10000) from pg_stat_activity where application_name = 'idle' and datname = current_database()")
			if err := call(t.Context(), b); err != nil {
				t.Error(err)
			}
		})
	}
}

// It can have taken effect: to delete once more could take what a later call has recorded.
func TestDeleteThatLosesTheAnswerToItsCommitIsNotSentAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	store, proxy := b.through(idempotency.Config{})
	var deletes atomic.Int64
	asked, committed := bound("delete from idempotency_keys"), answered("COMMIT", 1)
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if asked(m) {
			deletes.Add(1)
		}
		if committed(m) {
			return pgproxy.Drop
		}
		return pgproxy.Pass
	})
	if err := store.Delete(t.Context(), b.key); err == nil || errors.Is(err, idempotency.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if n := deletes.Load(); n != 1 {
		t.Errorf("%d deletes were sent", n)
	}
}

// A deployment that alters a table while programs run: every connection has the plan of
// before.
func TestFunctionWhoseStatementHasAnOldPlanIsRunAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("create table account (id int)")
	b.store = b.storeOn(b.opened(3), idempotency.Config{})
	read := func(ctx context.Context, tx pgx.Tx) (int, error) {
		rows, _ := tx.Query(ctx, "select * from account")
		list, err := pgx.CollectRows(rows, pgx.RowToMap)
		if err == nil {
			_, err = charge(b.key.ID, 1)(ctx, tx)
		}
		return len(list), err
	}
	for i := range 4 {
		b.key.ID = fmt.Sprint("key-", i)
		if got := <-b.start(t.Context(), b.store, read); got.err != nil || got.replayed {
			t.Errorf("call %d: %+v", i, got)
		}
		b.effects(1)
		b.exec(fmt.Sprintf("alter table account add column c%d int", i))
	}
}
