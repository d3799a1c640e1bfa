package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/semver"
)

// release makes the commit and the tags of a version, and pushes nothing. It looks
// at everything that can be wrong before it changes anything.
func release(ctx context.Context, root, version string, today time.Time, out io.Writer) error {
	r, err := openRepository(ctx, root)
	if err != nil {
		return err
	}
	if err := r.releasable(ctx, version); err != nil {
		return err
	}
	files, err := r.filesOf(version, today)
	if err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(r.root, name), text, 0o644); err != nil {
			return err
		}
	}
	if changed, err := r.git(ctx, "status", "--porcelain"); err != nil {
		return err
	} else if changed != "" {
		if _, err := r.git(ctx, "commit", "--all", "--message", "Release "+version); err != nil {
			return err
		}
	}
	var tags []string
	for _, m := range r.public() {
		tags = append(tags, m.tag(version))
		if _, err := r.git(ctx, "tag", "--annotate", "--message", version, m.tag(version)); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "Committed, tagged, and not pushed. After a look at it:\n\n\tgit push --atomic origin HEAD %s\n", strings.Join(tags, " "))
	return nil
}

func (r *repository) releasable(ctx context.Context, version string) error {
	// Build metadata is no part of the canonical form.
	if !semver.IsValid(version) || semver.Canonical(version) != version {
		return fmt.Errorf("VERSION=%s: want a version such as v0.2.0", version)
	}
	if semver.Compare(semver.Major(version), "v1") > 0 {
		return fmt.Errorf("VERSION=%s: from v2 on the version is a part of the modules' paths, which this does not change", version)
	}
	// The first release can be the version that the modules require already.
	if now, err := r.released(); err != nil {
		return err
	} else if semver.Compare(version, now) < 0 {
		return fmt.Errorf("VERSION=%s is older than %s, which the modules require now", version, now)
	}
	if changed, err := r.git(ctx, "status", "--porcelain"); err != nil {
		return err
	} else if changed != "" {
		return fmt.Errorf("there are changes that are not committed:\n%s", changed)
	}
	for _, m := range r.public() {
		if tag, err := r.git(ctx, "tag", "--list", m.tag(version)); err != nil {
			return err
		} else if tag != "" {
			return fmt.Errorf("there is a tag %s already", tag)
		}
	}
	return nil
}

// filesOf are the files that a release changes, with their new text.
func (r *repository) filesOf(version string, today time.Time) (map[string][]byte, error) {
	files := make(map[string][]byte)
	for _, m := range r.modules {
		for _, require := range r.ours(m) {
			if err := m.file.AddRequire(require.Mod.Path, version); err != nil {
				return nil, err
			}
		}
		text, err := m.file.Format()
		if err != nil {
			return nil, err
		}
		files[filepath.Join(m.dir, "go.mod")] = text
	}
	const changelog = "CHANGELOG.md"
	text, err := os.ReadFile(filepath.Join(r.root, changelog))
	if err != nil {
		return nil, err
	}
	released, err := closeUnreleased(string(text), version, today)
	files[changelog] = []byte(released)
	return files, err
}

const unreleased = "## Unreleased\n"

// closeUnreleased makes the version of what the changelog has under Unreleased. A
// version that it has already, as the very first, may have nothing there.
func closeUnreleased(changelog, version string, today time.Time) (string, error) {
	before, after, found := strings.Cut(changelog, unreleased)
	if !found {
		return "", errors.New("CHANGELOG.md has no line '## Unreleased'")
	}
	changes, _, _ := strings.Cut(after, "\n## ")
	empty, prepared := strings.TrimSpace(changes) == "", strings.Contains(changelog, "\n## "+version+" ")
	switch {
	case prepared && empty:
		return changelog, nil
	case prepared:
		return "", fmt.Errorf("CHANGELOG.md has a section %s already, and something under Unreleased: take the next version", version)
	case empty:
		return "", errors.New("CHANGELOG.md has nothing under Unreleased: what do users get with this version?")
	}
	return fmt.Sprintf("%s%s\n## %s (%s)\n%s", before, unreleased, version, today.Format(time.DateOnly), after), nil
}
