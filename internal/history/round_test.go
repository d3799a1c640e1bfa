package history

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/history/journal"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// A stage is a database on which histories are made.
type stage struct {
	*testing.T
	program string
	pool    *pgxpool.Pool
	proxies []*pgproxy.Proxy // one for each process
	faults  map[fault]int    // of all its histories

	statements int // of a hundred calls, how many are of QueryRow
}

func newStage(t *testing.T, program string) *stage {
	s := &stage{T: t, program: program, pool: pgtest.New(t), faults: make(map[fault]int), statements: statements}
	s.exec(witnessSQL)
	server := s.pool.Config().ConnConfig
	network, address := pgconn.NetworkAddress(server.Host, server.Port)
	for range processes {
		s.proxies = append(s.proxies, pgproxy.New(t, network, address))
	}
	return s
}

// stageBound is how long the driver's own statements may take.
const stageBound = 20 * time.Second

func (s *stage) exec(sql string) {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stageBound)
	defer cancel()
	if _, err := s.pool.Exec(ctx, sql); err != nil {
		s.Fatal(err)
	}
}

// roundBound is when a history ends on a machine that is too slow for it.
const roundBound = 30 * time.Second

// play makes one history of the given number of round trips, on an empty table.
func (s *stage) play(trips int) *History {
	s.Helper()
	s.exec(forgetSQL)
	var clock Clock
	s.readClock(&clock)
	f := newFleet(s.T, s.program, pgtest.URL(s.pool), s.statements, s.proxies)
	(&faults{fleet: f, pool: s.pool, counts: s.faults}).inject(trips, roundBound)
	f.stop()
	witness := s.readWitness()
	s.readClock(&clock)
	return New(f.calls(), witness, clock)
}

func (s *stage) readWitness() Witness {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stageBound)
	defer cancel()
	witness, err := readWitness(ctx, s.pool)
	if err != nil {
		s.Fatal("reading the witness: ", err)
	}
	return witness
}

func (s *stage) readClock(c *Clock) {
	s.Helper()
	if err := c.Read(context.Background(), s.pool); err != nil {
		s.Fatal(err)
	}
}

// A tally counts what histories are made of.
type tally struct {
	calls, pending, inDoubt, generations, purged, deleted int
	outcomes                                              map[journal.Outcome]int
	executions                                            map[journal.Operation]int
}

func (y *tally) add(h *History) {
	if y.outcomes == nil {
		y.outcomes, y.executions = make(map[journal.Outcome]int), make(map[journal.Operation]int)
	}
	y.calls += len(h.Calls)
	for _, c := range h.Calls {
		if c.End == nil {
			y.pending++
			continue
		}
		y.outcomes[c.End.Outcome]++
		if c.End.Outcome == journal.Executed {
			y.executions[c.Operation]++
		}
		if c.End.InDoubt {
			y.inDoubt++
		}
	}
	y.generations += len(h.Witness.Generations)
	for _, r := range h.Witness.Removals {
		if r.Remover == remover {
			y.purged++
		} else {
			y.deleted++
		}
	}
}

func (y *tally) String() string {
	return fmt.Sprintf("%d calls (%v, executed %v, %d pending, %d in doubt), %d generations, %d purged, %d deleted",
		y.calls, y.outcomes, y.executions, y.pending, y.inDoubt, y.generations, y.purged, y.deleted)
}
