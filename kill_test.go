package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// Backends are killed at random moments, most of them near a COMMIT, since a
// call is little else. Each call ends with a result or a proven error, and the
// tables agree with what it said.
func TestTerminatedBackendsLeaveOneEffectPerAnswer(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var inDoubt, committed, again atomic.Int64
	store := b.storeOn(b.anotherPool(param("application_name", "victim")), idempotency.Config{
		Observe: func(_ context.Context, e idempotency.Event) {
			if e.InDoubt != "" {
				inDoubt.Add(1)
			}
			if e.InDoubt == "committed" {
				committed.Add(1)
			}
			if e.Runs > 1 {
				again.Add(1)
			}
		},
	})

	look := b.anotherPool(pgtest.Direct) // not over a pooler's connections, which are killed
	ctx, cancel := context.WithCancel(t.Context())
	var killer, callers sync.WaitGroup
	var kills, answers atomic.Int64
	killer.Go(func() {
		for ctx.Err() == nil {
			time.Sleep(rand.N(4 * time.Millisecond))
			if kills.Load() > 3*answers.Load()+10 {
				continue // on a slow machine, calls must still get through
			}
			var n int64
			err := look.QueryRow(ctx, `
				select count(pg_terminate_backend(pid)) from (
					select pid from pg_stat_activity
					where application_name = 'victim' and datname = current_database() and (state <> 'idle' or random() < 0.1)
					order by random() limit 1) victim`).Scan(&n)
			if err == nil {
				kills.Add(n)
			}
		}
	})
	const workers = 4
	var failed atomic.Int64
	calls := long(50, 400)
	for w := range workers {
		callers.Go(func() {
			for i := range calls {
				key := idempotency.Key{Scope: "customer-1", ID: fmt.Sprintf("%d-%d", w, i)}
				for {
					got, _, err := idempotency.Do(t.Context(), store, key, func(ctx context.Context, tx pgx.Tx) (int64, error) {
						var id int64
						err := tx.QueryRow(ctx, "insert into charges (key, amount) values ($1, 1) returning id", key.ID).Scan(&id)
						return id, err
					})
					if errors.Is(err, idempotency.ErrOutcomeUnknown) {
						t.Errorf("%s: %v", key.ID, err)
					}
					if err != nil {
						failed.Add(1)
						continue
					}
					var id int64
					if err := look.QueryRow(t.Context(), "select id from charges where key = $1", key.ID).Scan(&id); err != nil || id != got {
						t.Errorf("%s: answered %d, the table has %d, %v", key.ID, got, id, err)
					}
					answers.Add(1)
					break
				}
			}
		})
	}
	callers.Wait()
	cancel()
	killer.Wait()
	t.Logf("%d calls, %d backends killed, %d commits in doubt of which %d had taken effect, %d functions run again, %d calls failed",
		workers*calls, kills.Load(), inDoubt.Load(), committed.Load(), again.Load(), failed.Load())
	if kills.Load() == 0 {
		t.Error("nothing was killed")
	}
	if n := query[int](b, "select count(*) from charges"); n != workers*calls {
		t.Errorf("%d charges of %d keys", n, workers*calls)
	}
	if n := query[int](b, `
		select count(*) from idempotency_keys k full join charges c on c.key = k.id
		where k.result is distinct from convert_to(c.id::text, 'UTF8')`); n != 0 {
		t.Errorf("%d keys disagree with their charge", n)
	}
}
