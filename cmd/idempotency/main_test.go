package main_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgtest"
	"github.com/pgidem/idempotency/migrations"
)

// binary is the command, built once.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "idempotency")
	if err == nil {
		binary = filepath.Join(dir, "idempotency")
		if runtime.GOOS == "windows" {
			binary += ".exe"
		}
		var out []byte
		if out, err = exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "building the command:", err)
		os.Exit(1)
	}
	defer os.RemoveAll(dir)
	pgtest.Main(m)
}

// A result is how a run of the command ended.
type result struct {
	stdout, stderr string
	exit           int
}

// command prepares a run. Its environment is empty but for env, so that no
// database is reached by accident.
func command(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Env = append([]string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH"), "SystemRoot=" + os.Getenv("SystemRoot")}, env...)
	return cmd
}

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	return start(t, cmd)()
}

func start(t *testing.T, cmd *exec.Cmd) (wait func() result) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() result {
		_ = cmd.Wait() // the result has the exit code
		return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	}
}

func run(t *testing.T, env []string, args ...string) result {
	t.Helper()
	return finish(t, command(t, env, args...))
}

// on is the environment in which the command works on pool's database.
func on(pool *pgxpool.Pool) []string { return []string{"DATABASE_URL=" + pgtest.URL(pool)} }

func (r result) want(t *testing.T, exit int, stdout, stderr string) {
	t.Helper()
	if r.exit != exit || r.stdout != stdout || r.stderr != stderr {
		t.Errorf("exit %d, stdout %q, stderr %q\nwant %d, %q, %q", r.exit, r.stdout, r.stderr, exit, stdout, stderr)
	}
}

// wantLine checks that the command failed with one line that says each of the
// words.
func (r result) wantLine(t *testing.T, exit int, words ...string) {
	t.Helper()
	if r.exit != exit || r.stdout != "" {
		t.Errorf("exit %d, stdout %q; want exit %d and nothing", r.exit, r.stdout, exit)
	}
	if strings.Count(r.stderr, "\n") != 1 || !strings.HasPrefix(r.stderr, "idempotency: ") {
		t.Errorf("stderr %q is not one line of this command", r.stderr)
	}
	for _, word := range words {
		if !strings.Contains(r.stderr, word) {
			t.Errorf("stderr %q does not say %q", r.stderr, word)
		}
	}
}

func TestHelpAtEachLevelGoesToStdout(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ args, says string }{
		{"-h", "migrate "},
		{"--help", "migrate "},
		{"help", "migrate "},
		{"migrate -h", "version "},
		{"migrate help", "version "},
		{"migrate up -h", "-schema NAME"},
		{"migrate down -h", "-yes"},
		{"migrate version -h", "-database URL"},
		{"migrate sql -h", "-schema NAME"},
		{"get -h", "SCOPE KEY"},
		{"list -h", "-after CURSOR"},
		{"list -h", "-prefix TEXT"},
		{"find -h", "idempotency find [FLAGS] KEY"},
		{"delete -h", "SCOPE KEY"},
		{"settle -h", "SCOPE KEY CALL OUTCOME"},
		{"purge -h", "-every"},
		{"stats -h", "-exact"},
		{"doctor -h", "-strict"},
	} {
		// A password in the environment must not become a flag's default.
		r := run(t, []string{"DATABASE_URL=postgres://u:s3cret@h/d"}, strings.Fields(row.args)...)
		if r.exit != 0 || r.stderr != "" || !strings.Contains(r.stdout, row.says) || !strings.Contains(r.stdout, "Usage: idempotency") {
			t.Errorf("%s: %+v", row.args, r)
		}
		if strings.Contains(r.stdout, "s3cret") {
			t.Errorf("%s prints the password", row.args)
		}
	}
}

func TestHelpOnACommandIsThatOfTheCommand(t *testing.T) {
	t.Parallel()
	for _, words := range []string{"get", "find", "list", "delete", "settle", "stats", "purge", "doctor", "migrate", "migrate up", "migrate sql"} {
		want := run(t, nil, append(strings.Fields(words), "-h")...)
		if !strings.Contains(want.stdout, "Usage: idempotency "+words) {
			t.Errorf("%+v", want)
		}
		run(t, nil, append([]string{"help"}, strings.Fields(words)...)...).want(t, 0, want.stdout, "")
		run(t, nil, append([]string{"help"}, append(strings.Fields(words), "-h")...)...).want(t, 0, want.stdout, "")
	}
	all := run(t, nil, "-h").stdout
	for _, args := range []string{"help", "help help", "help -h"} {
		run(t, nil, strings.Fields(args)...).want(t, 0, all, "")
	}
	run(t, nil, "migrate", "help", "up").want(t, 0, run(t, nil, "migrate", "up", "-h").stdout, "")
}

func TestUsageErrorsExitWith2(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ args, says string }{
		{"", "a command is missing: see 'idempotency -h'"},
		{"nonsense", `unknown command "nonsense": see 'idempotency -h'`},
		{"-x", "-x: see 'idempotency -h'"},
		{"migrate", "a command is missing: see 'idempotency migrate -h'"},
		{"migrate nonsense", `unknown command "nonsense": see 'idempotency migrate -h'`},
		{"migrate up extra", `unexpected argument "extra": see 'idempotency migrate up -h'`},
		{"migrate up -x", "see 'idempotency migrate up -h'"},
		{"migrate up -timeout soon", "see 'idempotency migrate up -h'"},
		{"migrate sql -database x", "see 'idempotency migrate sql -h'"},
		{"get", "SCOPE is missing: see 'idempotency get -h'"},
		{"get scope", "KEY is missing: see 'idempotency get -h'"},
		{"get scope key extra", `unexpected argument "extra"`},
		{"help nonsense", `unknown command "nonsense": see 'idempotency -h'`},
		{"help get extra", `unexpected argument "extra": see 'idempotency get -h'`},
		{"help migrate nonsense", `unknown command "nonsense": see 'idempotency migrate -h'`},
		{"find", "KEY is missing: see 'idempotency find -h'"},
		{"find key extra", `unexpected argument "extra"`},
		{"list -id a -prefix b", "give -id or -prefix, not both: see 'idempotency list -h'"},
		{"list -id=", "it is empty: see 'idempotency list -h'"},
		{"list -prefix=", "it is empty: see 'idempotency list -h'"},
		{"stats -every 0s", "want a time such as 90s, 15m, 24h or 7d: see 'idempotency stats -h'"},
		{"stats -every -2s", "want a time"},
		{"stats -every soon", "want a time"},
		{"delete scope -yes", "KEY is missing: see 'idempotency delete -h'"},
		{"settle s k call", "OUTCOME is missing: see 'idempotency settle -h'"},
		{"settle -yes s k call ch_1", "OUTCOME is not JSON: a text needs quotes"},
		{"list -state lost", "-state lost: it has to be done, expired, unfinished or abandoned: see 'idempotency list -h'"},
		{"list -newer soon", "want a time such as 90s, 15m, 24h or 7d: see 'idempotency list -h'"},
		{"list -newer 0d", "want a time"},
		{"list -older -1d", "want a time"},
		{"list -newer 1h -older 2h", "nothing can be both"},
		{"list -limit -1", "-limit -1"},
		{"list -state abandoned -newer 1h", "an abandoned record does not have"},
		{"list -state unfinished -older 1h", "an unfinished record does not have"},
		{"list -timeout -5s", "-timeout -5s: it has to be 0 or more"},
		{"list -after here", "it is not a cursor"},
		{"purge", "give -once, or -every TIME: see 'idempotency purge -h'"},
		{"purge -once -every 1h", "give -once, or -every TIME"},
		{"purge -every -1h", "want a time"},
		{"stats -scopes -1", "-scopes -1"},
		{"stats -sample 0", "-sample 0"},
	} {
		run(t, nil, strings.Fields(row.args)...).wantLine(t, 2, row.says)
	}
}

func TestVersionIsOneLineWithTheModulesVersionAndGos(t *testing.T) {
	t.Parallel()
	for _, flag := range []string{"-version", "--version"} {
		r := run(t, nil, flag)
		if r.exit != 0 || r.stderr != "" || !regexp.MustCompile(`^idempotency (v\d\S*|\(devel\)) \(go\d.*\)\n$`).MatchString(r.stdout) {
			t.Errorf("%s: %+v", flag, r)
		}
	}
	run(t, nil, "-version", "extra").wantLine(t, 2, "see 'idempotency -h'")
	run(t, nil, "-h").wantAll(t, 0, "idempotency -version")
}

// latest is what "migrate version" prints after "migrate up".
func latest() string {
	files, err := fs.Glob(migrations.FS, "*.up.sql")
	if err != nil {
		panic(err)
	}
	return strconv.Itoa(len(files))
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain: ", what)
		}
	}
}
