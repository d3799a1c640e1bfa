package main

import (
	"cmp"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// folders are where packages of PostgreSQL put the server's binaries.
var folders = []string{
	"/usr/lib/postgresql/*/bin", // Debian, Ubuntu
	"/usr/pgsql-*/bin",          // Red Hat
	"/usr/local/pgsql/bin",      // built from source
	"/opt/homebrew/opt/postgresql*/bin",
	"/usr/local/opt/postgresql*/bin",
	"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
	"/Applications/Postgres.app/Contents/Versions/*/bin",
}

// findBinaries returns the folder that holds PostgreSQL's server binaries: the
// one that is set, else the first of PATH, pg_config's and the usual ones.
func findBinaries(set settings) (string, error) {
	if set.BinDir != "" {
		if !hasServer(set.BinDir) {
			return "", fmt.Errorf("no initdb and postgres in %s", set.BinDir)
		}
		return set.BinDir, nil
	}
	for _, dir := range candidates() {
		if hasServer(dir) {
			return dir, nil
		}
	}
	return "", errors.New("no initdb and postgres in PATH, in pg_config --bindir, or in the usual folders")
}

func candidates() []string {
	var dirs []string
	if postgres, err := exec.LookPath("postgres"); err == nil {
		// A link leads to where initdb is, too.
		if target, err := filepath.EvalSymlinks(postgres); err == nil {
			dirs = append(dirs, filepath.Dir(target))
		}
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	for _, pattern := range folders {
		found, _ := filepath.Glob(pattern) // fails on a bad pattern only
		slices.SortFunc(found, newestFirst)
		dirs = append(dirs, found...)
	}
	return dirs
}

var digits = regexp.MustCompile(`\d+`)

func newestFirst(a, b string) int { return cmp.Compare(major(b), major(a)) }

// major returns the PostgreSQL version in the name of a folder.
func major(dir string) int {
	n, _ := strconv.Atoi(digits.FindString(dir))
	return n
}

func hasServer(dir string) bool {
	for _, name := range []string{"initdb", "postgres"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}
