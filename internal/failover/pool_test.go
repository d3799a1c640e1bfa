package failover_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/failover"
)

// All connections of the pool are dead after a failover, and the caller does
// nothing about that.
func TestPoolOfDeadConnectionsServesTheNextCall(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		conns int32
		idle  time.Duration
	}{
		"few, used just now":  {8, 0}, // the pool gives them out as they are
		"many, idle a second": {32, 1100 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := failover.New(t, failover.Options{})
			pool := p.Pool(p.DSN(), c.conns)
			fill(t, pool)
			filled := time.Now()
			p.Kill(p.Primary)
			p.Promote()
			time.Sleep(time.Until(filled.Add(c.idle)))
			if n := pool.Stat().IdleConns(); n != c.conns {
				t.Errorf("%d connections, want %d dead ones", n, c.conns)
			}
			start := time.Now()
			key := idempotency.Key{Scope: "test", ID: "key-1"}
			value, replayed, err := idempotency.Do(t.Context(), idempotency.New(pool), key, execute(key.ID))
			if replayed || err != nil {
				t.Fatalf("got %q, %v, %v", value, replayed, err)
			}
			t.Logf("the call took %v", time.Since(start))
			for _, v := range readLedger(t, pool).violations([]answer{{Key: key.ID, Value: value}}) {
				t.Error(v)
			}
		})
	}
}

// fill opens all connections of a pool, and leaves them idle.
func fill(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	for range pool.Config().MaxConns {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
	}
}
