package failover_test

import (
	"testing"
	"time"

	"github.com/pgidem/idempotency/internal/failover"
)

// What a call in doubt relies on: this statement, alone in its transaction and
// sent by an ordinary role, waits for the standby, though it writes to no table.
// One that does not belong to the transaction does not.
func TestTransactionalMessageWaitsForTheStandby(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"replica", "logical"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			p := failover.New(t, failover.Options{WALLevel: level})
			if p.Bool(p.Primary, "select rolsuper or rolreplication from pg_roles where rolname = 'app'") {
				t.Error("app is no ordinary role")
			}
			pool := p.Pool(p.DSNOf(p.Primary), 2)
			p.Link.Hold()
			if _, err := pool.Exec(t.Context(), "select pg_logical_emit_message(false, 'idempotency', '')"); err != nil {
				t.Error(err)
			}
			done := make(chan error)
			go func() {
				_, err := pool.Exec(t.Context(), "select pg_logical_emit_message(true, 'idempotency', '')")
				done <- err
			}()
			p.Eventually("the message waits for the standby", p.Primary, `
				select exists (select from pg_stat_activity
				where wait_event = 'SyncRep' and query like '%pg_logical_emit_message(true%')`)
			select {
			case <-done:
				t.Error("it did not wait any longer")
			case <-time.After(500 * time.Millisecond):
			}
			p.Link.Release()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
