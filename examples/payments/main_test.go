package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// TestMain lets the test binary be the service, or the card provider, for what only a
// process shows.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "serve" || os.Args[1] == "provider") {
		main()
		return
	}
	pgtest.Main(m)
}

// A bundle is the service on a database of its own, in which alice has 100.00
// and bob 10.00.
type bundle struct {
	testing.TB
	pool *pgxpool.Pool // of the test, not of the service
	url  string

	stop  context.CancelFunc
	ended chan struct{}
	err   error           // what serve returned; to be read when ended is closed
	out   strings.Builder // what it printed; the same
}

// setup starts the service in this process, and stops it at the end of the test.
func setup(t testing.TB, edit ...func(*config)) *bundle {
	t.Helper()
	b := &bundle{TB: t, pool: pgtest.Empty(t), ended: make(chan struct{})}
	cfg, err := parseConfig([]string{"-addr", "127.0.0.1:0", "-examples"}, b.getenv, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, edit := range edit {
		edit(&cfg)
	}
	logs, w := io.Pipe()
	ctx, stop := context.WithCancel(context.Background())
	b.stop = stop
	go func() {
		defer close(b.ended)
		b.err = serve(ctx, cfg, &b.out, w)
		w.Close()
	}()
	t.Cleanup(func() { // before the database goes
		stop()
		<-b.ended
	})
	b.url = follow(t, logs)
	return b
}

func (b *bundle) getenv(name string) string {
	return map[string]string{"DATABASE_URL": pgtest.URL(b.pool)}[name]
}

// follow reads the log, and returns the URL that is in it.
func follow(t testing.TB, logs io.Reader) string {
	t.Helper()
	url := make(chan string, 1)
	go func() {
		defer close(url)
		for lines := bufio.NewScanner(logs); lines.Scan(); {
			var entry struct{ Msg, Address string }
			if json.Unmarshal(lines.Bytes(), &entry) == nil && entry.Msg == "listening" {
				url <- "http://" + entry.Address
			}
		}
	}()
	got, ok := <-url
	if !ok {
		t.Fatal("the service has not started")
	}
	return got
}

// spawn starts the service as a process.
func spawn(t testing.TB) (*bundle, *exec.Cmd) {
	t.Helper()
	return spawnOn(t, pgtest.Empty(t), nowhere)
}

func spawnOn(t testing.TB, pool *pgxpool.Pool, provider string, flags ...string) (*bundle, *exec.Cmd) {
	t.Helper()
	b := &bundle{TB: t, pool: pool}
	cmd := exec.Command(os.Args[0], append([]string{"serve", "-examples"}, flags...)...)
	cmd.Env = append(os.Environ(), "ADDR=127.0.0.1:0", "DATABASE_URL="+pgtest.URL(b.pool), "PROVIDER_URL="+provider)
	b.url = startProcess(t, cmd)
	return b, cmd
}

// startProcess returns the process's URL.
func startProcess(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	logs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	return follow(t, logs)
}

// An answer is a response, read whole.
type answer struct {
	*http.Response
	body string
}

// A request, of alice unless it says otherwise.
type request struct {
	method, path, key, body string
	header                  []string // name, value, ...
}

func charge25(key string) request {
	return request{method: "POST", path: "/charges", key: key, body: `{"amount": 2500, "reference": "order-1"}`}
}

func (b *bundle) try(q request) (answer, error) {
	req, err := http.NewRequest(q.method, b.url+q.path, strings.NewReader(q.body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer alice-secret")
	if q.key != "" {
		req.Header.Set("Idempotency-Key", q.key)
	}
	for i := 0; i < len(q.header); i += 2 {
		req.Header.Set(q.header[i], q.header[i+1])
	}
	// A connection each, so that net/http repeats nothing by itself.
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp, string(body)}, err
}

func (b *bundle) do(q request) answer {
	b.Helper()
	a, err := b.try(q)
	if err != nil {
		b.Fatal(err)
	}
	return a
}

// untilServed sends a request again and again for as long as the answer is 503, of this
// kind.
func (b *bundle) untilServed(q request, kind string) (a answer) {
	b.Helper()
	eventually(b, "it is served", func() bool {
		a = b.do(q)
		if a.StatusCode == 503 {
			a.isProblem(b, 503, kind)
		}
		return a.StatusCode != 503
	})
	return a
}

// is checks status, body and whether it is a replay.
func (a answer) is(t testing.TB, status int, body string, replayed bool) {
	t.Helper()
	if a.StatusCode != status || strings.TrimSpace(a.body) != body || (a.Header.Get("Idempotent-Replayed") == "true") != replayed {
		t.Errorf("got %d %s, replayed %q; want %d %s, %v", a.StatusCode, a.body, a.Header.Get("Idempotent-Replayed"), status, body, replayed)
	}
}

// isProblem checks status and type, and that it is what RFC 9457 asks for.
func (a answer) isProblem(t testing.TB, status int, name string) {
	t.Helper()
	var p problem
	if err := json.Unmarshal([]byte(a.body), &p); err != nil {
		t.Errorf("got %d %q: %v", a.StatusCode, a.body, err)
		return
	}
	if a.StatusCode != status || p.Status != status || !strings.HasSuffix(p.Type, "#"+name) || p.Title == "" {
		t.Errorf("got %d %s; want %d %s", a.StatusCode, a.body, status, name)
	}
	if got := a.Header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("a problem of the type %q", got)
	}
	if retry := a.Header.Get("Retry-After") != ""; retry != (status == 503) {
		t.Errorf("%d with Retry-After %q", status, a.Header.Get("Retry-After"))
	}
}

func (b *bundle) exec(sql string, args ...any) {
	b.Helper()
	if _, err := b.pool.Exec(context.Background(), sql, args...); err != nil {
		b.Fatalf("%s: %v", sql, err)
	}
}

// A ledger is what the tables say.
type ledger struct{ Charges, Taken, Left, Declines, Keys int64 }

func (b *bundle) wantLedger(want ledger) {
	b.Helper()
	const sql = `
select (select count(*) from charges), (select coalesce(sum(amount), 0)::bigint from charges),
	(select sum(balance)::bigint from accounts), (select count(*) from declines),
	(select count(*) from idempotency_keys)`
	rows, _ := b.pool.Query(context.Background(), sql)
	got, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[ledger])
	if err != nil {
		b.Fatal(err)
	}
	if got != want {
		b.Errorf("the tables say %+v, want %+v", got, want)
	}
}

// hold makes every charge of alice hang in the middle of its transaction.
func (b *bundle) hold() (release func()) {
	b.Helper()
	tx, err := b.pool.Begin(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	if _, err := tx.Exec(context.Background(), `select from accounts where id = 'alice' for no key update`); err != nil {
		b.Fatal(err)
	}
	release = sync.OnceFunc(func() { tx.Rollback(context.Background()) })
	b.Cleanup(release)
	return release
}

// waitForHanging returns when a charge hangs.
func (b *bundle) waitForHanging() {
	b.Helper()
	eventually(b, "a charge hangs", func() bool {
		var n int
		const sql = `select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`
		if err := b.pool.QueryRow(context.Background(), sql).Scan(&n); err != nil {
			b.Fatal(err)
		}
		return n > 0
	})
}

func TestErrorsSayWhatToDo(t *testing.T) {
	t.Setenv("DATABASE_URL", "")
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"sevre"}, `no command "sevre": there are serve, provider and demo`},
		{[]string{"serve"}, "no database: set DATABASE_URL, or -database"},
		{[]string{"serve", "-database", "postgres://u@:port/"}, "the connection string of the database"},
		{[]string{"serve", "-database", "postgres://u@127.0.0.1:1/none"}, "connect"},
		{[]string{"serve", "-database", "x", "now"}, `serve takes flags only, and not "now"`},
		{[]string{"serve", "-database", "x", "-drain", "0s"}, "-drain is 0s"},
		{[]string{"serve", "-database", "x", "-abandoned", "0s"}, "-abandoned is 0s"},
		{[]string{"provider", "now"}, `provider takes flags only, and not "now"`},
		{[]string{"provider", "-adr", "x"}, "flag provided but not defined: -adr"},
		{[]string{"provider", "-addr", "127.0.0.1:x"}, "listen tcp"},
		{[]string{"demo"}, "run make demo, or set DATABASE_URL"},
		{[]string{"-seed", "1"}, "run make demo, or set DATABASE_URL"},
		{[]string{"demo", "-seed", "1", "twice"}, `the demo takes no "twice"`},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			var out bytes.Buffer
			err := run(t.Context(), tt.args, &out, io.Discard)
			if err == nil || !strings.Contains(err.Error(), tt.want) || out.Len() > 0 {
				t.Errorf("run = %v, printed %q; want an error that says %q", err, out.String(), tt.want)
			}
		})
	}
}

func TestPasswordOfTheDatabaseIsNotInTheHelp(t *testing.T) {
	t.Setenv("DATABASE_URL", "postgres://user:hidden@localhost/db")
	var help bytes.Buffer
	if err := run(t.Context(), []string{"serve", "-h"}, io.Discard, &help); err == nil {
		t.Error("no error")
	}
	if text := help.String(); strings.Contains(text, "hidden") || !strings.Contains(text, "FOR THE DEMO ONLY") {
		t.Error(text)
	}
}

// An error gets into a log, where a password must not be.
func TestSecretInAnOddCommandLineIsNeverPrinted(t *testing.T) {
	t.Setenv("DATABASE_URL", "")
	t.Setenv("PGHOST", "127.0.0.1")
	t.Setenv("PGPORT", "1")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	lines := 0
	for _, password := range []string{"s3cret", "a s3cret", "a s3cret b", "12/s3cret", "s3cret/x", "a@s3cret", "a?s3cret", "a#s3cret", "52341/s3cret?x", "52341/s3cret#x", "a`: s3cret", "'s3cret", "a=s3cret", "%s3cret", "[s3cret"} {
		for _, form := range []string{
			"postgres://u:%s@127.0.0.1:1/d", "postgres://u:%s@127.0.0.1:x/d", "postgres://u:%s@127.0.0.1:1/d?sslmode=y", "postgres://127.0.0.1:1/d?password=%s",
			"host=127.0.0.1 port=1 password=%s dbname=d", "host=127.0.0.1 port=1 password='%s'", "u:%s@127.0.0.1:1/d", "DATABASE_URL=postgres://u:%s@h/d",
		} {
			s := fmt.Sprintf(form, password)
			for _, line := range [][]string{
				{s}, {"serve", s}, {"serve", "-addr", "127.0.0.1:0", s}, {"serve", "-database", s}, {"serve", "-database=" + s}, {"serve", "-databse", s},
				{"serve", "-drain", s}, {"serve", "-migrate=" + s}, {"serve", "-" + s}, {"-" + s}, {"-seed", s}, {"demo", s}, {"demo", "-x=" + s},
				append([]string{"serve", "-database"}, strings.Fields(s)...), {"provider", s}, {"provider", "-" + s},
			} {
				lines++
				var out bytes.Buffer
				err := run(ctx, line, &out, &out)
				if err == nil || strings.Contains(err.Error()+out.String(), "s3cret") {
					t.Errorf("%q: %v\n%s", line, err, out.String())
				}
			}
		}
	}
	t.Log(lines, "command lines")
}

// What pgx makes of the rest of a password after a space.
func TestParameterThatTheServerDoesNotKnowIsNotPrinted(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	err := run(t.Context(), []string{"serve", "-database", os.Getenv("DATABASE_URL") + "&s3cret=x"}, &out, &out)
	if !errors.Is(err, errUnreadable) || strings.Contains(out.String(), "s3cret") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func TestMoneyReadsAsMoney(t *testing.T) {
	t.Parallel()
	if got := fmt.Sprint(Money(12_34), Money(5), Money(-1)); got != "12.34 0.05 -0.01" {
		t.Error(got)
	}
}
