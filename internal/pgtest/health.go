package pgtest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// settle is how long a connection may take to be released after its test: a
// ROLLBACK may still be under way in the background.
const settle = 5 * time.Second

// checkHealth fails the test when the pool has connections that were not
// released, or its database sessions that are idle in a transaction. It reports
// whether all of the pool's connections were released.
func (s *server) checkHealth(t testing.TB, pool *pgxpool.Pool) (released bool) {
	t.Helper()
	deadline := time.Now().Add(settle)
	for {
		acquired := pool.Stat().AcquiredConns()
		idle, err := s.idleInTransaction(pool.Config().ConnConfig.Database)
		if acquired == 0 && err == nil && len(idle) == 0 {
			return true
		}
		if time.Now().After(deadline) {
			if err != nil {
				t.Error("pgtest: looking for idle transactions: ", err)
			}
			if acquired > 0 {
				t.Errorf("pgtest: %d connections were acquired and not released", acquired)
			}
			for _, session := range idle {
				t.Error("pgtest: session left in a transaction: ", session)
			}
			return acquired == 0
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A session is one that is idle in a transaction.
type session struct {
	PID   uint32
	Name  string // application_name: by default the test's
	Query string // the last one
}

func (s session) String() string {
	return fmt.Sprintf("pid %d of %q, last statement %q", s.PID, s.Name, s.Query)
}

func (s *server) idleInTransaction(database string) ([]session, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	rows, _ := s.admin.Query(ctx, `
		select pid, application_name, query from pg_stat_activity
		where datname = $1 and state like 'idle in transaction%'`, database)
	return pgx.CollectRows(rows, pgx.RowToStructByPos[session])
}
