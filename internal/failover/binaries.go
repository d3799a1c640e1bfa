package failover

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// findBinaries returns the folder of PostgreSQL's server binaries: the one of
// TESTDB_BINDIR, else the first of PATH, pg_config's and the usual ones.
func findBinaries() (string, error) {
	if dir := os.Getenv("TESTDB_BINDIR"); dir != "" {
		if !hasServer(dir) {
			return "", fmt.Errorf("no initdb and postgres in %s (TESTDB_BINDIR)", dir)
		}
		return dir, nil
	}
	for _, dir := range candidates() {
		if hasServer(dir) {
			return dir, nil
		}
	}
	return "", errors.New("no initdb and postgres in PATH, in pg_config --bindir, or in the usual folders: " +
		"a failover needs PostgreSQL's server binaries on this machine: install them " +
		"(apt-get install postgresql, brew install postgresql), or name their folder in TESTDB_BINDIR")
}

func candidates() (dirs []string) {
	if postgres, err := exec.LookPath("postgres"); err == nil {
		// A link leads to where initdb is, too.
		if target, err := filepath.EvalSymlinks(postgres); err == nil {
			dirs = append(dirs, filepath.Dir(target))
		}
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", // Debian, Ubuntu
		"/usr/pgsql-*/bin",          // Red Hat
		"/usr/local/pgsql/bin",      // built from source
		"/opt/homebrew/opt/postgresql*/bin",
		"/usr/local/opt/postgresql*/bin",
		"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
		"/Applications/Postgres.app/Contents/Versions/*/bin",
	} {
		found, _ := filepath.Glob(pattern) // fails on a bad pattern only
		dirs = append(dirs, found...)
	}
	return dirs
}

func hasServer(dir string) bool {
	for _, name := range []string{"initdb", "postgres"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}
