package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// module is a package with tests of which each notices one thing.
var module = map[string]string{
	"go.mod": "module example.com/p\n\ngo 1.26\n",
	"p/p.go": "package p\n\nfunc Less(a, b int) bool { return a < b }\n\nfunc Wait(d chan int) { close(d) }\n\nvar Unused = 1\n",
	"p/p_test.go": `package p

import "testing"

func TestSmallIsLess(t *testing.T) {
	t.Run("small", func(t *testing.T) {
		if !Less(1, 2) {
			t.Error("1 < 2")
		}
	})
}

func TestEqualIsNotLess(t *testing.T) {
	if Less(1, 1) {
		t.Error("1 < 1")
	}
}

func TestWaitEnds(t *testing.T) {
	d := make(chan int)
	Wait(d)
	<-d
}
`,
	"q/q.go":      "package q\n",
	"q/q_test.go": "package q\n\nimport (\n\t\"testing\"\n\n\t\"example.com/p/p\"\n)\n\nfunc TestUnusedIsOne(t *testing.T) {\n\tif p.Unused != 1 {\n\t\tt.Error(p.Unused)\n\t}\n}\n",
}

func newRunner(t *testing.T) *runner {
	t.Helper()
	top := t.TempDir()
	for name, text := range module {
		path := filepath.Join(top, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return &runner{top: top, dir: t.TempDir(), limit: time.Minute}
}

func (r *runner) verdict(t *testing.T, old, replacement, known string, tests ...string) (string, error) {
	t.Helper()
	e, err := (&mutation{old: old, new: replacement}).find("p/p.go", module["p/p.go"])
	if err != nil {
		t.Fatal(err)
	}
	return r.try(t.Context(), e, tests, known)
}

func TestVerdictNamesTheTestThatNotices(t *testing.T) {
	t.Parallel()
	r := newRunner(t)
	for _, row := range []struct {
		old, new, known string
		tests           []string
		want            string
	}{
		{"a < b", "a <= b", "", []string{"p"}, "killed by TestEqualIsNotLess"},
		{"a < b", "a > b", "", []string{"p"}, "killed by TestSmallIsLess"},
		{"a < b", "a <= b", "killed by TestSmallIsLess", []string{"p"}, "killed by TestEqualIsNotLess"},
		{"a < b", "true", "killed by TestEqualIsNotLess", []string{"p"}, "killed by TestEqualIsNotLess"},
		{"close(d)", "", "", []string{"p"}, "hangs TestWaitEnds"},
		{"= 1", "= 2", "", []string{"p"}, "survives: no test fails"},
		{"= 1", "= 2", "", []string{"p", "q"}, "killed by q.TestUnusedIsOne"},
		{"= 1", "= 2", "killed by q.TestUnusedIsOne", []string{"p", "q"}, "killed by q.TestUnusedIsOne"},
		{"= 1", "= panics()\n\nfunc panics() int { panic(1) }", "", []string{"p"}, "killed by TestMain"},
	} {
		r.limit = time.Minute
		if strings.HasPrefix(row.want, hangs) {
			r.limit = time.Second
		}
		if got, err := r.verdict(t, row.old, row.new, row.known, row.tests...); got != row.want || err != nil {
			t.Errorf("%s -> %s: %q, %v, want %q", row.old, row.new, got, err, row.want)
		}
	}
	if text, err := os.ReadFile(filepath.Join(r.top, "p/p.go")); string(text) != module["p/p.go"] || err != nil {
		t.Errorf("the checkout was changed: %s, %v", text, err)
	}
}

func TestCodeThatDoesNotBuildIsNotKilled(t *testing.T) {
	t.Parallel()
	r := newRunner(t)
	for _, replacement := range []string{"a << ", "a < c"} {
		if got, err := r.verdict(t, "a < b", replacement, "", "p"); !errors.Is(err, errNotBuilt) || !strings.Contains(err.Error(), "p.go") {
			t.Errorf("%s: %q, %v", replacement, got, err)
		}
	}
}

func TestTestsThatFailAnywayAreSaid(t *testing.T) {
	t.Parallel()
	r := newRunner(t)
	if err := r.healthy(t.Context(), []string{"p", "q"}); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(r.top, "q/q.go"), []byte("package q\n\nfunc init() { panic(1) }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.healthy(t.Context(), []string{"p", "q"}); err == nil || !strings.Contains(err.Error(), "the tests of q fail without a mutation") {
		t.Error(err)
	}
}

func TestListIsTriedAndItsVerdictsWritten(t *testing.T) {
	t.Parallel()
	r := newRunner(t)
	const text = "package p\n\np.go\n- a < b\n+ a <= b\n\np.go\n- = 1\n+ = 2\n\np.go\n- = 1\n+ = 3\n= equivalent: nobody reads it\n\np.go\n- not there\n+ 1\n"
	path := filepath.Join(t.TempDir(), "p.txt")
	l, err := parseList("p", text)
	if err != nil {
		t.Fatal(err)
	}
	bad, err := r.list(context.Background(), l, path, &selection{record: true})
	if bad != 2 || err != nil { // one survives, one does not apply
		t.Errorf("%d, %v", bad, err)
	}
	written, err := os.ReadFile(path)
	if want := strings.Replace(text, "+ a <= b\n", "+ a <= b\n= killed by TestEqualIsNotLess\n", 1); string(written) != want || err != nil {
		t.Errorf("%s, %v", written, err)
	}
}

func TestLinesThatHaveChangedSinceACommitAreBrokenAndTheirTestsRun(t *testing.T) {
	t.Parallel()
	r := newRunner(t)
	git := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main"}, args...)...)
		cmd.Dir = r.top
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %q: %v: %s", args, err, out)
		}
	}
	git("init")
	git("add", ".")
	git("commit", "-m", "a")
	for path, text := range map[string]string{
		"p/p.go":      strings.Replace(module["p/p.go"], "return a < b", "return a < b || b > 9", 1),
		"q/q_test.go": module["q/q_test.go"] + "\n// Tests are not broken.\n",
	} {
		if err := os.WriteFile(filepath.Join(r.top, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	folders, err := breakages(t.Context(), r.top, "HEAD")
	var says []string
	for _, e := range folders["p"] {
		says = append(says, e.says)
	}
	want := []string{"< -> <=", "|| -> &&", "> -> >=", "9 -> 10", "9 -> 8"}
	if len(folders) != 1 || len(says) != len(want) || err != nil {
		t.Fatalf("%+v, %v", folders, err)
	}
	for i, prefix := range want {
		if !strings.HasPrefix(says[i], prefix+" ") || !strings.Contains(says[i], "return a < b || b > 9") {
			t.Errorf("%q, want %s", says[i], prefix)
		}
	}
	// No test has a number above 9, so that what is behind "||" can be broken as one likes.
	if err := r.diff(t.Context(), "HEAD", ""); err == nil || !strings.HasPrefix(err.Error(), "3 survive: ") {
		t.Error(err)
	}
	if err := r.diff(t.Context(), "HEAD", "q"); err != nil {
		t.Error(err)
	}
}
