package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/idemhttp"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// program is the real one: the demo starts it as its service.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "payments")
	if err == nil {
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "payments")
		err = build(program)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "building the service:", err)
		os.RemoveAll(dir)
		os.Exit(1)
	}
	pgtest.Main(m)
}

func build(program string, flags ...string) error {
	args := append([]string{"build", "-o", program}, flags...)
	out, err := exec.Command("go", append(args, "..")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// databaseURL is of a server on which the demo makes its database.
func databaseURL(t *testing.T) string {
	t.Helper()
	return pgtest.URL(pgtest.Empty(t))
}

// play runs the demo, and checks that nothing is left of it.
func play(t *testing.T, edit func(*demo)) (out string, err error) {
	t.Helper()
	var text bytes.Buffer
	d := newDemo(io.MultiWriter(&text, t.Output()), program, 1)
	edit(d)
	url := databaseURL(t)
	err = d.run(t.Context(), url)
	wantNothingLeft(t, url, text.String())
	return text.String(), err
}

var (
	databaseName = regexp.MustCompile(`payments_demo_\w+`)
	processIDs   = regexp.MustCompile(`two processes, (\d+) and (\d+)|a process, too, (\d+)|start(?:s|ed) again as (\d+)`)
)

// wantNothingLeft looks for the database and the processes that the demo has
// named.
func wantNothingLeft(t *testing.T, url, out string) {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	name, left := databaseName.FindString(out), 0
	if err := conn.QueryRow(context.Background(), `select count(*) from pg_database where datname = $1`, name).Scan(&left); err != nil {
		t.Fatal(err)
	}
	if name == "" || left != 0 {
		t.Errorf("%d databases named %q are left", left, name)
	}
	pids := pidsIn(out)
	if len(pids) < 3 {
		t.Errorf("the demo names %d processes", len(pids))
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d is left (%v)", pid, err)
		}
	}
}

func pidsIn(out string) (pids []int) {
	for _, m := range processIDs.FindAllStringSubmatch(out, -1) {
		for _, digits := range m[1:] {
			if pid, err := strconv.Atoi(digits); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func wantError(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("the demo noticed nothing")
	}
	for _, text := range want {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("the demo's error does not say %q:\n%v", text, err)
		}
	}
}

func TestDemoShowsNoDoubleChargeWithTheMiddlewareAndSomeWithout(t *testing.T) {
	out, err := play(t, func(*demo) {})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		` 50 requests, 50 of them get the same 201; 1 executed\n`,
		`ride-1 +20.00 from alice  → 201 {"id":1,"account":"alice","amount":2000,"state":"paid","charge":"ch_1"}\n +the retry, at \d+: it goes on behind the first step, and has the first charge\n`,
		`ride-2 +30.00 from bob    → 502, and the client never comes back\n.*step create is done, call charge has begun\n +Store.Complete has finished it`,
		`has printed:\n +ch_1: charged 20.00 on the card visa\n +ch_2: charged 30.00 on the card visa\n +ch_1: the same key again, the same answer\n +ch_2: the same key again, the same answer\n +tables: \+2 rides, 50.00 paid by card, \+2 keys\n`,
		`kill -9 \d+: it has written a charge and its record, not yet its COMMIT`,
		`✓ is as expected: one charge for each order with the middleware, double charges without it`,
		`✓ charges +100 +[12]\d\d\n`,
		`✓ orders charged exactly once +100 +\d\d\n`,
		`✓ orders charged twice or more +0 +\d\d\n`,
		`✓ money taken too much +0\.00 +\d{3,}\.\d\d\n`,
		`✓ keys recorded +100 +0\n`,
		`With the middleware every order was charged once. Without it \d+ customers paid \d{3,}\.\d\d too much\.`,
		`curl -i localhost:8080/charges`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("the demo has not printed %s", want)
		}
	}
	if lines := strings.Count(out, "\n"); lines > 80 {
		t.Errorf("%d lines are more than two screens", lines)
	}
}

func TestDemoFindsAServiceThatChargesTwice(t *testing.T) {
	_, err := play(t, func(d *demo) { d.protected = d.unprotected })
	wantError(t, err,
		"order-1, replayed: expected true, found false",
		"duplicates that executed: expected 1, found 50",
		"scene 1, change of the tables: expected +1 charge, 25.00 taken, +1 key, found +2 charges, 50.00 taken",
		`ride-1, body: expected {"id":1,"account":"alice","amount":2000,"state":"paid","charge":"ch_1"}, found {"id":3,"account":"alice","amount":2000,"state":"paid","charge":"ch_3"}`,
		"charges at the card provider: expected 2, found 4",
		"scene 5, change of the tables: expected +2 rides, 50.00 paid by card, +2 keys, found +4 rides, 90.00 paid by card, +4 keys",
		"orders charged twice or more: ",
		"keys recorded: 0 with the middleware",
	)
}

// Most libraries do so: the handler commits, and then its response is stored.
func TestDemoFindsAServiceThatRecordsInAnotherTransaction(t *testing.T) {
	dir := t.TempDir()
	source, err := os.ReadFile("../api.go")
	if err != nil {
		t.Fatal(err)
	}
	broken := strings.Replace(string(source), "once := idem.Atomic", `
	own, err := pgxpool.NewWithConfig(context.Background(), pool.Config())
	if err != nil {
		return nil, err
	}
	once := recordedAfterwards(idem, own)`, 1)
	if broken == string(source) {
		t.Fatal("api.go has another place for the Middleware")
	}
	const afterwards = `package main

import (
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/idemhttp"
)

func recordedAfterwards(idem *idemhttp.Middleware, pool *pgxpool.Pool) func(func(http.ResponseWriter, *http.Request, pgx.Tx)) http.Handler {
	return func(handle func(http.ResponseWriter, *http.Request, pgx.Tx)) http.Handler {
		return idem.Handler(unprotected(pool)(handle))
	}
}
`
	replaced := make(map[string]string)
	for name, text := range map[string]string{"api.go": broken, "afterwards.go": afterwards} {
		original, err := filepath.Abs("../" + name)
		if err != nil {
			t.Fatal(err)
		}
		replaced[original] = filepath.Join(dir, name)
		if err := os.WriteFile(replaced[original], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replaced})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	brokenProgram := filepath.Join(dir, "payments")
	if err := build(brokenProgram, "-overlay", filepath.Join(dir, "overlay")); err != nil {
		t.Fatal(err)
	}
	_, err = play(t, func(d *demo) { d.program = brokenProgram })
	wantError(t, err, "orders charged twice or more: ")
}

func TestDemoFindsAClientThatChangesItsKey(t *testing.T) {
	_, err := play(t, func(d *demo) {
		d.keyOf = func(o order, n int) string {
			if n == 1 {
				return o.Key
			}
			return idemhttp.NewID()
		}
	})
	wantError(t, err, "orders charged twice or more: ")
}

func TestDemoFindsANetworkThatLosesNothing(t *testing.T) {
	_, err := play(t, func(d *demo) { d.losses = func(*rand.Rand) int { return 0 } })
	wantError(t, err,
		"answers lost after the service had executed: 0 with the middleware, 0 without",
		"orders charged twice or more: 0 with the middleware, 0 without",
	)
}

// A stopper is a reader of the demo's output who has seen enough.
type stopper struct {
	text bytes.Buffer
	at   string
	stop func()
}

func (s *stopper) String() string { return s.text.String() }

func (s *stopper) Write(p []byte) (int, error) {
	n, err := s.text.Write(p)
	if bytes.Contains(p, []byte(s.at)) {
		s.stop()
	}
	return n, err
}

func TestStoppedDemoLeavesNothing(t *testing.T) {
	for name, at := range map[string]string{
		"inside the call":        "kill -9",
		"before the first scene": "The service runs",
		"in the rush":            "6. A hundred customers",
		"after the kill":         "starts again as",
		"in the second run":      "7. The same customers",
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			enough := errors.New("enough")
			out := &stopper{at: at, stop: func() { cancel(enough) }}
			url := databaseURL(t)
			if err := newDemo(out, program, 1).run(ctx, url); !errors.Is(err, enough) {
				t.Errorf("the demo returned %v, want %v", err, enough)
			}
			wantNothingLeft(t, url, out.String())
		})
	}
}

// start runs the demo as a process until it has printed some text.
func start(t *testing.T, url, at string) (cmd *exec.Cmd, out *stopper) {
	t.Helper()
	reached := make(chan struct{})
	out = &stopper{at: at, stop: func() { close(reached) }}
	cmd = exec.Command(program, "demo", "-seed", "1")
	cmd.Env = append(os.Environ(), "DATABASE_URL="+url)
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	select {
	case <-reached:
	case <-time.After(timeLimit):
		t.Fatalf("the demo has never said %q", at)
	}
	return cmd, out
}

func TestInterruptedProgramLeavesNothingAndFails(t *testing.T) {
	url := databaseURL(t)
	cmd, out := start(t, url, "kill -9")
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	exit, ok := errors.AsType[*exec.ExitError](cmd.Wait())
	if !ok || exit.ExitCode() != 1 {
		t.Errorf("the program ended with %v", cmd.ProcessState)
	}
	wantNothingLeft(t, url, out.String())
}

func TestServiceDoesNotOutliveADemoThatIsKilled(t *testing.T) {
	url := databaseURL(t)
	cmd, out := start(t, url, "The card provider is")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	for _, pid := range pidsIn(out.String()) {
		err := until(t.Context(), "the service has ended", func() (bool, error) {
			return hasEnded(pid), nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	s, err := parseServer(url) // nobody is left who could drop the database
	if err != nil {
		t.Fatal(err)
	}
	if err := s.drop(databaseName.FindString(out.String())); err != nil {
		t.Error(err)
	}
}

// hasEnded takes a zombie for ended: whether an orphan is ever waited for is up
// to the machine's init.
func hasEnded(pid int) bool {
	stat, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
	return err != nil || strings.HasPrefix(string(stat), "Z")
}

func TestCurlCommandsDoWhatTheyArePrintedFor(t *testing.T) {
	for name, send := range senders() {
		t.Run(name, func(t *testing.T) {
			d := newDemo(io.Discard, program, 1)
			var err error
			if d.server, err = parseServer(databaseURL(t)); err != nil {
				t.Fatal(err)
			}
			d.database = d.server.config.ConnConfig.Database
			p, err := d.startProcess(t.Context(), "curl", nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range examples {
				head := send(t, e.command(p.address))
				status := fmt.Sprintf("HTTP/1.1 %d ", e.status)
				if !strings.HasPrefix(head, status) || strings.Contains(head, "Idempotent-Replayed: true") != e.replay {
					t.Errorf("%s\ngot %s\nwant %s, replayed %v", e.why, head, status, e.replay)
				}
			}
			if err := p.stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// senders are two ways to send what a curl command says: as it is printed, by a
// shell, where there is a curl that knows --json; and by net/http, everywhere.
func senders() map[string]func(*testing.T, string) string {
	list := map[string]func(*testing.T, string) string{"net/http": sendCommand}
	help, _ := exec.Command("curl", "--help", "all").Output()
	if bytes.Contains(help, []byte("--json")) {
		list["curl"] = runCommand
	}
	return list
}

func runCommand(t *testing.T, command string) string {
	out, err := exec.Command("sh", "-c", command+" --silent --show-error").CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
	return string(out)
}

// words are those of a shell, with single quotes.
var words = regexp.MustCompile(`'[^']*'|\S+`)

func sendCommand(t *testing.T, command string) string {
	t.Helper()
	header := make(http.Header)
	method, url, body := "GET", "", ""
	args := words.FindAllString(command, -1)
	for i := 1; i < len(args); i++ {
		switch args[i] {
		case "-i":
		case "-H":
			i++
			name, value, _ := strings.Cut(strings.Trim(args[i], "'"), ": ")
			header.Set(name, value)
		case "--json":
			i++
			method, body = "POST", strings.Trim(args[i], "'")
			header.Set("Content-Type", "application/json")
		default:
			url = "http://" + args[i]
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var text bytes.Buffer
	if err := resp.Write(&text); err != nil {
		t.Fatal(err)
	}
	return text.String()
}
