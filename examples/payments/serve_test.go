package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// eventually is for what another process does in its own time.
func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !so(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: ", what)
		}
	}
}

func (b *bundle) refusesConnections() bool {
	conn, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
	if err == nil {
		conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// inFlight sends a charge that hangs.
func (b *bundle) inFlight() (release func(), result func() (answer, error)) {
	b.Helper()
	release = b.hold()
	var got answer
	var err error
	var wg sync.WaitGroup
	wg.Go(func() { got, err = b.try(charge25("k")) })
	b.waitForHanging()
	return release, func() (answer, error) {
		wg.Wait()
		return got, err
	}
}

func TestProcessThatIsAskedToEndFinishesRequestsInFlight(t *testing.T) {
	t.Parallel()
	for _, sig := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			b, cmd := spawn(t)
			release, result := b.inFlight()
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			eventually(b, "it takes no new connections", b.refusesConnections)
			release()
			a, err := result()
			if err != nil {
				t.Fatal(err)
			}
			a.is(t, 201, receipt25, false)
			if err := cmd.Wait(); err != nil {
				t.Errorf("the process ended with %v", err)
			}
			b.wantLedger(ledger{Charges: 1, Taken: 25_00, Left: 85_00, Keys: 1})
		})
	}
}

func TestServiceWithExampleAccountsPrintsRequestsToTry(t *testing.T) {
	t.Parallel()
	for _, examples := range []bool{true, false} {
		b := setup(t, func(cfg *config) { cfg.Examples = examples })
		b.stop()
		<-b.ended
		request := "curl -i " + strings.TrimPrefix(b.url, "http://") + "/charges -H 'Authorization: Bearer alice-secret'"
		if got := strings.Contains(b.out.String(), request); got != examples {
			t.Errorf("with examples %v it printed %q", examples, b.out.String())
		}
	}
}

// As Ctrl-C does it: all processes of the terminal get the signal.
func TestInterruptedMakeServeEndsWithoutAnError(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("make", "-C", "../..", "--no-print-directory", "serve")
	cmd.Env = append(os.Environ(), "ADDR=127.0.0.1:0", "DATABASE_URL="+pgtest.URL(pgtest.Empty(t)))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out strings.Builder // of both, so that nothing is written at a time
	started := make(chan struct{})
	cmd.Stdout = &listener{out: &out, text: "alice's account", heard: started}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); cmd.Wait() }()
	select {
	case <-started:
	case <-ended:
	}
	syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
	<-ended
	if text := out.String(); strings.Contains(text, "rror") || strings.Contains(text, "***") || !strings.Contains(text, `"shut down"`) {
		t.Errorf("%v:\n%s", cmd.ProcessState, text)
	}
}

// A listener closes heard when the text has been written to it.
type listener struct {
	out   *strings.Builder
	text  string
	heard chan struct{}
}

func (l *listener) Write(text []byte) (int, error) {
	before := strings.Contains(l.out.String(), l.text)
	l.out.Write(text)
	if !before && strings.Contains(l.out.String(), l.text) {
		close(l.heard)
	}
	return len(text), nil
}

func TestRequestThatOutlastsTheDrainLeavesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, func(cfg *config) { cfg.Drain = 10 * time.Millisecond })
	release, result := b.inFlight()
	b.stop()
	if a, err := result(); err == nil {
		t.Errorf("got %d %s", a.StatusCode, a.body)
	}
	<-b.ended
	if b.err == nil || !strings.Contains(b.err.Error(), "requests still ran after 10ms") {
		t.Errorf("serve returned %v", b.err)
	}
	release()
	b.wantLedger(ledger{Left: 110_00})
}

func TestEndedServiceHoldsNoConnection(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.do(charge25("k"))
	b.stop()
	<-b.ended
	if b.err != nil {
		t.Errorf("serve returned %v", b.err)
	}
	// PostgreSQL takes a moment to see that a session has ended.
	eventually(b, "no session is left", func() bool {
		var others int
		const sql = `select count(*) from pg_stat_activity where datname = current_database() and application_name = ''`
		if err := b.pool.QueryRow(t.Context(), sql).Scan(&others); err != nil {
			t.Fatal(err)
		}
		return others == 0
	})
}

func TestHealthIsOfTheProcessAndReadinessOfTheDatabase(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ready := func(status int) {
		t.Helper()
		b.do(request{method: "GET", path: "/healthz"}).is(t, 200, `{"status":"ok"}`, false)
		if a := b.do(request{method: "GET", path: "/readyz"}); status == 200 {
			a.is(t, 200, `{"status":"ready"}`, false)
		} else {
			a.isProblem(t, status, "unavailable")
		}
	}
	ready(200)
	for _, table := range []string{"idempotency_keys", "charges", "rides", "api_keys"} {
		b.exec(`alter table ` + table + ` rename to elsewhere`)
		b.do(request{method: "GET", path: "/readyz"}).isProblem(t, 503, "unavailable")
		b.exec(`alter table elsewhere rename to ` + table)
		ready(200)
	}

	admin, err := pgx.Connect(t.Context(), os.Getenv("DATABASE_URL"))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context())
	database := b.pool.Config().ConnConfig.Database
	allow := func(how string) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), `alter database `+pgx.Identifier{database}.Sanitize()+` with allow_connections `+how); err != nil {
			t.Fatal(err)
		}
	}
	allow("false")
	if _, err := admin.Exec(t.Context(), `select pg_terminate_backend(pid) from pg_stat_activity where datname = $1`, database); err != nil {
		t.Fatal(err)
	}
	ready(503)
	b.do(charge25("k")).isProblem(t, 503, "unavailable")
	allow("true")
	// Each dead connection of the pool can fail one request more.
	eventually(b, "it is ready", func() bool {
		return b.do(request{method: "GET", path: "/readyz"}).StatusCode == 200
	})
	b.untilServed(charge25("k"), "unavailable").is(t, 201, receipt25, false)
}

func TestSeveralProcessesCanStartAtOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			own := pgtest.Pool(t, pool)
			if err := prepare(t.Context(), own, config{Migrate: true, Examples: true}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b := &bundle{TB: t, pool: pool}
	b.wantLedger(ledger{Left: 110_00})
}
