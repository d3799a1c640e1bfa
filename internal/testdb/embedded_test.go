package main

import (
	"archive/zip"
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestEmbedded downloads from a repository on this machine, whose archive is made
// of this machine's PostgreSQL.
func TestEmbedded(t *testing.T) {
	t.Parallel()
	repository := serveArchive(t)
	download := []string{"-source", "embedded", "-repository", repository, "--"}

	p := prepare(t, append(download, "sh", "-c", "exit 3")...)
	p.setenv("XDG_CACHE_HOME", "/nonexistent")
	p.expect(t, 3, "PostgreSQL ", ", downloaded\n")

	killed := prepare(t, append(download, "sh", "-c", waiting)...)
	killed.setenv("XDG_CACHE_HOME", "/nonexistent")
	killed.start(t)
	killed.Process.Kill()
	killed.end(t)
}

// serveArchive serves PostgreSQL's binaries as the Maven artifacts of zonky.io
// have them, under every version: a zip file that holds a tar.xz.
func serveArchive(t *testing.T) (url string) {
	t.Helper()
	txz := archive(t)
	var jar bytes.Buffer
	w := zip.NewWriter(&jar)
	f, err := w.Create("postgres.txz")
	if err == nil {
		_, err = f.Write(txz)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, ".jar") {
			http.NotFound(w, r) // no checksum
			return
		}
		w.Write(jar.Bytes())
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// archive returns a tar.xz of this machine's PostgreSQL. The server looks for its
// libraries beside its binaries. Elsewhere than on Debian it does so for its
// shared files, too.
func archive(t *testing.T) []byte {
	t.Helper()
	bin, err := findBinaries(settings{})
	if err != nil {
		t.Skip("nothing to make an archive of: ", err)
	}
	prefix := filepath.Dir(bin)
	if _, err := os.Stat(filepath.Join(prefix, "lib", "dict_snowball.so")); err != nil {
		t.Skip("this PostgreSQL has no folder of its own: ", err)
	}
	args := []string{"-C", prefix, "-c", "-J", "--exclude=bitcode", "bin/initdb", "bin/pg_ctl", "bin/postgres", "lib"}
	if _, err := os.Stat(filepath.Join(prefix, "share")); err == nil {
		args = append(args, "share")
	}
	tar := exec.Command("tar", args...)
	tar.Env = append(os.Environ(), "XZ_OPT=-0")
	txz, err := tar.Output()
	if err != nil {
		t.Fatal("tar: ", err)
	}
	return txz
}
