package idempotency_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Make release-check runs it as a user does, in a module of its own.
func TestProgramOfTheReadmeRunsAsItSays(t *testing.T) {
	t.Parallel()
	readme := read(t, "README.md")
	source := between(readme, "```go\npackage main\n", "```")
	if source == "" {
		t.Fatal("no program in the README")
	}
	if lines := strings.Count(source, "\n"); lines > 45 {
		t.Errorf("the program of the README has %d lines", lines)
	}
	program := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(program, []byte("package main\n"+source), 0o600); err != nil {
		t.Fatal(err)
	}
	run := exec.Command("go", "run", program)
	run.Env = append(os.Environ(), "DATABASE_URL="+pgtest.URL(pgtest.Empty(t)))
	out, err := run.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if want := between(readme, "```text\n", "```"); string(out) != want || strings.Count(want, "\n") != 3 {
		t.Errorf("it printed\n%s\nwant\n%s", out, want)
	}
}

// between is what stands between start and the next end, or nothing.
func between(text, start, end string) string {
	_, after, _ := strings.Cut(text, start)
	inside, _, found := strings.Cut(after, end)
	if !found {
		return ""
	}
	return inside
}

func TestReadmeIsShort(t *testing.T) {
	t.Parallel()
	if lines := strings.Count(read(t, "README.md"), "\n"); lines >= 200 {
		t.Errorf("%d lines", lines)
	}
}

func TestSecurityPageIsShortAndFound(t *testing.T) {
	t.Parallel()
	if words := len(strings.Fields(read(t, "docs/security.md"))); words > 700 {
		t.Errorf("%d words", words)
	}
	for _, page := range []string{"README.md", "SECURITY.md"} {
		if !strings.Contains(read(t, page), "(docs/security.md)") {
			t.Errorf("%s does not lead to it", page)
		}
	}
}

func TestPageOfGRPCIsShort(t *testing.T) {
	t.Parallel()
	if words := len(strings.Fields(read(t, "docs/grpc.md"))); words > 700 {
		t.Errorf("%d words", words)
	}
}

func TestRideOfTheProceduresPageIsTheExampleThatRuns(t *testing.T) {
	t.Parallel()
	page := read(t, "docs/procedures.md")
	if words := len(strings.Fields(page)); words > 900 {
		t.Errorf("%d words", words)
	}
	ride := strings.Join(strings.Fields(between(page, "```go\n", "```")), " ")
	if ride == "" || !strings.Contains(strings.Join(strings.Fields(read(t, "example_test.go")), " "), ride) {
		t.Error("the code of the page is not in ExampleProcedure")
	}
}

func docs(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	return append(files, "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
}

func TestEveryTestNamedInTheDocsExists(t *testing.T) {
	t.Parallel()
	defined := make(map[string]bool)
	err := filepath.WalkDir(".", func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Benchmark|Example|Fuzz)\w*)\(`).FindAllStringSubmatch(read(t, path), -1) {
			defined[m[1]] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, path := range docs(t) {
		for _, m := range regexp.MustCompile("`((?:Test|Benchmark|Example|Fuzz)[A-Z_]\\w*)`").FindAllStringSubmatch(read(t, path), -1) {
			named++
			if !defined[m[1]] {
				t.Errorf("%s names %s, which does not exist", path, m[1])
			}
		}
	}
	if named < 50 {
		t.Errorf("only %d tests are named: is the pattern right?", named)
	}
}

func TestLinksInTheDocsLeadSomewhere(t *testing.T) {
	t.Parallel()
	for _, path := range docs(t) {
		page := regexp.MustCompile("(?ms)^```.*?^```$").ReplaceAllString(read(t, path), "") // T[E](args) is no link
		for _, m := range regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`).FindAllStringSubmatch(page, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), m[1])); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
}

// TestWayOfACallIsAsTheDocsSay compares the functions between Do and its function
// with the list in docs/development.md.
func TestWayOfACallIsAsTheDocsSay(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var walked []string
	_, _, err := b.do(func(context.Context, pgx.Tx) (int, error) {
		counters := make([]uintptr, 100)
		frames := runtime.CallersFrames(counters[:runtime.Callers(2, counters)])
		for more := true; more; {
			var frame runtime.Frame
			frame, more = frames.Next()
			name, ours := strings.CutPrefix(frame.Function, "github.com/pgidem/idempotency.")
			if !ours {
				break
			}
			name, _, _ = strings.Cut(name, ".func")
			name = strings.NewReplacer("(*", "", ")", "", "[...]", "").Replace(name)
			if len(walked) == 0 || walked[len(walked)-1] != name {
				walked = append(walked, name)
			}
		}
		return 1, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(walked)
	var listed []string
	for _, line := range regexp.MustCompile("(?m)^[0-9]+\\. `([A-Za-z.]+)`").FindAllStringSubmatch(read(t, "docs/development.md"), -1) {
		listed = append(listed, line[1])
	}
	if !slices.Equal(listed, walked) {
		t.Errorf("the page lists\n%q\nand the way is\n%q", listed, walked)
	}
	if len(walked)-1 > 9 {
		t.Errorf("%d functions between Do and its function", len(walked)-1)
	}
}

// A tag of an action can be moved to other code, which would run with this repository.
func TestWorkflowsRunNothingThatCanChangeAndLeaveNoToken(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(".github/workflows/*")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		workflow := read(t, file)
		steps := strings.Split(workflow, "- uses:")[1:]
		if len(steps) == 0 {
			t.Errorf("%s uses nothing: this test shows nothing", file)
		}
		if strings.Count(workflow, "uses:") != len(steps) || !strings.Contains(workflow, "permissions:\n  contents: read\n") {
			t.Errorf("%s has an action in a form that this test does not read, or more rights than to read", file)
		}
		for _, step := range steps {
			if !regexp.MustCompile(`^ \S+@[0-9a-f]{40} # v\d`).MatchString(step) {
				t.Errorf("%s: not pinned by commit:%s", file, strings.SplitN(step, "\n", 2)[0])
			}
			if strings.HasPrefix(step, " actions/checkout@") && !strings.Contains(step, "persist-credentials: false") {
				t.Errorf("%s: the checkout leaves a token in .git/config", file)
			}
		}
	}
}
