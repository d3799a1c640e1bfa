package idempotency_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

// Two functions lock the same two rows in opposite orders. PostgreSQL ends one
// of them, and that call runs again.
func TestDeadlockOfTwoFunctionsIsRunAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("create table accounts (id int primary key, balance int not null)")
	b.exec("insert into accounts values (1, 0), (2, 0)")
	var locked, calls sync.WaitGroup // each has the first of its rows
	var deadlocks atomic.Int64
	locked.Add(2)
	for i, rows := range [][]int{{1, 2}, {2, 1}} {
		key := idempotency.Key{Scope: "transfer", ID: b.key.ID + string(rune('a'+i))}
		calls.Go(func() {
			runs := 0
			_, replayed, err := idempotency.Do(context.Background(), b.store, key, func(ctx context.Context, tx pgx.Tx) (int, error) {
				runs++
				for n, row := range rows {
					if _, err := tx.Exec(ctx, "update accounts set balance = balance + 1 where id = $1", row); err != nil {
						if sqlState(err) == "40P01" {
							deadlocks.Add(1)
						}
						return 0, err
					}
					if n == 0 && runs == 1 {
						locked.Done()
						locked.Wait()
					}
				}
				return runs, nil
			})
			if replayed || err != nil {
				t.Errorf("%v: replayed %v, %v", rows, replayed, err)
			}
		})
	}
	calls.Wait()
	if deadlocks.Load() == 0 {
		t.Error("there was no deadlock, so this shows nothing")
	}
	if sum := query[int](b, "select sum(balance)::int from accounts"); sum != 4 {
		t.Errorf("the balances add up to %d, want 4", sum)
	}
}
