package idempotency_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// A storm of duplicates waits in the process, without connections, while other
// keys go on. Its times are logged and not judged: see the ratio beside them.
func TestStormOnOneKeyExecutesOnceAndHoldsNoConnections(t *testing.T) {
	for _, fn := range []time.Duration{0, 200 * time.Millisecond} {
		t.Run(fmt.Sprint("function of ", fn), func(t *testing.T) {
			b := setup(t, idempotency.Config{})
			pool := b.anotherPool(pgtest.MaxConns(16))
			b.store = b.storeOn(pool, idempotency.Config{Wait: time.Minute})
			callers := long(2000, 10000)

			distinct := b.distinctKeys(func() { time.Sleep(500 * time.Millisecond) })
			goroutines := runtime.NumGoroutine()
			var most atomic.Int32
			during := b.distinctKeys(func() {
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						got, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
							most.Store(max(most.Load(), pool.Stat().AcquiredConns()))
							time.Sleep(fn)
							most.Store(max(most.Load(), pool.Stat().AcquiredConns()))
							return charge(b.key.ID, 1)(ctx, tx)
						})
						if got != 1 || err != nil {
							t.Errorf("Do = %v, %v", got, err)
						}
					})
				}
				wg.Wait()
			})
			b.effects(1)
			t.Logf("%d duplicates; distinct keys: p99 %v without the storm, %v beside it (%.1f times)",
				callers, distinct, during, float64(during)/float64(distinct))
			// The leader's, and one for each of the eight distinct callers.
			if most.Load() > 9 {
				t.Errorf("%d connections were in use while the duplicates waited, want 9 at most", most.Load())
			}
			b.eventually("the goroutines are gone", func() bool { return runtime.NumGoroutine() <= goroutines+5 })
		})
	}
}

// distinctKeys calls Do for distinct keys on 8 goroutines while work runs, and
// returns the 99th percentile of their latencies.
func (b *bundle) distinctKeys(work func()) time.Duration {
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var latencies []time.Duration
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				key := idempotency.Key{Scope: "distinct", ID: fmt.Sprint(distinctID.Add(1))}
				start := time.Now()
				if _, _, err := idempotency.Do(context.Background(), b.store, key, charge(key.ID, 2)); err != nil {
					b.Error(err)
				}
				mu.Lock()
				latencies = append(latencies, time.Since(start))
				mu.Unlock()
			}
		})
	}
	work()
	cancel()
	wg.Wait()
	slices.Sort(latencies)
	return latencies[len(latencies)*99/100]
}

var distinctID atomic.Int64

func TestManyHotKeysFromManyProcessesEachExecuteOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	keys := long(10, 50)
	var processes []*process
	for range 4 {
		processes = append(processes, b.spawn(job{Amount: 1, Callers: 3, Keys: keys, Hang: "briefly"}))
	}
	executed := 0
	for _, p := range processes {
		for range 3 * keys {
			r := p.report()
			if r.Err != "" || r.Value != 1 {
				t.Errorf("got %+v", r)
			}
			if !r.Replayed {
				executed++
			}
		}
	}
	if executed != keys {
		t.Errorf("%d executions of %d keys", executed, keys)
	}
	if n := query[int](b, "select count(*) from charges"); n != keys {
		t.Errorf("%d charges of %d keys", n, keys)
	}
}

// Under SERIALIZABLE, calls for distinct keys conflict no more than their
// business writes do by themselves.
func TestDistinctKeysDoNotConflictUnderSerializable(t *testing.T) {
	onOneServer(t, "Citus has no SERIALIZABLE")
	t.Parallel()
	serializable := pgx.TxOptions{IsoLevel: pgx.Serializable}
	b := setup(t, idempotency.Config{})
	var runs, calls, bareFailed atomic.Int64
	store := b.storeOn(b.pool, idempotency.Config{TxOptions: serializable, Observe: func(_ context.Context, e idempotency.Event) {
		runs.Add(int64(e.Runs))
		calls.Add(1)
	}})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range long(100, 300) {
				key := idempotency.Key{Scope: "s", ID: fmt.Sprintf("%d-%d", w, i)}
				if _, _, err := idempotency.Do(t.Context(), store, key, charge(key.ID, 1)); err != nil {
					t.Error(err)
				}
				err := pgx.BeginTxFunc(t.Context(), b.pool, serializable, func(tx pgx.Tx) error {
					_, err := charge(key.ID, 1)(t.Context(), tx)
					return err
				})
				if err != nil {
					bareFailed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	again := runs.Load() - calls.Load()
	t.Logf("%d calls: %d functions run again; %d of as many bare transactions failed", calls.Load(), again, bareFailed.Load())
	if again > bareFailed.Load() {
		t.Errorf("%d false conflicts", again)
	}
}

// Conflicts of the business writes themselves are retried, to the end.
func TestSerializationFailuresOfTheFunctionAreRunAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{TxOptions: pgx.TxOptions{IsoLevel: pgx.Serializable}})
	b.exec("create table counter (n int)")
	b.exec("insert into counter values (0)")
	var wg sync.WaitGroup
	var done atomic.Int64
	for w := range 4 {
		wg.Go(func() {
			for i := range 10 {
				key := idempotency.Key{Scope: "s", ID: fmt.Sprintf("%d-%d", w, i)}
				_, _, err := idempotency.Do(t.Context(), b.store, key, func(ctx context.Context, tx pgx.Tx) (int, error) {
					var n int
					if err := tx.QueryRow(ctx, "select n from counter").Scan(&n); err != nil {
						return 0, err
					}
					_, err := tx.Exec(ctx, "update counter set n = $1", n+1)
					return n + 1, err
				})
				switch {
				case err == nil:
					done.Add(1)
				case sqlState(err) != "40001":
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := query[int64](b, "select n from counter"); n != done.Load() {
		t.Errorf("counted %d of %d successful calls", n, done.Load())
	}
	t.Logf("%d of 40 calls on one hot row succeeded", done.Load())
}

func TestConflictThatNeverEndsIsGivenUpWithItsErrorAndNothingHeld(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	runs := 0
	_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		runs++
		_, err := tx.Exec(ctx, "do $$ begin raise 'conflict' using errcode = '40001'; end $$")
		return 0, err
	})
	if sqlState(err) != "40001" || runs != 10 {
		t.Errorf("%d runs, %v", runs, err)
	}
	b.effects(0)
	b.executes(1)
}
