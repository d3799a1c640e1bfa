package link_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/bench/link"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == link.ProcessArg {
		if err := link.Main(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	pgtest.Main(m)
}

// echo is a server that sends back what it gets.
func echo(t *testing.T) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
	return listener.Addr().String()
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestLinkDelaysAndDoesNotSerialise(t *testing.T) {
	const delay, messages = 200 * time.Millisecond, 50
	p, err := link.Listen("tcp", echo(t), delay)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	conn := dial(t, p.Address())
	start := time.Now()
	go func() {
		for range messages {
			conn.Write([]byte("x"))
			time.Sleep(time.Millisecond)
		}
	}()
	if _, err := io.ReadFull(conn, make([]byte, messages)); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	if took < 2*delay {
		t.Errorf("the answer came after %v, before twice the delay", took)
	}
	// One after another they would take 20 s.
	if took > messages*2*delay/2 {
		t.Errorf("%d messages took %v: they have waited for each other", messages, took)
	}
	t.Logf("%d messages, %v each way: %v", messages, delay, took)
}

func TestLinkPassesEveryByte(t *testing.T) {
	p, err := link.Listen("tcp", echo(t), time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	conn := dial(t, p.Address())
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	go func() {
		conn.Write(sent)
		conn.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes came back, %v", len(got), len(sent), err)
	}
}

func TestLinkIsAProcessOfItsOwn(t *testing.T) {
	p, err := link.Start("tcp", echo(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, p.Address)
	conn.Write([]byte("hello"))
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
	p.Close()
	if n, err := conn.Read(got); err == nil {
		t.Errorf("after Close it still passes %q", got[:n])
	}
}

// The link knows no protocol: what it counts is what pgproxy counts, which reads
// PostgreSQL's messages.
func TestLinkCountsTheRoundTripsOfPostgreSQL(t *testing.T) {
	pool := pgtest.Empty(t)
	at := pool.Config().ConnConfig
	network, address := "tcp", fmt.Sprintf("%s:%d", at.Host, at.Port)
	if strings.HasPrefix(at.Host, "/") {
		network, address = "unix", fmt.Sprintf("%s/.s.PGSQL.%d", at.Host, at.Port)
	}
	reference := pgproxy.New(t, network, address)
	counted, err := link.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", reference.Port()), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(counted.Close)
	through := at.Copy()
	host, port, _ := strings.Cut(counted.Address(), ":")
	through.Host, through.Fallbacks = host, nil
	if _, err := fmt.Sscan(port, &through.Port); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.ConnectConfig(t.Context(), through)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(t.Context()) })
	work := func() {
		err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
			var batch pgx.Batch
			for i := range 10 {
				batch.Queue("select $1::int, repeat('x', 10000)", i)
			}
			if err := tx.SendBatch(t.Context(), &batch).Close(); err != nil {
				return err
			}
			_, err := tx.Exec(t.Context(), "select $1::text", strings.Repeat("y", 100_000))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	work() // prepares the statements
	want, got := -reference.RoundTrips(), -counted.Trips()
	work()
	want, got = want+reference.RoundTrips(), got+counted.Trips()
	if got != want || got != 4 {
		t.Errorf("the link has counted %d round trips, pgproxy %d, want 4", got, want)
	}
}
