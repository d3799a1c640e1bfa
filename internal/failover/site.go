package failover

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/migrations"
)

// A site is what all servers of a run share: the binaries, the user they run as,
// and the data of a server that was stopped, of which primaries and standbys are
// copies.
type site struct {
	bin, dir string
	password string // of the superuser
	as       account
	servers  atomic.Int64
	template func() (data string, err error)
}

var here *site

// Main runs the tests of a package and then removes what they started. Its caller
// returns afterwards.
func Main(m *testing.M) {
	if dir := os.Getenv(janitorEnv); dir != "" {
		os.Exit(janitor(dir))
	}
	clean, err := settle()
	if err != nil {
		fmt.Fprintln(os.Stderr, "failover:", err)
		os.Exit(1)
	}
	flag.Parse()
	parallel := flag.Lookup("test.parallel")
	if n, err := strconv.Atoi(parallel.Value.String()); err == nil && n < 4 {
		parallel.Value.Set("4") // on few processors, too: these tests mostly wait
	}
	code := m.Run()
	if err := clean(); err != nil {
		code = max(code, 1)
	}
	os.Exit(code)
}

// settle makes the site of this process.
func settle() (clean func() error, err error) {
	bin, err := findBinaries()
	if err != nil {
		return nil, err
	}
	as, err := ordinaryAccount()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "failover-*.run") // no such name is the beginning of another
	if err != nil {
		return nil, err
	}
	clean, err = hireJanitor(dir)
	if err != nil {
		os.Remove(dir)
		return nil, err
	}
	here = &site{bin: bin, dir: dir, password: rand.Text(), as: as}
	here.template = sync.OnceValues(here.makeTemplate)
	return clean, as.own(dir)
}

// command prepares a command that runs as the site's user.
func (s *site) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = s.dir // the current one may be closed to that user
	// The password is for the standby's connection to the primary.
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PGPASSWORD="+s.password)
	s.as.run(cmd)
	return cmd
}

// copyData copies the data of a stopped server.
func (s *site) copyData(from, to string) error {
	if out, err := s.command("cp", "-Rp", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, out)
	}
	return nil
}

// schema is what the tests write: one row for each execution, whatever the key,
// so that a second one would be seen. The role that runs them is an ordinary one.
const schema = `
create table executions (id uuid primary key default gen_random_uuid(), key text not null);
create role app login;
grant select, insert on executions to app;
grant select, insert, update, delete on idempotency_keys, idempotency_operations to app;`

// makeTemplate makes the data that the servers begin with.
func (s *site) makeTemplate() (data string, err error) {
	passwordFile := filepath.Join(s.dir, "password")
	if err := s.as.write(passwordFile, s.password); err != nil {
		return "", err
	}
	server := s.newServer("template")
	out, err := s.command(filepath.Join(s.bin, "initdb"), "--pgdata="+server.data, "--username=postgres",
		"--auth=scram-sha-256", "--pwfile="+passwordFile, "--encoding=UTF8", "--locale=C",
		"--wal-segsize=1", "--no-sync").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("initdb: %w: %s", err, out)
	}
	if err := server.start(); err != nil {
		return "", err
	}
	if err := s.fill(server); err != nil {
		return "", err
	}
	return server.data, server.stop()
}

func (s *site) fill(server *Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	pool, err := pgxpool.New(ctx, server.dsn())
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := migrations.Up(ctx, pool, ""); err != nil {
		return err
	}
	_, err = pool.Exec(ctx, schema)
	return err
}
