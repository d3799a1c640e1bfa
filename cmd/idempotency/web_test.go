package main_test

import (
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/pgidem/idempotency/internal/pgtest"
)

// serves waits until web has printed its URL.
func serves(t *testing.T, stdout *lockedBuffer) (address string) {
	t.Helper()
	eventually(t, "web prints its URL", func() bool { return strings.HasSuffix(stdout.String(), "/\n") })
	return strings.TrimSpace(stdout.String())
}

// page is what a browser gets for the name host.
func page(t *testing.T, method, address, host string, form url.Values) (status int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Host = host
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestWebServesThePageUntilItIsInterrupted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", "recorded")
	key := url.Values{"scope": {"s"}, "id": {"i"}}
	for _, row := range []struct {
		args            string
		signal          os.Signal
		deletes, traces bool
	}{
		{"", os.Interrupt, false, false},
		{"-delete -show-results -trace https://traces.example.com/{origin}", syscall.SIGTERM, true, true},
	} {
		cmd, stdout, stderr := watched(t, on(pool), append([]string{"web", "-listen", "127.0.0.1:0"}, strings.Fields(row.args)...)...)
		address := serves(t, stdout)
		if status, body := page(t, "POST", address+"key", "", key); status != 200 || !strings.Contains(body, "a retry gets its result") || strings.Contains(body, "Delete…") != row.deletes || strings.Contains(body, "Show the result") != row.deletes {
			t.Errorf("%s: %d %s", row.args, status, body)
		}
		if status, body := page(t, "GET", address, "", nil); status != 200 || !strings.Contains(body, "Overview") {
			t.Errorf("%s: %d %s", row.args, status, body)
		}
		ends(t, cmd, row.signal, 0)
		if stderr.String() != "" || strings.Count(stdout.String(), "\n") != 1 {
			t.Errorf("%s: it says %q, %q", row.args, stdout.String(), stderr.String())
		}
	}
}

// A site whose name leads to this machine could read the page with its scripts.
func TestWebOfThisMachineIsForNoOtherName(t *testing.T) {
	t.Parallel()
	cmd, stdout, _ := watched(t, on(pgtest.New(t)), "web", "-listen", "localhost:0")
	address := serves(t, stdout)
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]int{
		u.Host: 200, "localhost:" + u.Port(): 200, "LOCALHOST": 200, "127.0.0.1": 200, "[::1]:" + u.Port(): 200, "[::1]": 200,
		"evil.example.com": 403, "evil.example.com:" + u.Port(): 403, "127.0.0.1.evil.example.com": 403, "localhost.evil.example.com:80": 403,
	} {
		status, body := page(t, "GET", address, host, nil)
		if status != want || status == 403 && strings.Contains(body, "Overview") {
			t.Errorf("%s: %d, want %d", host, status, want)
		}
	}
	ends(t, cmd, os.Interrupt, 0)
}

func TestWebForOtherMachinesWarnsThatThereIsNoLogin(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for args, says := range map[string]string{"": "sees the keys of all scopes\n", "-delete -show-results": "sees the keys of all scopes, and what was recorded, and can delete\n"} {
		cmd, stdout, stderr := watched(t, on(pool), append([]string{"web", "-listen", ":0"}, strings.Fields(args)...)...)
		_, port, err := net.SplitHostPort(strings.TrimSuffix(strings.TrimPrefix(serves(t, stdout), "http://"), "/"))
		if err != nil {
			t.Fatal(err)
		}
		if status, _ := page(t, "GET", "http://127.0.0.1:"+port+"/", "ops.example.com", nil); status != 200 {
			t.Errorf("another name: %d", status)
		}
		ends(t, cmd, os.Interrupt, 0)
		if text := stderr.String(); !strings.HasPrefix(text, "idempotency: warning: ") || !strings.Contains(text, "there is no login") || !strings.HasSuffix(text, says) {
			t.Errorf("%s: it says %q", args, text)
		}
	}
}

func TestWebFailsAtOnceWhereItCannotServe(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	run(t, on(pool), "web", "-listen", taken.Addr().String()).wantLine(t, 1, "-listen: ", "address already in use")
	run(t, on(pool), "web", "-listen", "nonsense").wantLine(t, 1, "-listen: ", "missing port")
	run(t, on(pool), "web", "-trace", "ftp://x/{trace}").wantLine(t, 2, "-trace: ", "has to begin with http:// or https://")
	run(t, on(pool), "web", "more").wantLine(t, 2, "unexpected argument")
	run(t, on(pgtest.Empty(t)), "web", "-listen", "127.0.0.1:0").wantLine(t, 1, "is missing", "migrations.Up")
	run(t, []string{"DATABASE_URL=postgres://u:s3cret@127.0.0.1:1/d"}, "web", "-listen", "127.0.0.1:0").wantLine(t, 1, "cannot connect", "127.0.0.1:1")
}

func TestWebAllowsWhatItsFlagSaysAndNoMore(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", "recorded")
	for flag, allows := range map[string]string{"-delete": "Delete…", "-show-results": "Show the result"} {
		cmd, stdout, _ := watched(t, on(pool), "web", "-listen", "127.0.0.1:0", flag)
		_, body := page(t, "POST", serves(t, stdout)+"key", "", url.Values{"scope": {"s"}, "id": {"i"}})
		for _, button := range []string{"Delete…", "Show the result"} {
			if strings.Contains(body, button) != (button == allows) {
				t.Errorf("%s: button %q: %s", flag, button, body)
			}
		}
		ends(t, cmd, os.Interrupt, 0)
	}
}
