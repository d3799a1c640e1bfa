package idempotency_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

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
		for _, m := range regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`).FindAllStringSubmatch(read(t, path), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), m[1])); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
}
