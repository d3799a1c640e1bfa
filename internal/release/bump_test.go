package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var day = time.Date(2026, 12, 24, 0, 0, 0, 0, time.UTC)

// clone is a clone of this repository, to which a module has been added as a later
// one would be. This repository itself gets no commit and no tag.
func clone(t *testing.T) (dir string) {
	t.Helper()
	// Of nobody's machine.
	for _, name := range []string{"GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"} {
		t.Setenv(name, "release@example.com")
	}
	t.Setenv("GIT_CONFIG_GLOBAL", os.DevNull)
	dir = filepath.Join(t.TempDir(), "clone")
	origin, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	git(t, origin, "clone", "--quiet", "--no-tags", "file://"+origin, dir)
	write(t, dir, "idemlater/go.mod", `module github.com/pgidem/idempotency/idemlater

go 1.26.0

require github.com/pgidem/idempotency `+released(t, dir)+` // indirect

replace github.com/pgidem/idempotency => ..
`)
	write(t, dir, "idemlater/later.go", "package idemlater\n")
	changelog := read(t, dir, "CHANGELOG.md")
	write(t, dir, "CHANGELOG.md", strings.Replace(changelog, unreleased, unreleased+"\n- Something new.\n", 1))
	git(t, dir, "add", "--all")
	git(t, dir, "commit", "--quiet", "--message", "A module more")
	return dir
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func open(t *testing.T, dir string) *repository {
	t.Helper()
	r, err := openRepository(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func released(t *testing.T, dir string) string {
	t.Helper()
	version, err := open(t, dir).released()
	if err != nil {
		t.Fatal(err)
	}
	return version
}

func TestReleaseMovesAllModulesAndTagsThePublicOnes(t *testing.T) {
	dir := clone(t)
	before := open(t, dir)
	var out strings.Builder
	if err := release(t.Context(), dir, "v0.9.0", day, &out); err != nil {
		t.Fatal(err)
	}
	after := open(t, dir)
	moved := 0
	for i, m := range after.modules {
		for _, require := range after.ours(m) {
			moved++
			if require.Mod.Version != "v0.9.0" {
				t.Errorf("%s requires %v", m.dir, require.Mod)
			}
		}
		if got, want := len(m.file.Replace), len(before.modules[i].file.Replace); got != want {
			t.Errorf("%s has %d replaces of %d", m.dir, got, want)
		}
		if got, want := len(m.file.Require), len(before.modules[i].file.Require); got != want {
			t.Errorf("%s has %d requirements of %d", m.dir, got, want)
		}
	}
	if moved < 10 {
		t.Errorf("only %d requirements of our own", moved)
	}
	if !strings.Contains(read(t, dir, "idemlater/go.mod"), "v0.9.0 // indirect\n") {
		t.Error("a comment of a requirement is gone")
	}
	tags := strings.Fields(git(t, dir, "tag", "--points-at", "HEAD"))
	want := []string{"idemhttp/v0.9.0", "idemlater/v0.9.0", "idemotel/v0.9.0", "v0.9.0"}
	for _, tag := range want {
		if !slices.Contains(tags, tag) {
			t.Errorf("no tag %s among %v", tag, tags)
		}
		if !strings.Contains(out.String(), " "+tag) {
			t.Errorf("the command to push leaves out %s: %s", tag, out.String())
		}
	}
	for _, tag := range tags {
		if strings.Contains(tag, "test/") || strings.Contains(tag, "internal") || strings.Contains(tag, "bench") || strings.Contains(tag, "examples") {
			t.Errorf("tag %s of a module that is not public", tag)
		}
	}
	if changelog := read(t, dir, "CHANGELOG.md"); !strings.Contains(changelog, "## Unreleased\n\n## v0.9.0 (2026-12-24)\n\n- Something new.\n") {
		t.Errorf("the changelog begins with\n%.400s", changelog)
	}
	if subject := git(t, dir, "log", "-1", "--format=%s"); subject != "Release v0.9.0" {
		t.Errorf("the commit is %q", subject)
	}
	if changed := git(t, dir, "status", "--porcelain"); changed != "" {
		t.Errorf("not committed: %s", changed)
	}
	if remote := git(t, dir, "ls-remote", "origin", "*v0.9.0*"); remote != "" {
		t.Errorf("pushed: %s", remote)
	}
}

func TestVersionThatIsPreparedIsTaggedAsItIs(t *testing.T) {
	dir := clone(t)
	version := released(t, dir)
	changelog := strings.Replace(read(t, dir, "CHANGELOG.md"), "\n- Something new.\n", "", 1)
	_, rest, _ := strings.Cut(changelog, unreleased)
	_, old, found := strings.Cut(rest, "\n## "+version+" ")
	if !found {
		t.Skip("this version is not in the changelog any more")
	}
	write(t, dir, "CHANGELOG.md", unreleased+"\n## "+version+" "+old)
	git(t, dir, "commit", "--quiet", "--all", "--message", "Prepared")
	head := git(t, dir, "rev-parse", "HEAD")
	if err := release(t.Context(), dir, version, day, io.Discard); err != nil {
		t.Fatal(err)
	}
	if got := git(t, dir, "rev-parse", version+"^{commit}"); got != head {
		t.Errorf("%s is %s, and HEAD was %s", version, got, head)
	}
}

func TestReleaseThatCannotBeChangesNothing(t *testing.T) {
	dir := clone(t)
	head := git(t, dir, "rev-parse", "HEAD")
	for _, row := range []struct {
		name, version, says string
		spoil               func()
	}{
		{"no version", "", "want a version such as v0.2.0", func() {}},
		{"without v", "0.9.0", "want a version such as v0.2.0", func() {}},
		{"short", "v0.9", "want a version such as v0.2.0", func() {}},
		{"with metadata", "v0.9.0+meta", "want a version such as v0.2.0", func() {}},
		{"older", "v0.0.9", "older than", func() {}},
		{"v2", "v2.0.0", "part of the modules' paths", func() {}},
		{"dirty", "v0.9.0", "not committed:\nM README.md", func() { write(t, dir, "README.md", "changed") }},
		{"untracked", "v0.9.0", "not committed:\n?? scratch", func() { write(t, dir, "scratch", "") }},
		{"tagged", "v0.9.0", "there is a tag idemhttp/v0.9.0", func() { git(t, dir, "tag", "idemhttp/v0.9.0") }},
		{"nothing new", "v0.9.0", "nothing under Unreleased", func() {
			write(t, dir, "CHANGELOG.md", unreleased+"\n## v0.8.0 (2026-01-01)\n\n- Old.\n")
			git(t, dir, "commit", "--quiet", "--all", "--message", "No news")
		}},
		{"no Unreleased", "v0.9.0", "no line '## Unreleased'", func() {
			write(t, dir, "CHANGELOG.md", "- News.\n")
			git(t, dir, "commit", "--quiet", "--all", "--message", "No heading")
		}},
		{"in the changelog", "v0.9.0", "take the next version", func() {
			write(t, dir, "CHANGELOG.md", unreleased+"\n- News.\n\n## v0.9.0 (2026-01-01)\n\n- Old.\n")
			git(t, dir, "commit", "--quiet", "--all", "--message", "Twice")
		}},
		{"forgotten bump", "v0.9.0", "idemotel/go.mod", func() {
			text := read(t, dir, "idemotel/go.mod")
			write(t, dir, "idemotel/go.mod", strings.Replace(text, "idempotency "+released(t, dir), "idempotency v0.0.1", 1))
			git(t, dir, "commit", "--quiet", "--all", "--message", "Forgotten")
		}},
	} {
		row.spoil()
		spoilt := git(t, dir, "rev-parse", "HEAD") + git(t, dir, "tag") + git(t, dir, "status", "--porcelain")
		err := release(t.Context(), dir, row.version, day, io.Discard)
		if err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: %v", row.name, err)
		}
		if now := git(t, dir, "rev-parse", "HEAD") + git(t, dir, "tag") + git(t, dir, "status", "--porcelain"); now != spoilt {
			t.Errorf("%s: it has changed %q to %q", row.name, spoilt, now)
		}
		git(t, dir, "reset", "--quiet", "--hard", head)
		git(t, dir, "clean", "--quiet", "-fd")
		if tags := git(t, dir, "tag"); tags != "" {
			git(t, dir, append([]string{"tag", "--delete"}, strings.Fields(tags)...)...)
		}
	}
}
