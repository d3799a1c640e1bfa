// Package failover starts a primary and a standby from PostgreSQL's binaries on
// this machine, for the tests of what becomes of idempotency keys when the
// primary is lost and the standby takes over.
package failover

import (
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A Pair is a primary and its standby.
type Pair struct {
	testing.TB
	Primary, Standby *Server
	Link             *Link // from the primary to the standby

	// password is of the role app. Another pair's server, which may be given the
	// port of a primary that is gone, has another one.
	password string
}

// Options are of both servers. The zero value of each means PostgreSQL's
// default, but that the standby is synchronous.
type Options struct {
	Asynchronous      bool
	SynchronousCommit string // remote_apply: visible on the standby, too
	WALLevel          string
}

func (o Options) settings() (settings []string) {
	if o.SynchronousCommit != "" {
		settings = append(settings, "synchronous_commit="+o.SynchronousCommit)
	}
	if o.WALLevel != "" {
		settings = append(settings, "wal_level="+o.WALLevel)
	}
	return settings
}

// New starts a pair, which is killed at the end of the test.
func New(t testing.TB, opts Options) *Pair {
	t.Helper()
	template, err := here.template()
	if err != nil {
		t.Fatal("failover: ", err)
	}
	p := &Pair{TB: t, password: rand.Text()}
	p.Primary = p.server("primary", template, append(opts.settings(), "wal_keep_size=64MB"))
	if !opts.Asynchronous {
		p.Primary.settings = append(p.Primary.settings, "synchronous_standby_names=standby")
	}
	p.Start(p.Primary)

	p.Link = newLink(t, p.Primary)
	p.Standby = p.server("standby", template, append(opts.settings(), "wal_retrieve_retry_interval=100ms",
		"primary_conninfo=host=127.0.0.1 port="+p.Link.port()+" user=postgres application_name=standby"))
	p.must(here.as.write(filepath.Join(p.Standby.data, "standby.signal"), ""))
	p.Start(p.Standby)
	p.Eventually("the standby is streaming", p.Primary,
		"select exists (select from pg_stat_replication where state = 'streaming' and sync_state = $1)",
		map[bool]string{true: "async", false: "sync"}[opts.Asynchronous])
	p.Exec(p.Primary, "alter role app password '"+p.password+"'")
	return p
}

// server makes a server's data. A copy of a server that was stopped has its
// identity, and so can follow another copy of it.
func (p *Pair) server(role, template string, settings []string) *Server {
	p.Helper()
	s := here.newServer(role, settings...)
	p.must(here.copyData(template, s.data))
	return s
}

func (p *Pair) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal("failover: ", err)
	}
}

// Start starts a server that is not running.
func (p *Pair) Start(s *Server) {
	p.Helper()
	p.must(s.start())
	p.Cleanup(func() { p.must(s.kill()) })
}

// Kill ends a server as a power cut would.
func (p *Pair) Kill(s *Server) {
	p.Helper()
	p.must(s.kill())
}

// Freeze stops a server's processes where they are.
func (p *Pair) Freeze(s *Server) {
	p.Helper()
	_, err := freeze(s.name)
	p.must(err)
}

// Thaw lets a frozen server go on.
func (p *Pair) Thaw(s *Server) {
	p.Helper()
	p.must(thaw(s.name))
}

// Promote makes the standby the primary.
func (p *Pair) Promote() {
	p.Helper()
	p.Exec(p.Standby, "select pg_promote()")
}

// DSN is for clients, of the role app: it finds whichever server is the primary.
func (p *Pair) DSN() string { return p.readWrite(p.Primary.port) }

// DSNThrough is DSN with a proxy in front of the first primary.
func (p *Pair) DSNThrough(port uint16) string { return p.readWrite(strconv.Itoa(int(port))) }

func (p *Pair) readWrite(primary string) string {
	return dsn("app", p.password, primary, p.Standby.port) + " target_session_attrs=read-write"
}

// DSNOf is for clients of one server.
func (p *Pair) DSNOf(s *Server) string { return dsn("app", p.password, s.port) }

// Pool connects to a server or, if dsn names several, to whichever it can.
func (p *Pair) Pool(dsn string, maxConns int32) *pgxpool.Pool {
	p.Helper()
	cfg, err := pgxpool.ParseConfig(dsn)
	p.must(err)
	cfg.MaxConns = maxConns
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	p.must(err)
	p.Cleanup(pool.Close)
	return pool
}

// Exec runs a statement as a superuser, on a connection of its own.
func (p *Pair) Exec(s *Server, sql string, args ...any) {
	p.Helper()
	p.must(s.query(func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql, args...)
		return err
	}))
}

// Bool asks as a superuser, on a connection of its own.
func (p *Pair) Bool(s *Server, sql string, args ...any) (yes bool) {
	p.Helper()
	p.must(s.query(func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, sql, args...).Scan(&yes)
	}))
	return yes
}

// Eventually waits until the server answers true.
func (p *Pair) Eventually(what string, s *Server, sql string, args ...any) {
	p.Helper()
	for end := time.Now().Add(limit); !p.Bool(s, sql, args...); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			p.Fatalf("failover: not after %v: %s\n%s", limit, what, s.log())
		}
	}
}

func (s *Server) query(ask func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.dsn())
	if err != nil {
		return fmt.Errorf("%w\n%s", err, s.log())
	}
	defer conn.Close(ctx)
	return ask(ctx, conn)
}
