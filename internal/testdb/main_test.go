package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var withDocker = flag.Bool("docker", false, "test the Docker source, too")

// program is testdb, built where any user may run it.
var program string

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := openTempDir("testdb-program-")
	if err == nil {
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "testdb")
		build := exec.Command("go", "build", "-o", program, ".")
		build.Stderr = os.Stderr
		err = build.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	m.Run()
}

// openTempDir makes a temporary folder that any user may write to: as root,
// testdb starts PostgreSQL as somebody else.
func openTempDir(prefix string) (string, error) {
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o777)
}

// A process is a run of testdb whose temporary files are all in tmp.
type process struct {
	*exec.Cmd
	tmp    string
	stdout io.Reader
	stderr bytes.Buffer
}

// prepare prepares testdb with these arguments, in which TMP is its temporary
// folder. Whatever the test does to it, in the end nothing may be left of it: no
// file in that folder, and no process with TMP in its arguments.
func prepare(t *testing.T, args ...string) *process {
	t.Helper()
	tmp, err := openTempDir("testdb-test-")
	if err != nil {
		t.Fatal(err)
	}
	for i, arg := range args {
		args[i] = strings.ReplaceAll(arg, "TMP", tmp)
	}
	p := &process{Cmd: exec.Command(program, args...), tmp: tmp}
	p.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "DATABASE_URL") || strings.HasPrefix(v, "TESTDB_BINDIR=")
	})
	p.setenv("TMPDIR", tmp)
	p.Stderr = &p.stderr
	if p.stdout, err = p.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		t.Helper()
		expectNothingLeft(t, tmp)
		os.RemoveAll(tmp)
		if t.Failed() {
			t.Log("stderr: ", p.stderr.String())
		}
	})
	return p
}

func (p *process) setenv(name, value string) { p.Env = append(p.Env, name+"="+value) }

// start starts testdb and waits until the command has printed a line.
func (p *process) start(t *testing.T) (line string) {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(p.stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the command did not start: %v: %s", err, &p.stderr)
	}
	return line
}

// end runs testdb to its end, from wherever it is now.
func (p *process) end(t *testing.T) (stdout string, code int) {
	t.Helper()
	if p.Process == nil {
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
	}
	out, err := io.ReadAll(p.stdout)
	if err != nil {
		t.Fatal(err)
	}
	p.Wait()
	return string(out), exitCode(p.ProcessState)
}

func (p *process) expect(t *testing.T, wantCode int, inStderr ...string) (stdout string) {
	t.Helper()
	stdout, code := p.end(t)
	if code != wantCode {
		t.Errorf("exit code %d, want %d", code, wantCode)
	}
	for _, want := range inStderr {
		if !strings.Contains(p.stderr.String(), want) {
			t.Errorf("stderr lacks %q: %s", want, &p.stderr)
		}
	}
	return stdout
}

// expectNothingLeft waits until dir is empty and no process names it.
func expectNothingLeft(t *testing.T, dir string) {
	t.Helper()
	var files, processes []string
	for range 200 {
		files, _ = filepath.Glob(filepath.Join(dir, "*"))
		processes = processesNaming(t, dir)
		if len(files)+len(processes) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("left behind: files %q, processes %q", files, processes)
}

// processesNaming lists the processes with text in their arguments.
func processesNaming(t *testing.T, text string) (found []string) {
	t.Helper()
	out, err := exec.Command("ps", "-eo", "user,args").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, text) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// waiting is a command that prints a line and does not end.
const waiting = `echo ready; while :; do sleep 0.1; done # TMP`

func TestCommandIsRunAsItIs(t *testing.T) {
	t.Parallel()
	p := prepare(t, "-C", os.TempDir(), "--", "sh", "-c", `cat; pwd; echo "$1"; exit 3`, "sh", "two words")
	p.Stdin = strings.NewReader("from stdin\n")
	want := "from stdin\n" + os.TempDir() + "\ntwo words\n"
	if got := p.expect(t, 3); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFolderIsRelativeToTheRepository(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	got := prepare(t, "-C", "internal", "--", "pwd").expect(t, 0)
	if want := filepath.Join(root, "internal") + "\n"; got != want {
		t.Errorf("ran in %q, want %q", got, want)
	}
}

func TestCommandKilledByASignal(t *testing.T) {
	t.Parallel()
	prepare(t, "--", "sh", "-c", "kill -KILL $$").expect(t, 128+9)
}

func TestCommandThatDoesNotExist(t *testing.T) {
	t.Parallel()
	prepare(t, "--", "no-such-command").expect(t, exitFailed, "no-such-command")
}

func TestServerIsThereAndSaysWhereFrom(t *testing.T) {
	t.Parallel()
	p := prepare(t, "--", program, "-source", "env", "--", "true")
	p.expect(t, 0, "testdb: PostgreSQL ", " from DATABASE_URL\n")
	if n := strings.Count(p.stderr.String(), "testdb: PostgreSQL "); n != 2 { // one of each testdb
		t.Errorf("%d lines: %s", n, &p.stderr)
	}
}

func TestSignalsAreTheCommands(t *testing.T) {
	t.Parallel()
	for name, sig := range map[string]os.Signal{"TERM": syscall.SIGTERM, "INT": os.Interrupt} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := prepare(t, "--", "sh", "-c", "trap 'echo trapped; exit 5' "+name+"; "+waiting)
			p.start(t)
			p.Process.Signal(sig)
			if got := p.expect(t, 5); got != "trapped\n" {
				t.Errorf("the command printed %q", got)
			}
		})
	}
}

func TestTerminatedWhileStarting(t *testing.T) {
	t.Parallel()
	for _, ms := range []time.Duration{0, 50, 200, 500} {
		after := ms * time.Millisecond
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			t.Parallel()
			p := prepare(t, "--", "sh", "-c", waiting)
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(after)
			p.Process.Signal(syscall.SIGTERM)
			if _, code := p.end(t); code != exitFailed && code != 128+15 {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

func TestKilled(t *testing.T) {
	t.Parallel()
	p := prepare(t, "--", "sh", "-c", waiting)
	p.start(t)
	p.Process.Kill()
	p.expect(t, 128+9)
}

func TestKilledWhileStarting(t *testing.T) {
	t.Parallel()
	p := prepare(t, "--", "sh", "-c", waiting)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	p.Process.Kill()
	p.end(t)
}

// The keeper is killed, too, so that the files stay; but not the server.
func TestKilledWithItsKeeper(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs Linux: the server dies with its keeper")
	}
	t.Parallel()
	p := prepare(t, "--", "sh", "-c", waiting)
	p.start(t)
	if err := exec.Command("pkill", "-KILL", "-P", fmt.Sprint(p.Process.Pid)).Run(); err != nil {
		t.Fatal(err)
	}
	p.end(t)
	left, _ := filepath.Glob(filepath.Join(p.tmp, "*"))
	for _, dir := range left {
		defer os.RemoveAll(dir)
	}
	if len(left) != 1 {
		t.Errorf("found %q", left)
	}
}

func TestTerminatedWithItsParent(t *testing.T) {
	t.Parallel()
	p := prepare(t, "-c", `"$0" -- sh -c '`+waiting+`'; exit`, program)
	p.Path = "/bin/sh"
	p.start(t)
	p.Process.Signal(syscall.SIGTERM)
	p.end(t)
}

func TestDatabaseURLIsUsed(t *testing.T) {
	t.Parallel()
	p := prepare(t, "-source", "local", "--", "sh", "-c",
		`"$0" -- sh -c 'test "$DATABASE_URL" = "$1"' sh "$DATABASE_URL"`, program)
	p.expect(t, 0, "from DATABASE_URL")
}

func TestUnreachableDatabaseURLFails(t *testing.T) {
	t.Parallel()
	p := prepare(t, "--", "echo", "ran")
	p.setenv("DATABASE_URL", "postgres://u:secret@127.0.0.1:1/db")
	if got := p.expect(t, exitFailed, "DATABASE_URL is set, but", "127.0.0.1:1"); got != "" {
		t.Error("the command ran")
	}
	if strings.Contains(p.stderr.String(), "secret") {
		t.Error("the password is in the message")
	}
}

func TestNoSourceAtAll(t *testing.T) {
	t.Parallel()
	p := prepare(t, "-bindir", "/nowhere", "-version", "14", "--", "echo", "ran")
	p.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
	p.setenv("PATH", "/nonexistent")
	got := p.expect(t, exitFailed,
		"env: DATABASE_URL is not set", "local: no initdb and postgres 14 in /nowhere",
		`npm: exec: "npm": executable file not found`, "docker: ", "do one of these")
	if got != "" {
		t.Error("the command ran")
	}
	if n := strings.Count(p.stderr.String(), "testdb:"); n != 1 {
		t.Errorf("%d messages", n)
	}
}

func TestDatabaseURLOfAnotherVersionIsRefused(t *testing.T) {
	t.Parallel()
	p := prepare(t, "--", program, "-version", "9", "--", "echo", "ran")
	if got := p.expect(t, exitFailed, "from DATABASE_URL is not the version 9"); got != "" {
		t.Error("the command ran")
	}
}

func TestModeIsAddedToConnectionStringsOfEveryForm(t *testing.T) {
	for dsn, want := range map[string]string{
		"postgres://u:p@h/db":                 "postgres://u:p@h/db?default_query_exec_mode=exec",
		"postgresql://u:p@h/db?sslmode=allow": "postgresql://u:p@h/db?default_query_exec_mode=exec&sslmode=allow",
		"host=h user=u":                       "host=h user=u default_query_exec_mode=exec",
	} {
		if got := withMode(dsn, "exec"); got != want {
			t.Errorf("%s became %s", dsn, got)
		}
		if got := withMode(dsn, ""); got != dsn {
			t.Errorf("%s became %s", dsn, got)
		}
	}
}

func TestTextSortsOtherwiseThanBytesWhereThereIsALocaleForIt(t *testing.T) {
	t.Parallel()
	for major, icu := range map[int]bool{14: false, 15: true, 18: true} {
		all := locales(major)
		if got := strings.Contains(strings.Join(all[0], " "), "icu"); got != icu {
			t.Errorf("PostgreSQL %d: first %q", major, all[0])
		}
		if last := all[len(all)-1]; strings.Join(last, " ") != "--locale=C" {
			t.Errorf("PostgreSQL %d: last %q", major, last)
		}
	}
}

// PostgreSQL can have been built without ICU.
func TestLocaleThatIsNotThereIsNoReasonToFail(t *testing.T) {
	t.Parallel()
	there, err := findBinaries(settings{Cache: cacheDir()})
	if err != nil {
		t.Skip("no PostgreSQL to start: ", err)
	}
	bin, err := openTempDir("testdb-locale-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(bin)
	for name, refuse := range map[string]string{"initdb": `case "$*" in *--locale=C) ;; *) exit 1 ;; esac; `, "postgres": ""} {
		script := "#!/bin/sh\n" + refuse + "exec " + filepath.Join(there, name) + ` "$@"` + "\n"
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	prepare(t, "-source", "local", "-bindir", bin, "--", "sh", "-c", "exit 3").
		expect(t, 3, " from "+bin, "text sorts as bytes there")
}

func TestUnknownSource(t *testing.T) {
	t.Parallel()
	prepare(t, "-source", "oracle", "--", "true").expect(t, exitFailed, `no source "oracle"`)
}

func TestServerThatDoesNotStartShowsItsLog(t *testing.T) {
	t.Parallel()
	bin, err := openTempDir("testdb-broken-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(bin)
	for name, script := range map[string]string{"initdb": "exit 0", "postgres": "echo FATAL: this one is broken; exit 1"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	prepare(t, "-source", "local", "-bindir", bin, "--", "true").
		expect(t, exitFailed, "postgres ended", "FATAL: this one is broken")
}

func TestAsRootTheServerRunsAsSomebodyElse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Parallel()
	p := prepare(t, "--", "sh", "-c", waiting)
	p.start(t)
	defer p.end(t)
	defer p.Process.Signal(syscall.SIGTERM)
	servers := processesNaming(t, "-D "+p.tmp)
	if len(servers) != 1 || strings.HasPrefix(servers[0], "root") {
		t.Errorf("servers: %q", servers)
	}
}

func TestAsAnOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("all of these tests run as one; as root they become nobody")
	}
	t.Parallel()
	p := prepare(t, "-C", "/", "--", "id", "-u")
	p.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if got := p.expect(t, 0); got != "65534\n" {
		t.Errorf("ran as %q", got)
	}
}

func TestDocker(t *testing.T) {
	if !*withDocker {
		t.Skip("run with -docker (make test-docker)")
	}
	t.Parallel()
	prepare(t, "-source", "docker", "--", "sh", "-c", "exit 3").expect(t, 3, " in Docker from ")

	killed := prepare(t, "-source", "docker", "--", "sh", "-c", `echo; exec sleep 600`)
	killed.start(t)
	killed.Process.Kill()
	killed.end(t)
}
