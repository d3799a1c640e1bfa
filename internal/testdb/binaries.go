package main

import (
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
// one that is set, else the first of PATH, pg_config's, the usual ones, and those
// downloaded before.
func findBinaries(set settings) (string, error) {
	wanted := "initdb and postgres"
	if set.Version != 0 {
		wanted += fmt.Sprint(" ", set.Version)
	}
	dirs, where := candidates(set), "PATH, in pg_config --bindir, in the usual folders, or in "+set.Cache
	if set.BinDir != "" {
		dirs, where = []string{set.BinDir}, set.BinDir
	}
	for _, dir := range dirs {
		if hasServer(dir) && (set.Version == 0 || serverMajor(dir) == set.Version) {
			return dir, nil
		}
	}
	return "", fmt.Errorf("no %s in %s", wanted, where)
}

func candidates(set settings) []string {
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
	for _, pattern := range append(folders, filepath.Join(set.Cache, "*", "bin")) {
		found, _ := filepath.Glob(pattern) // fails on a bad pattern only
		slices.SortFunc(found, newestFirst)
		dirs = append(dirs, found...)
	}
	return dirs
}

var digits = regexp.MustCompile(`\d+`)

func newestFirst(a, b string) int { return slices.Compare(numbers(b), numbers(a)) }

// numbers are those in the text, and 0.
func numbers(text string) (list []int) {
	for _, s := range digits.FindAllString(text, -1) {
		n, _ := strconv.Atoi(s)
		list = append(list, n)
	}
	return append(list, 0)
}

// serverMajor is the major version of the server in dir, or 0.
func serverMajor(dir string) int {
	out, _ := exec.Command(filepath.Join(dir, "postgres"), "--version").Output()
	return numbers(string(out))[0]
}

func hasServer(dir string) bool {
	for _, name := range []string{"initdb", "postgres"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}
