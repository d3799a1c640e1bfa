package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// check does what a user does after a release: in empty modules, outside of the
// repository and without any replace, it runs the commands of the pages and the
// programs that they show first. What is released is what is in the checkout.
func check(ctx context.Context, root, databaseURL string, out io.Writer) (err error) {
	r, err := openRepository(ctx, root)
	if err != nil {
		return err
	}
	version, err := r.released()
	if err := errors.Join(err, r.borrowed()); err != nil {
		return err
	}
	pages, err := r.readPages()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "release-check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c := &checker{repository: r, version: version, dir: dir, databaseURL: databaseURL, out: out, got: make(map[string]bool)}
	if err := r.publish(c.proxy(), version); err != nil {
		return err
	}
	if c.env, err = c.environment(ctx); err != nil {
		return err
	}
	for _, p := range pages {
		if err := c.follow(ctx, p); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return errors.Join(c.missing(), c.runPrograms(ctx))
}

type checker struct {
	*repository
	version     string
	dir         string // of all that is made
	databaseURL string
	env         []string
	out         io.Writer
	got         map[string]bool // modules that a page has fetched
}

func (c *checker) proxy() string { return filepath.Join(c.dir, "proxy") }

// environment is that of somebody who has Go, and a module cache with nothing in
// it: a version that is only tried out must not stay in the user's. Other modules
// come from where they usually do.
func (c *checker) environment(ctx context.Context) ([]string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOPROXY", "GONOSUMDB").Output()
	if err != nil {
		return nil, err
	}
	usual := strings.Split(string(out), "\n")
	return append(os.Environ(),
		"GOPROXY=file://"+c.proxy()+","+usual[0],
		"GONOPROXY=none",
		"GONOSUMDB="+strings.Trim(c.path+","+usual[1], ","),
		"GOMODCACHE="+filepath.Join(c.dir, "modules"),
		"GOBIN="+filepath.Join(c.dir, "bin"),
		"GOFLAGS=-modcacherw", // so that it can be removed
		"GOWORK=off",
	), nil
}

// follow does what a page says.
func (c *checker) follow(ctx context.Context, p page) error {
	dir := filepath.Join(c.dir, "pages", strings.ReplaceAll(p.name, "/", "_"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	database, drop, err := c.newDatabase(ctx)
	if err != nil {
		return err
	}
	defer drop()
	if len(p.gets) > 0 {
		if err := c.build(ctx, p, dir, database); err != nil {
			return err
		}
	}
	for _, command := range p.tools {
		if _, err := c.sh(ctx, c.dir, database, command); err != nil {
			return err
		}
	}
	return nil
}

// build fetches what the page says, and builds and runs its program. Nothing may
// be missing before go mod tidy, and nothing be wrong after it.
func (c *checker) build(ctx context.Context, p page, dir, database string) error {
	file, run := "main.go", "go run ."
	if !strings.HasPrefix(p.program, "package main\n") {
		file, run = "page_test.go", "go test -count=1 ."
	}
	if err := os.WriteFile(filepath.Join(dir, file), []byte(p.program), 0o644); err != nil {
		return err
	}
	for _, command := range append([]string{"go mod init example.com/shop"}, p.gets...) {
		if _, err := c.sh(ctx, dir, database, command); err != nil {
			return err
		}
	}
	printed, err := c.sh(ctx, dir, database, run)
	if err != nil {
		return err
	}
	if p.output != "" && printed != p.output {
		return fmt.Errorf("the program prints\n%s\nand the page says\n%s", printed, p.output)
	}
	if _, err := c.sh(ctx, dir, database, "go mod tidy && go vet ./..."); err != nil {
		return err
	}
	required, err := c.sh(ctx, dir, database, "go list -m -f '{{.Path}} {{.Version}}' all")
	if err != nil {
		return err
	}
	for line := range strings.Lines(required) {
		if path, version, _ := strings.Cut(strings.TrimSpace(line), " "); c.owns(path) {
			c.got[path] = true
			if version != c.version {
				return fmt.Errorf("its module requires %s %s, and not %s", path, version, c.version)
			}
		}
	}
	return nil
}

// missing names the public modules that no page has fetched.
func (c *checker) missing() error {
	var errs []error
	for _, m := range c.public() {
		if !c.got[m.path] {
			errs = append(errs, fmt.Errorf("no page with a program says: go get %s", m.path))
		}
	}
	return errors.Join(errs...)
}

// runPrograms asks each program of the public modules for its version.
func (c *checker) runPrograms(ctx context.Context) error {
	for _, m := range c.public() {
		dirs, err := filepath.Glob(filepath.Join(c.root, m.dir, "cmd", "*"))
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			program := path.Join(m.path, "cmd", filepath.Base(dir)) + "@" + c.version
			printed, err := c.sh(ctx, c.dir, "", "go run "+program+" -version")
			if err != nil {
				return err
			}
			if !strings.Contains(printed, " "+c.version+" ") {
				return fmt.Errorf("%s -version prints %q", program, printed)
			}
		}
	}
	return nil
}

// sh runs a command as the page's reader does, and returns what it prints.
func (c *checker) sh(ctx context.Context, dir, database, command string) (string, error) {
	fmt.Fprintln(c.out, "$", command)
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Dir, cmd.Env = dir, append(c.env, "DATABASE_URL="+database, "TEST_DATABASE_URL="+database)
	var errs strings.Builder
	cmd.Stderr = &errs
	printed, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", command, err, printed, errs.String())
	}
	return string(printed), nil
}

// newDatabase makes an empty database, and returns its URL.
func (c *checker) newDatabase(ctx context.Context) (url string, drop func(), err error) {
	cfg, err := pgx.ParseConfig(c.databaseURL)
	if err != nil {
		return "", nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return "", nil, err
	}
	name := fmt.Sprintf("release_check_%d_%d", os.Getpid(), conn.PgConn().PID())
	if _, err := conn.Exec(ctx, "create database "+name); err != nil {
		return "", nil, errors.Join(err, conn.Close(ctx))
	}
	drop = func() {
		ctx := context.WithoutCancel(ctx)
		if _, err := conn.Exec(ctx, "drop database "+name+" with (force)"); err != nil {
			fmt.Fprintln(c.out, "release:", err)
		}
		conn.Close(ctx)
	}
	return pgtest.OnDatabase(c.databaseURL, name), drop, nil
}
