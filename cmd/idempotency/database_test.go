package main_test

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestUnreachableDatabaseIsNamedWithAWayOut(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"up", "down -yes", "version"} {
		args := append([]string{"migrate"}, strings.Fields(command)...)
		const url = "postgres://user:s3cret@127.0.0.1:1/shop"
		run(t, nil, append(args, "-database", url)...).wantLine(t, 1, `database "shop" at 127.0.0.1:1`, `user "user"`, "refused", "check -database")
		run(t, []string{"DATABASE_URL=" + url}, args...).wantLine(t, 1, `database "shop" at 127.0.0.1:1`, "check DATABASE_URL")
		run(t, []string{"PGHOST=127.0.0.1", "PGPORT=1", "PGUSER=user", "PGPASSWORD=s3cret"}, args...).
			wantLine(t, 1, `database "user" at 127.0.0.1:1`, "set DATABASE_URL, or give -database URL")
	}
}

func TestFlagWinsOverTheEnvironment(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	env := []string{"DATABASE_URL=postgres://user@127.0.0.1:1/nowhere"}
	run(t, env, "migrate", "up", "-database", pgtest.URL(pool)).want(t, 0, "up to date\n", "")
}

func TestEnvironmentVariablesOfPostgresAreRead(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	cfg := pool.Config().ConnConfig
	env := []string{"PGHOST=" + cfg.Host, fmt.Sprint("PGPORT=", cfg.Port), "PGUSER=" + cfg.User, "PGPASSWORD=" + cfg.Password, "PGDATABASE=" + cfg.Database}
	run(t, env, "migrate", "up").want(t, 0, "up to date\n", "")
	run(t, on(pool), "migrate", "version").want(t, 0, latest()+"\n", "")
}

func TestServersRefusalIsReported(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	url := strings.Replace(pgtest.URL(pool), pool.Config().ConnConfig.Database, "no_such_database", 1)
	run(t, nil, "migrate", "up", "-database", url).wantLine(t, 1, "cannot connect", `database "no_such_database" does not exist`)
}

func TestSilentServerEndsWithTheTimeout(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	run(t, nil, "migrate", "up", "-timeout", "100ms", "-database", "postgres://u:s3cret@"+listener.Addr().String()+"/d").
		wantLine(t, 1, "gave up after 100ms (-timeout)", listener.Addr().String(), "no answer")
}

func TestUnencodedAtSignIsExplained(t *testing.T) {
	t.Parallel()
	run(t, nil, "migrate", "up", "-database", "postgres://u:a@s3cret@127.0.0.1:1/d").
		wantLine(t, 1, "cannot read -database", "%40")
}

// Also where the string is malformed, so that nobody can tell which part is the
// password.
func TestPasswordIsNeverPrinted(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"postgres://u:s3cret@127.0.0.1:1/d",
		"postgres://u:s3cret@127.0.0.1:1,127.0.0.1:2/d",
		"postgres://u:s3cret@127.0.0.1:1/d?sslmode=nonsense",
		"postgres://u:s3cret@127.0.0.1:1/d?pool_max_conns=many",
		"postgres://u:s3cret@127.0.0.1:x/d",
		"postgres://u:%s3cret@127.0.0.1:1/d",
		"postgres://u:a/s3cret@127.0.0.1:1/d",
		"postgres://u:a#s3cret@127.0.0.1:1/d",
		"postgres://u:a?s3cret@127.0.0.1:1/d",
		"postgres://u:12/s3cret@127.0.0.1:1/d",
		"postgres://u:a s3cret@127.0.0.1:1/d",
		"postgres://u:a@s3cret@127.0.0.1:1/d",
		"postgres://u:a@h,s3cret@127.0.0.1:1/d",
		"postgres://u:a`: s3cret@127.0.0.1:x/d",
		"postgres//u:s3cret@127.0.0.1:1/d",
		"u:s3cret@127.0.0.1:1/d",
		"host=127.0.0.1 port=1 user=u password=s3cret",
		"host=127.0.0.1 port=1 user=u password='s3cret",
		"host=127.0.0.1 port=x user=u password='a s3cret'",
		"host=127.0.0.1 port=1 user=u password=a s3cret",
		"password=s3cret=x host",
	} {
		for _, run := range []result{
			run(t, nil, "migrate", "up", "-timeout", "2s", "-database", url),
			run(t, []string{"DATABASE_URL=" + url}, "migrate", "down", "-timeout", "2s"),
		} {
			if run.exit == 0 || strings.Contains(run.stdout+run.stderr, "s3cret") {
				t.Errorf("%s: %+v", url, run)
			}
		}
	}
}

func TestPasswordInTheWrongPlaceIsNotPrinted(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"list", "postgres://u:s3cret@127.0.0.1:1/d"},
		{"postgres://u:s3cret@127.0.0.1:1/d", "doctor"},
		{"migrate", "up", "postgres://u:s3@cret/s3cret@127.0.0.1:1/d"},
		{"list", "-timeout", "postgres://u:s3cret@127.0.0.1:1/d"},
		{"list", "-after", "postgres://u:s3cret@127.0.0.1:1/d"},
		{"stats", "host=127.0.0.1 password='a s3cret' dbname=d"},
		{"stats", "postgres://127.0.0.1:1/d?user=u&password=s3cret"},
		{"get", "postgres://u:s3cret@127.0.0.1:1/d", "key"},
		{"get", "scope", "host=127.0.0.1 user=u password='a s3cret'", "-json"},
		{"delete", "-yes", "https://u:s3cret@127.0.0.1:1/d", "key"},
		{"list", "-scope", "postgres://u:s3cret@127.0.0.1:1/d"},
	} {
		r := run(t, nil, args...)
		if r.wantLine(t, 2, "DATABASE_URL"); strings.Contains(r.stderr, "s3cret") {
			t.Errorf("%v: %+v", args, r)
		}
	}
}

// The server quotes what it refuses.
func TestSettingThatTheServerRefusesIsNotPrinted(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	cfg := pool.Config().ConnConfig
	env := []string{"PGHOST=" + cfg.Host, fmt.Sprint("PGPORT=", cfg.Port), "PGUSER=" + cfg.User, "PGPASSWORD=" + cfg.Password, "PGDATABASE=" + cfg.Database}
	for _, setting := range []string{
		"PGOPTIONS=s3cret", "PGOPTIONS=-c s3cret", "PGOPTIONS=--s3cret=1", "PGOPTIONS=-c work_mem=s3cret", "PGOPTIONS=-s3cret", "PGTZ=<s3cret",
		"PGDATABASE=u:s3cret@h", "PGUSER=u:s3cret@h",
	} {
		r := run(t, append(env, setting), "migrate", "version")
		if r.exit == 0 || strings.Contains(r.stderr, "s3cret") {
			t.Errorf("%s: %+v", setting, r)
		}
	}
}
