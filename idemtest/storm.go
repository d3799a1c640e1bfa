package idemtest

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
)

// A Program is what [Storm] tests. Start and Effects are required.
type Program struct {
	// Start makes the program, once for each Storm. All of its statements have to
	// go through pool: it leads to the test database through a proxy that cuts
	// connections, and is guarded (see Guard). Store is on pool, in a schema of its
	// own; a Store that the program makes itself on pool, without a Config.Schema,
	// is in the same.
	Start func(pool *pgxpool.Pool, store *idempotency.Store) Call

	// Effects counts the effects that the calls with id have had, for example the
	// rows that they have written. It is asked before the calls and after them.
	Effects func(ctx context.Context, pool *pgxpool.Pool, id string) (int, error)

	// Prepare makes what the calls with id need, for example a customer to charge. It
	// is called once for each round, before Effects is asked and the calls are made. An
	// error fails the test. Default: nothing is prepared.
	Prepare func(ctx context.Context, pool *pgxpool.Pool, id string) error

	// Config of store; its Schema must be empty. Default: as idempotency.New.
	Config idempotency.Config

	// Unmarked: the answers do not say which of them are replays, and that is not
	// checked. Default: exactly one must not be a replay.
	Unmarked bool

	// Timeout ends the context of the calls of one round. Default: 1 minute.
	Timeout time.Duration
}

// A Call sends one request with the idempotency key id, as a client would. It is
// called by many goroutines at once. Answer is what the client gets, compared
// with [reflect.DeepEqual]; replayed and err are as those of idempotency.Do.
type Call func(ctx context.Context, id string) (answer any, replayed bool, err error)

// Storm sends duplicates through the program, in rounds, each with an id of its
// own:
//   - one call, and the same again;
//   - n parallel duplicates, 3 times;
//   - the same with the connection cut before the first COMMIT arrives, and with
//     it cut before its answer does; and so on for each COMMIT of one call, up to
//     the third. A call that fails is made again, as a client would, 3 times at most.
//
// Each round has to leave exactly one effect and the keys of one call (one, unless the
// first call of all has left more), with equal answers of which exactly one is no replay (none, where the answer to a COMMIT was lost and
// the call found out by itself), no connection that was not released and no open
// transaction. Storm fails the test with a report on the first round that does
// not, and ends there.
//
// Pool leads to the test database. Storm opens a pool of the same configuration,
// without TLS, since it reads what passes. The effects stay in your tables; the
// keys are removed when the test ends.
func Storm(t testing.TB, pool *pgxpool.Pool, n int, p Program) {
	t.Helper()
	s := newStorm(t, pool, n, p)
	alone := s.round(plan{name: "one call, and the same again", alone: true})
	if !play(t, alone.name, alone) {
		return
	}
	s.keysOfOne = alone.keysOfFirst
	for _, r := range s.storms(int(alone.commits.Load())) {
		if !play(t, r.name, r) {
			return
		}
	}
}

// plainStorms is how often the duplicates are sent without a fault. The first
// time, the pool has still to connect, which puts them one behind the other.
const plainStorms = 3

// maxCuts is how many COMMITs of a call have their own rounds.
const maxCuts = 3

// A storm is one use of Storm.
type storm struct {
	Program
	n      int
	schema *schema
	proxy  *pgproxy.Proxy
	pool   *pgxpool.Pool // through the proxy
	other  *pgxpool.Pool // as pool, for what stands for a second process; may be nil
	app    string        // application_name of the pool
	call   Call

	keysOfOne int // that one call leaves, once it is known
}

func newStorm(t testing.TB, pool *pgxpool.Pool, n int, p Program) *storm {
	t.Helper()
	switch {
	case pool == nil:
		t.Fatal("idemtest: pool is nil: give the pool of your test database")
	case n < 2:
		t.Fatalf("idemtest: n is %d: a duplicate needs 2 or more", n)
	case p.Start == nil:
		t.Fatal("idemtest: Program.Start is nil: it makes the program under test")
	case p.Effects == nil:
		t.Fatal("idemtest: Program.Effects is nil: it counts what the calls have done")
	case p.Config.Schema != "":
		t.Fatalf("idemtest: Program.Config.Schema is %q: leave it empty, the schema is made for this test", p.Config.Schema)
	}
	p.Timeout = cmp.Or(p.Timeout, time.Minute)
	s := &storm{Program: p, n: n, schema: newSchema(t, pool)}
	s.app = s.schema.name
	s.open(t, pool)
	p.Config.Schema = s.schema.name
	store, err := idempotency.NewWithConfig(s.pool, p.Config)
	if err != nil {
		t.Fatal("idemtest: Program.", err)
	}
	if s.call = p.Start(s.pool, store); s.call == nil {
		t.Fatal("idemtest: Program.Start returned no Call")
	}
	return s
}

// open makes the proxy, and the pool that leads through it.
func (s *storm) open(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	server := s.schema.conn.PgConn().Conn().RemoteAddr() // of several hosts, the one that fits
	s.proxy = pgproxy.New(t, server.Network(), server.String())
	s.pool = s.openPool(t, pool)
}

func (s *storm) openPool(t testing.TB, pool *pgxpool.Pool) *pgxpool.Pool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	path, err := s.schema.searchPath(ctx)
	if err != nil {
		t.Fatal("idemtest: reading the search_path: ", err)
	}
	cfg := pool.Config()
	to := cfg.ConnConfig
	to.Host, to.Port = "127.0.0.1", s.proxy.Port()
	to.TLSConfig, to.Fallbacks = nil, nil // the proxy has to read what passes
	to.RuntimeParams["search_path"] = path
	to.RuntimeParams["application_name"] = s.app
	Guard(t, cfg)
	proxied, err := pgxpool.NewWithConfig(ctx, cfg)
	if err == nil {
		t.Cleanup(func() { closePool(proxied) })
		err = proxied.Ping(ctx)
	}
	if err != nil {
		t.Fatal("idemtest: the test database cannot be reached without TLS and through a proxy on 127.0.0.1, which Storm needs to cut connections: ", err)
	}
	return proxied
}

// acquiredNow counts the connections that the program holds.
func (s *storm) acquiredNow() int {
	n := s.pool.Stat().AcquiredConns()
	if s.other != nil {
		n += s.other.Stat().AcquiredConns()
	}
	return int(n)
}

func closePool(pool *pgxpool.Pool) {
	if pool.Stat().AcquiredConns() > 0 {
		go pool.Close() // would wait for a leaked connection
		return
	}
	pool.Close()
}

// A plan is how a round goes.
type plan struct {
	name  string
	alone bool   // one call and then the same again, not n at once
	cut   string // "", "before" or "after" the COMMIT number commit
	at    int64

	tries int           // how often a call is made that fails; 0 is maxCalls
	pause time.Duration // before the second; it doubles
}

// storms are the rounds after the first, in which a call had so many COMMITs.
func (s *storm) storms(commits int) []*round {
	storm := plural(s.n, "parallel duplicate")
	var rounds []*round
	for range plainStorms {
		rounds = append(rounds, s.round(plan{name: storm}))
	}
	for at := range min(max(commits, 1), maxCuts) {
		which := ""
		if commits > 1 {
			which = fmt.Sprintf(" %d of %d", at+1, commits)
		}
		rounds = append(rounds,
			s.round(plan{name: storm + ", the connection cut before COMMIT" + which + " arrives", cut: "before", at: int64(at + 1)}),
			s.round(plan{name: storm + ", the connection cut before the answer to COMMIT" + which + " arrives", cut: "after", at: int64(at + 1)}))
	}
	return rounds
}

func (s *storm) round(p plan) *round {
	return &round{storm: s, plan: p, id: fmt.Sprintf("%s-%08x", s.app, rand.Uint32())}
}

// play runs a round, and fails the test with what is wrong.
func play(t testing.TB, name string, r interface {
	run() error
	problems() []problem
}) (right bool) {
	t.Helper()
	if err := r.run(); err != nil {
		t.Errorf("idemtest: Storm, %s: %v", name, err)
		return false
	}
	problems := r.problems()
	if len(problems) > 0 {
		t.Error(report(name, problems))
	}
	return len(problems) == 0
}
