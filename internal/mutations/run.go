package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// A runner runs tests on broken code. The checkout stays as it is: the go command reads
// the broken file in the place of the true one (-overlay), also where a test builds a
// program.
type runner struct {
	top     string        // of the repository
	dir     string        // for the broken file
	limit   time.Duration // for the tests of a package; 0: by what they take without a mutation
	pattern string        // of the tests to run; all by default
	took    time.Duration // without a mutation
}

var errNotBuilt = errors.New("does not build")

// try breaks the code, runs the tests, first the one that is known to fail, and returns
// the verdict.
func (r *runner) try(ctx context.Context, e edit, tests []string, known string) (string, error) {
	source, err := os.ReadFile(filepath.Join(r.top, e.path))
	if err != nil {
		return "", err
	}
	broken, overlay := filepath.Join(r.dir, filepath.Base(e.path)), filepath.Join(r.dir, "overlay.json")
	places, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(r.top, e.path): broken}})
	if err != nil {
		return "", err
	}
	if err := errors.Join(os.WriteFile(broken, e.apply(source), 0o644), os.WriteFile(overlay, places, 0o644)); err != nil {
		return "", err
	}
	if test, folder, ok := killer(known); ok && r.pattern == "" {
		verdict, err := r.test(ctx, cmp.Or(folder, tests[0]), "^"+regexp.QuoteMeta(test)+"$", "-overlay="+overlay)
		if verdict != "" || err != nil {
			return within(folder, verdict), err
		}
	}
	for _, folder := range tests {
		verdict, err := r.test(ctx, folder, r.pattern, "-overlay="+overlay)
		if len(tests) == 1 {
			folder = ""
		}
		if verdict != "" || err != nil {
			return within(folder, verdict), err
		}
	}
	return survives + "no test fails", nil
}

// within names the folder of the test in a verdict.
func within(folder, verdict string) string {
	for _, kind := range []string{killed, hangs} {
		if test, ok := strings.CutPrefix(verdict, kind); ok && folder != "" {
			return kind + folder + "." + test
		}
	}
	return verdict
}

// healthy fails if the tests fail on the code as it is: anything would then kill a mutation.
func (r *runner) healthy(ctx context.Context, tests []string) error {
	begun := time.Now()
	for _, folder := range tests {
		verdict, err := r.test(ctx, folder, r.pattern, "")
		switch {
		case err != nil:
			return fmt.Errorf("the tests of %s cannot be run: %w", folder, err)
		case verdict != "":
			return fmt.Errorf("the tests of %s fail without a mutation: %s", folder, verdict)
		}
	}
	r.took = time.Since(begun)
	return nil
}

// test runs the tests of a folder, up to the first that fails, and returns "" if none does.
func (r *runner) test(ctx context.Context, folder, pattern, flags string) (string, error) {
	limit := cmp.Or(r.limit, max(10*time.Minute, 5*r.took)) // the machine can be busy
	cmd := exec.CommandContext(ctx, "go", "test", "-json", "-vet=off", "-count=1", "-failfast", "-timeout", limit.String(), "-run", pattern, ".")
	cmd.Dir = filepath.Join(r.top, folder)
	cmd.Env = append(os.Environ(), "GOFLAGS="+strings.TrimSpace(os.Getenv("GOFLAGS")+" "+flags))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err == nil {
		return "", nil
	}
	return judge(out, stderr.String())
}

// running is what the testing package says of a test that does not end.
var running = regexp.MustCompile(`^\t\t(\w+)[ /]`)

// judge finds the first test that failed in the output of go test -json.
func judge(out []byte, stderr string) (verdict string, err error) {
	var failed, begun, compiler string
	ran, late := false, false
	for line := range bytes.Lines(out) {
		var event struct{ Action, Test, Output, FailedBuild string }
		if json.Unmarshal(line, &event) != nil {
			continue
		}
		test, _, _ := strings.Cut(event.Test, "/")
		switch event.Action {
		case "start":
			ran = true
		case "run":
			begun = test
		case "build-output":
			compiler += event.Output
		case "fail":
			failed = cmp.Or(failed, test)
			ran = ran && event.FailedBuild == ""
		case "output":
			late = late || strings.HasPrefix(event.Output, "panic: test timed out")
			if found := running.FindStringSubmatch(event.Output); late && found != nil {
				return hangs + found[1], nil
			}
		}
	}
	if !ran {
		return "", fmt.Errorf("%w: %s%s", errNotBuilt, compiler, stderr)
	}
	// What ends the process outside of any test is seen in the last one that has begun.
	return killed + cmp.Or(failed, begun, "TestMain"), nil
}
