package pgproxy_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// A session is one of pgx on PostgreSQL, through the proxy.
type session struct {
	testing.TB
	*pgproxy.Proxy
	direct *pgxpool.Pool
	conn   *pgx.Conn
}

func newSession(t testing.TB) *session {
	t.Helper()
	s := &session{TB: t, direct: pgtest.Empty(t, pgtest.Direct)}
	s.exec(s.direct, "create table effects (n int)")
	cfg := s.direct.Config().ConnConfig
	network, address := pgconn.NetworkAddress(cfg.Host, cfg.Port)
	s.Proxy = listen(t, network, address)
	cfg.Host, cfg.Port, cfg.TLSConfig, cfg.Fallbacks = "127.0.0.1", s.Port(), nil, nil
	cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.conn = conn
	t.Cleanup(func() { conn.Close(context.Background()) })
	return s
}

func (s *session) exec(on interface {
	Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
}, sql string, args ...any) {
	s.Helper()
	if _, err := on.Exec(s.Context(), sql, args...); err != nil {
		s.Fatalf("%s: %v", sql, err)
	}
}

// effects waits until there are so many: a server whose client was cut is not heard of.
func (s *session) effects(want int) {
	s.Helper()
	n := -1
	for begun := time.Now(); n != want && time.Since(begun) < patience; {
		if err := s.direct.QueryRow(s.Context(), "select count(*) from effects").Scan(&n); err != nil {
			s.Fatal(err)
		}
	}
	if n != want {
		s.Errorf("%d effects, want %d", n, want)
	}
}

func TestPgxCostsTheRoundTripsThatItSays(t *testing.T) {
	t.Parallel()
	s := newSession(t)
	for _, row := range []struct {
		do   func()
		want int64
	}{
		{func() { s.exec(s.conn, "select 1") }, 1},                                 // a simple query
		{func() { s.exec(s.conn, "insert into effects values ($1)", 1) }, 2},       // prepares, and executes
		{func() { s.exec(s.conn, "insert into effects values ($1)", 2) }, 1},       // is prepared
		{func() { s.exec(s.conn, "select $1::int", pgx.QueryExecModeExec, 1) }, 1}, // the unnamed statement
		{func() { s.exec(s.conn, "begin; select 1; commit") }, 1},                  // three statements in one message
		{func() { s.conn.Ping(t.Context()) }, 1},
	} {
		before := s.RoundTrips()
		row.do()
		if got := s.RoundTrips() - before; got != row.want {
			t.Errorf("%d round trips, want %d", got, row.want)
		}
	}
	s.effects(2)
}

func TestRuleSeesThePreparedStatementsOfPgxByTheirText(t *testing.T) {
	t.Parallel()
	s := newSession(t)
	const sql = "insert into effects values ($1)"
	s.exec(s.conn, sql, 1)
	bound, tags := 0, 0
	s.SetRule(func(m pgproxy.Message) pgproxy.Verdict { // of one connection and in turn
		if m.Type == 'B' && m.SQL == sql {
			bound++
		}
		if m.Tag == "INSERT 0 1" {
			tags++
		}
		return pgproxy.Pass
	})
	s.exec(s.conn, sql, 2)
	s.SetRule(nil)
	if bound != 1 || tags != 1 {
		t.Errorf("bound %d times, answered %d times", bound, tags)
	}
}

// uncancelled is rule, and loses what pgx asks for when it gives a connection up: that the
// server cancels the statement.
func uncancelled(rule pgproxy.Rule) pgproxy.Rule {
	return func(m pgproxy.Message) pgproxy.Verdict {
		if m.Type == pgproxy.CancelRequest {
			return pgproxy.Drop
		}
		return rule(m)
	}
}

func TestCommitIsLostOrDoneByTheVerdict(t *testing.T) {
	t.Parallel()
	commit := func(m pgproxy.Message) bool { return m.SQL == "commit" }
	answer := func(m pgproxy.Message) bool { return m.Tag == "COMMIT" }
	for _, row := range []struct {
		name    string
		at      func(pgproxy.Message) bool
		verdict pgproxy.Verdict
		effects int
	}{
		{"dropped on its way", commit, pgproxy.Drop, 0},
		{"answer dropped", answer, pgproxy.Drop, 1},
		{"answer arrives", answer, pgproxy.PassAndCut, 1},
		{"client cut on its way", commit, pgproxy.CutClient, 1},
		{"client cut at the answer", answer, pgproxy.CutClient, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := newSession(t)
			s.exec(s.conn, "begin")
			s.exec(s.conn, "insert into effects values (1)")
			s.SetRule(uncancelled(func(m pgproxy.Message) pgproxy.Verdict {
				if row.at(m) {
					return row.verdict
				}
				return pgproxy.Pass
			}))
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if _, err := s.conn.Exec(ctx, "commit"); err == nil || ctx.Err() != nil {
				t.Errorf("the client is not cut: %v", err)
			}
			s.effects(row.effects)
			s.CutAll() // the server, whose client alone was cut
		})
	}
}

// The statement ends although nobody waits for it any more.
func TestStatementOfAClientThatIsCutIsExecutedToItsEnd(t *testing.T) {
	t.Parallel()
	s := newSession(t)
	lock, err := s.direct.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback(context.Background())
	s.exec(lock, "lock table effects")
	s.SetRule(uncancelled(on(false, 'Q', pgproxy.CutClient)))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := s.conn.Exec(ctx, "insert into effects values (1); select 1"); err == nil || ctx.Err() != nil {
		t.Errorf("the client is not cut: %v", err)
	}
	if err := lock.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.effects(1)
}
