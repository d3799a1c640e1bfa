package pgtest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// Whoever may create in a schema of the search_path could otherwise run code with the
// rights of every role that calls. The test stands here, and not with the package,
// because it takes some seconds to plant, and needs to run once.
func TestNoStatementOfACallRunsWhatSomebodyHasPlanted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	pgtest.Plant(t, pool, "../../postgres.go", "../../table.go", "../../query.go", "../../journal.go", "../../complete.go")
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec} {
		each := pgtest.Pool(t, pool, pgtest.Direct, func(cfg *pgxpool.Config) { cfg.ConnConfig.DefaultQueryExecMode = mode })
		if _, err := each.Exec(t.Context(), "select 1::int2 * interval '1 second'"); err == nil || !strings.Contains(err.Error(), "planted") {
			t.Fatalf("what is planted does not run, so this shows nothing: %v", err)
		}
		store := idempotency.New(each)
		for i, operation := range operations(store, each) {
			if err := operation(t.Context()); err != nil {
				t.Errorf("%v: operation %d: %v", mode, i, err)
			}
		}
	}
}

// operations send every statement of the package, in this order.
func operations(store *idempotency.Store, pool *pgxpool.Pool) (all []func(context.Context) error) {
	fn := func(context.Context, pgx.Tx) (int, error) { return 1, nil }
	for i := range 2 {
		key := idempotency.Key{Scope: "s", ID: fmt.Sprint(i)}
		do := func(ctx context.Context) error { _, _, err := idempotency.Do(ctx, store, key, fn); return err }
		doTx := func(ctx context.Context) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				_, _, err := idempotency.DoTx(ctx, store, tx, key, fn)
				return err
			})
		}
		expire := func(ctx context.Context) error {
			_, err := pool.Exec(ctx, "update public.idempotency_keys set expires_at = now(), purge_after = now()")
			return err
		}
		first := []func(context.Context) error{do, doTx}[i]
		type row struct {
			List  []string `json:"list"`
			Bytes []byte   `json:"bytes"`
		}
		statement := func(n int, config idempotency.Config) func(ctx context.Context) error {
			return func(ctx context.Context) error {
				runs := 0 // a statement in which something planted has run is made again, in another way
				config.Observe = func(_ context.Context, e idempotency.Event) { runs += e.Runs }
				store, err := idempotency.NewWithConfig(pool, config)
				if err != nil {
					return err
				}
				for range 2 { // with memory of the key, and without it
					_, _, err = idempotency.QueryRow[row](ctx, store, idempotency.Key{Scope: "s", ID: fmt.Sprint("row ", i, n)}, "select array['a'] as list, 'YQ=='::text as bytes")
					if err != nil {
						return err
					}
					_, _, err = idempotency.Query[row](ctx, store, idempotency.Key{Scope: "s", ID: fmt.Sprint("rows ", i, n)}, "select array['a'] as list, 'YQ=='::text as bytes")
					if err != nil {
						return err
					}
					if store, err = idempotency.NewWithConfig(pool, config); err != nil {
						return err
					}
				}
				if runs != 2 {
					return fmt.Errorf("two operations ran %d times", runs)
				}
				return nil
			}
		}
		all = append(all, procedure(store, idempotency.Key{Scope: "s", ID: fmt.Sprint("procedure ", i)}))
		all = append(all, first, do, doTx, expire, do, expire, doTx,
			statement(0, idempotency.Config{}), statement(1, idempotency.Config{TxOptions: pgx.TxOptions{IsoLevel: pgx.Serializable}}),
			func(ctx context.Context) error { _, err := store.Get(ctx, key); return err },
			func(ctx context.Context) error {
				for _, err := range store.All(ctx, key.Scope) {
					return err
				}
				return nil
			},
			func(ctx context.Context) error { return store.Delete(ctx, key) },
			do, expire,
			func(ctx context.Context) error { // all that is expired is locked
				tx, err := pool.Begin(ctx)
				if err != nil {
					return err
				}
				defer tx.Rollback(ctx)
				if _, err := tx.Exec(ctx, "select from public.idempotency_keys for update"); err != nil {
					return err
				}
				_, err = store.Purge(ctx)
				return err
			},
			func(ctx context.Context) error { _, err := store.Purge(ctx); return err },
			func(ctx context.Context) error {
				ctx, cancel := context.WithCancel(ctx)
				purged, err := idempotency.NewWithConfig(pool, idempotency.Config{Observe: func(context.Context, idempotency.Event) { cancel() }})
				if err != nil {
					return err
				}
				if err := purged.PurgeEvery(ctx, 1); err != context.Canceled {
					return err
				}
				return nil
			})
	}
	return all
}

// procedure sends every statement of an operation of several steps.
func procedure(store *idempotency.Store, key idempotency.Key) func(context.Context) error {
	attempt := 0
	p := idempotency.Procedure[int, int]{Name: "p", Run: func(ctx context.Context, op *idempotency.Op, in int) (int, error) {
		step := func(context.Context, pgx.Tx) (int, error) { return 1, nil }
		call := func(context.Context, string) (int, error) {
			if attempt++; attempt < 4 {
				return 0, errFails
			}
			return 1, nil
		}
		if _, err := idempotency.Step(ctx, op, "a", step); err != nil {
			return 0, err
		}
		if _, err := idempotency.Call(ctx, op, "b", call); err != nil {
			return 0, err
		}
		return idempotency.Step(ctx, op, "c", step)
	}}
	return func(ctx context.Context) error {
		for range 2 { // the second one goes on
			if _, _, err := p.Do(ctx, store, key, 1); !errors.Is(err, errFails) {
				return err
			}
		}
		if err := store.Delete(ctx, key); !errors.Is(err, idempotency.ErrUnfinished) {
			return err
		}
		if _, err := store.Get(ctx, key); !errors.Is(err, idempotency.ErrUnfinished) {
			return err
		}
		for _, err := range store.Pending(ctx, 0) {
			if err != nil {
				return err
			}
		}
		if _, err := store.Complete(ctx, 0, p); !errors.Is(err, errFails) {
			return err
		}
		if err := store.Settle(ctx, key, "b", 1); err != nil {
			return err
		}
		if _, err := store.Complete(ctx, 0, p); err != nil {
			return err
		}
		if _, replayed, err := p.Do(ctx, store, key, 1); err != nil || !replayed {
			return fmt.Errorf("replayed %v: %w", replayed, err)
		}
		key.ID += " to be discarded"
		attempt = 0
		if _, _, err := p.Do(ctx, store, key, 1); !errors.Is(err, errFails) {
			return err
		}
		if err := store.Discard(ctx, key); err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(ctx)
		time.AfterFunc(50*time.Millisecond, cancel)
		if err := store.CompleteEvery(ctx, time.Hour, 0, p); !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	}
}

var errFails = errors.New("no answer")
