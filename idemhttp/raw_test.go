package idemhttp_test

import (
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// raw sends bytes to a server, and no more, and returns all that comes back.
func raw(t testing.TB, server *httptest.Server, request string) string {
	t.Helper()
	conn := dial(t, server, request)
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(got)
}

// dial connects to a server and sends bytes.
func dial(t testing.TB, server *httptest.Server, request string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	return conn
}

func listen() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }

// proxy stands in front of the test's PostgreSQL.
func (b *bundle) proxy() *pgproxy.Proxy {
	b.Helper()
	server := b.pool.Config().ConnConfig
	network, at := "tcp", fmt.Sprintf("%s:%d", server.Host, server.Port)
	if strings.HasPrefix(server.Host, "/") {
		network, at = "unix", fmt.Sprintf("%s/.s.PGSQL.%d", server.Host, server.Port)
	}
	return pgproxy.New(b, network, at)
}

// poolThrough is a pool whose connections pass a proxy.
func (b *bundle) poolThrough(proxy *pgproxy.Proxy) *pgxpool.Pool {
	b.Helper()
	return pgtest.Pool(b, b.pool, func(cfg *pgxpool.Config) {
		cfg.ConnConfig.Host, cfg.ConnConfig.Port = "127.0.0.1", proxy.Port()
		cfg.ConnConfig.TLSConfig, cfg.ConnConfig.Fallbacks = nil, nil
	})
}

// through is what DATABASE_URL must be for a process to pass a proxy.
func through(pool *pgxpool.Pool, proxy *pgproxy.Proxy) string {
	cfg := pool.Config().ConnConfig
	return fmt.Sprintf("host=127.0.0.1 port=%d user='%s' password='%s' dbname='%s' sslmode=disable",
		proxy.Port(), cfg.User, cfg.Password, cfg.Database)
}
