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

func TestProgramOfTheReadmeRunsAsItSays(t *testing.T) {
	t.Parallel()
	_, after, _ := strings.Cut(read(t, "README.md"), "```go\nfunc main() {")
	body, _, found := strings.Cut(after, "```")
	if !found {
		t.Fatal("no program in the README")
	}
	if lines := strings.Count(body, "\n"); lines > 25 {
		t.Errorf("the program of the README has %d lines", lines)
	}
	program := filepath.Join(t.TempDir(), "main.go")
	source := `package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/migrations"
)

func main() {` + body
	if err := os.WriteFile(program, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	run := exec.Command("go", "run", program)
	run.Env = append(os.Environ(), "DATABASE_URL="+pgtest.URL(pgtest.Empty(t)))
	out, err := run.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := "charged 10 EUR false <nil>\ncharged 10 EUR true <nil>\ncharged 10 EUR true <nil>\n"
	if string(out) != want {
		t.Errorf("it printed\n%s\nwant\n%s", out, want)
	}
}

func TestReadmeIsShort(t *testing.T) {
	t.Parallel()
	if lines := strings.Count(read(t, "README.md"), "\n"); lines >= 200 {
		t.Errorf("%d lines", lines)
	}
}

func docs(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	return append(files, "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
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
		for _, m := range regexp.MustCompile(`\]\(([^)#:]+)\)`).FindAllStringSubmatch(read(t, path), -1) {
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
