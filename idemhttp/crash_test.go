package idemhttp_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemhttp"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// serverEnv makes the test binary a process that serves charges; its value is
// the DATABASE_URL.
const serverEnv = "IDEMHTTP_TEST_SERVER"

func serveAsProcess() int {
	pool, err := pgxpool.New(context.Background(), os.Getenv(serverEnv))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	idem, err := idemhttp.New(idempotency.New(pool), idemhttp.Config{Scope: account})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	server := &http.Server{Handler: idem.Atomic(func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
		if _, err := tx.Exec(r.Context(), `insert into charges values ($1, 10)`, r.Header.Get("Account")); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		created(w, r)
		if r.Header.Get("Hang") != "" {
			fmt.Println("hanging")
			select {}
		}
	})}
	listener, err := listen()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("http://" + listener.Addr().String())
	fmt.Fprintln(os.Stderr, server.Serve(listener))
	return 1
}

// A process is a server of its own.
type process struct {
	cmd *exec.Cmd
	out *bufio.Scanner
	url string
}

func (b *bundle) spawn(databaseURL string) *process {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serverEnv+"="+databaseURL)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	p := &process{cmd: cmd, out: bufio.NewScanner(out)}
	p.url = p.line(b)
	return p
}

func (p *process) line(t testing.TB) string {
	t.Helper()
	if !p.out.Scan() {
		t.Fatal("the process has ended")
	}
	return p.out.Text()
}

// send posts a charge to the process and returns the status, or 0.
func (p *process) send(hang string) int {
	req, _ := http.NewRequest("POST", p.url+"/charges", strings.NewReader(`{"amount": 10}`))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Account", "account-1")
	req.Header.Set("Idempotency-Key", "k")
	req.Header.Set("Hang", hang)
	resp, err := (&http.Client{Transport: &http.Transport{}}).Do(req)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

func TestProcessKilledBetweenTheWriteAndTheCommitLeavesOneEffect(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.spawn(pgtest.URL(b.pool))
	status := make(chan int)
	go func() { status <- p.send("yes") }()
	if p.line(t) != "hanging" {
		t.Fatal("the handler does not hang")
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if got := <-status; got != 0 {
		t.Errorf("the killed process has answered %d", got)
	}
	server := b.protected(idemhttp.Config{}, created)
	b.post(server, "k").is(t, 201, `{"id": 1}`, false)
	b.post(server, "k").is(t, 201, `{"id": 1}`, true)
	b.effects(1)
}

// The steps are those of the wire between the process and PostgreSQL.
func TestProcessKilledAtTheCommitLeavesOneEffect(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		at       func(pgproxy.Message) bool
		replayed bool
	}{
		{"COMMIT never sent", func(m pgproxy.Message) bool { return m.Type == 'B' && m.SQL == "commit" }, false},
		{"COMMIT done, response never sent", func(m pgproxy.Message) bool { return m.FromServer && m.Tag == "COMMIT" }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			proxy := b.proxy()
			var p atomic.Pointer[process]
			proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
				if !test.at(m) {
					return pgproxy.Pass
				}
				p.Load().cmd.Process.Kill()
				return pgproxy.Drop
			})
			p.Store(b.spawn(through(b.pool, proxy)))
			if got := p.Load().send(""); got != 0 {
				t.Errorf("the killed process has answered %d", got)
			}
			server := b.protected(idemhttp.Config{}, created)
			b.post(server, "k").is(t, 201, `{"id": 1}`, test.replayed)
			b.effects(1)
		})
	}
}

func TestNothingIsSentBeforeTheCommitIsAcknowledged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.proxy()
	committed, release := make(chan bool), make(chan bool)
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if m.FromServer && m.Tag == "COMMIT" {
			close(committed)
			<-release
		}
		return pgproxy.Pass
	})
	b.store = b.storeOn(b.poolThrough(proxy), idempotency.Config{})
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		created(w, r)
		w.(http.Flusher).Flush()
	})
	conn := dial(t, server, "POST /charges HTTP/1.1\r\nHost: x\r\nAccount: a\r\nIdempotency-Key: k\r\nContent-Length: 2\r\n\r\n{}")
	<-committed
	conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if n, err := conn.Read(make([]byte, 1)); n > 0 || !os.IsTimeout(err) {
		t.Errorf("the client got %d bytes, %v, before COMMIT was answered", n, err)
	}
	close(release)
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != 201 {
		t.Errorf("got %v, %v", resp, err)
	}
}

func TestLostCommitAnswerIsFoundOutBeforeTheResponseIsSent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.proxy()
	var once atomic.Bool
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if m.FromServer && m.Tag == "COMMIT" && once.CompareAndSwap(false, true) {
			return pgproxy.Drop
		}
		return pgproxy.Pass
	})
	b.store = b.storeOn(b.poolThrough(proxy), idempotency.Config{})
	server := b.protected(idemhttp.Config{}, created)
	b.post(server, "k").is(t, 201, `{"id": 1}`, true)
	b.ran(1)
	b.effects(1)
}
