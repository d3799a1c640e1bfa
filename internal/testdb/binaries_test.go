package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestNewestMajorFirst(t *testing.T) {
	dirs := []string{"/usr/lib/postgresql/9/bin", "/usr/lib/postgresql/18/bin", "/usr/lib/postgresql/17/bin"}
	slices.SortFunc(dirs, newestFirst)
	if dirs[0] != "/usr/lib/postgresql/18/bin" || dirs[2] != "/usr/lib/postgresql/9/bin" {
		t.Error(dirs)
	}
}

func TestVersionChoosesTheBinaries(t *testing.T) {
	t.Setenv("PATH", "")
	cache := t.TempDir()
	for dir, version := range map[string]string{
		"a": "postgres (PostgreSQL) 98.6 (Debian 98.6-1)",
		"b": "postgres (PostgreSQL) 99beta1",
	} {
		fakeServer(t, filepath.Join(cache, dir, "bin"), version)
	}
	for major, want := range map[int]string{98: "a/bin", 99: "b/bin", 97: "", 6: ""} {
		bin, err := findBinaries(settings{Version: major, Cache: cache})
		if (err == nil) != (want != "") || !strings.HasSuffix(bin, want) {
			t.Errorf("%d: %s, %v", major, bin, err)
		}
	}
	bin := filepath.Join(cache, "a/bin")
	if _, err := findBinaries(settings{Version: 99, BinDir: bin}); err == nil {
		t.Error("a folder with another version was accepted")
	}
}

// fakeServer makes binaries that say their version and can do nothing else.
func fakeServer(t *testing.T, dir, version string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"initdb", "postgres"} {
		script := "#!/bin/sh\necho '" + version + "'\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}
