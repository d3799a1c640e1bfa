// Command mutations breaks the code in small ways, one at a time, and says which test
// notices. "make mutations" runs it.
//
// Without -diff it takes the mutations of the lists in testdata. With it, it makes the
// obvious ones of the lines that have changed since a commit.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	top := flag.String("top", ".", "the top `folder` of the repository")
	only := flag.String("only", "", "a `list`, or list/file.go: only its mutations; with -diff, a package")
	fresh := flag.Bool("new", false, "only mutations that have no verdict")
	record := flag.Bool("record", false, "write into the lists which test kills what")
	apply := flag.Bool("apply", false, "only check that the lists fit the code, and run no test")
	base := flag.String("diff", "", "instead of the lists: the lines that have changed since this `commit`")
	pattern := flag.String("run", "", "only these tests, as go test -run")
	limit := flag.Duration("limit", 0, "for the tests of a package: with more they hang (default five times what they take, and ten minutes)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *top, *base, *limit, *pattern, &selection{*only, *fresh, *record, *apply}); err != nil {
		fmt.Fprintln(os.Stderr, "mutations:", err)
		os.Exit(1)
	}
}

// A selection says what to do with the lists.
type selection struct {
	only                 string
	fresh, record, apply bool
}

func run(ctx context.Context, top, base string, limit time.Duration, pattern string, s *selection) error {
	top, err := filepath.Abs(top)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mutations-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	r := &runner{top: top, dir: dir, limit: limit, pattern: pattern}
	if base != "" {
		return r.diff(ctx, base, s.only)
	}
	paths, err := filepath.Glob(filepath.Join(top, "internal/mutations/testdata/*.txt"))
	if err != nil {
		return err
	}
	bad := 0
	for _, path := range paths {
		l, err := readList(path)
		if err != nil {
			return err
		}
		n, err := r.list(ctx, l, path, s)
		if err != nil {
			return err
		}
		bad += n
	}
	if bad > 0 {
		return fmt.Errorf("%d mutations are not as their lists say, or survive", bad)
	}
	return nil
}

// A score counts the mutations of a package.
type score struct{ killed, survive, equivalent, bad int }

func (s score) String() string {
	part := 100
	if all := s.killed + s.survive; all > 0 {
		part = 100 * s.killed / all
	}
	return fmt.Sprintf("%d of %d killed (%d %%), %d equivalent, %d do not apply or do not build", s.killed, s.killed+s.survive, part, s.equivalent, s.bad)
}

// list tries the mutations of one list, and returns how many are not as they should be.
func (r *runner) list(ctx context.Context, l *list, path string, s *selection) (unexpected int, err error) {
	var sum score
	tested := false
	for _, b := range l.blocks {
		m := b.mutation
		if m == nil || (s.only != "" && s.only != l.name && s.only != l.name+"/"+m.file) || (s.fresh && m.verdict != "") {
			continue
		}
		file := l.folder + "/" + m.file
		says := func(format string, args ...any) {
			fmt.Printf("%s.txt:%d: %s: %s\n", l.name, b.at, file, fmt.Sprintf(format, args...))
		}
		source, err := os.ReadFile(filepath.Join(r.top, file))
		var e edit
		if err == nil {
			e, err = m.find(file, string(source))
		}
		if err != nil {
			says("does not apply: %v", err)
			sum.bad++
			continue
		}
		if s.apply {
			continue
		}
		if strings.HasPrefix(m.verdict, equivalent) {
			sum.equivalent++
			continue
		}
		if !tested {
			if err := r.healthy(ctx, l.tests); err != nil {
				return 0, err
			}
			tested = true
		}
		begun := time.Now()
		verdict, err := r.try(ctx, e, l.tests, cmp.Or(m.verdict, killed+m.expected))
		switch {
		case errors.Is(err, errNotBuilt):
			says("%s: %v", e.says, err)
			sum.bad++
			continue
		case err != nil:
			return 0, err
		case !strings.HasPrefix(verdict, survives):
			sum.killed++
		case strings.HasPrefix(m.verdict, survives):
			verdict = m.verdict
			sum.survive++
		default:
			sum.survive++
			unexpected++
		}
		says("%s: %s (%.0f s)", e.says, verdict, time.Since(begun).Seconds())
		if _, _, dead := killer(verdict); dead && s.record && verdict != m.verdict {
			b.record(verdict)
			if err := os.WriteFile(path, []byte(l.String()), 0o644); err != nil {
				return 0, err
			}
		}
	}
	if sum != (score{}) {
		fmt.Printf("%s: %v\n", l.name, sum)
	}
	return unexpected + sum.bad, nil
}

// diff tries the obvious breakages of what has changed, and prints those that no test of
// their own package notices.
func (r *runner) diff(ctx context.Context, base, only string) error {
	folders, err := breakages(ctx, r.top, base)
	if err != nil {
		return err
	}
	var sum score
	for _, folder := range slices.Sorted(maps.Keys(folders)) {
		if only != "" && only != folder {
			continue
		}
		fmt.Printf("%s: %d breakages\n", folder, len(folders[folder]))
		if err := r.healthy(ctx, []string{folder}); err != nil {
			return err
		}
		for _, e := range folders[folder] {
			switch v, err := r.try(ctx, e, []string{folder}, ""); {
			case errors.Is(err, errNotBuilt): // nor would anybody have sent it
			case err != nil:
				return err
			case strings.HasPrefix(v, survives):
				sum.survive++
				fmt.Printf("%s: survives: %s\n", e.path, e.says)
			default:
				sum.killed++
			}
		}
	}
	fmt.Printf("%d of %d killed\n", sum.killed, sum.killed+sum.survive)
	if sum.survive > 0 {
		return fmt.Errorf("%d survive: each is a test that is missing, or code that can go", sum.survive)
	}
	return nil
}
