package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// watched starts the command with buffers that can be read meanwhile.
func watched(t *testing.T, env []string, args ...string) (cmd *exec.Cmd, stdout, stderr *lockedBuffer) {
	t.Helper()
	cmd, stdout, stderr = command(t, env, args...), new(lockedBuffer), new(lockedBuffer)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, stdout, stderr
}

func ends(t *testing.T, cmd *exec.Cmd, signal os.Signal, exit int) {
	t.Helper()
	if signal != nil {
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
	}
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != exit {
		t.Errorf("exit %d, want %d", got, exit)
	}
}

// terminate ends the command's connections, and reports how many there were.
func terminate(t *testing.T, pool *pgxpool.Pool, name string) (n int) {
	t.Helper()
	err := pool.QueryRow(t.Context(), `select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = $1 and datname = current_database()`, name).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestStatsRepeatUntilTheyAreInterrupted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		for _, args := range []string{"stats -every 20ms", "stats -every 20ms -json", "stats -every 1h"} {
			cmd, stdout, stderr := watched(t, on(pool), strings.Fields(args)...)
			eventually(t, args, func() bool {
				switch text := stdout.String(); {
				case strings.Contains(args, "1h"):
					return strings.Contains(text, "Transactions")
				case strings.Contains(args, "json"):
					return strings.Count(text, "\n") > 2
				default:
					return strings.Count(text, "Statistics at 2") > 2
				}
			})
			ends(t, cmd, signal, 0)
			if stderr.String() != "" {
				t.Errorf("%s: %s", args, stderr)
			}
			if strings.Contains(args, "json") {
				if all := objects(t, result{stdout: stdout.String()}); all[0]["now"] == all[1]["now"] || all[0]["keys"] != 0.0 {
					t.Errorf("%v", all)
				}
			} else if !strings.Contains(stdout.String(), "Z\nRecords\n") {
				t.Errorf("%s: %s", args, stdout)
			}
		}
	}
	if r := run(t, on(pool), "stats"); strings.Contains(r.stdout, "Statistics at") {
		t.Errorf("%+v", r)
	}
}

func TestStatsGoOnAfterALostConnection(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	name := pool.Config().ConnConfig.Database + "-stats"
	cmd, stdout, stderr := watched(t, append(on(pool), "PGAPPNAME="+name), "stats", "-every", "1200ms", "-json") // the pool would replace a connection that is idle for a second
	eventually(t, "a round", func() bool { return stdout.String() != "" })
	for round := 1; round <= 2; round++ {
		eventually(t, "a connection", func() bool { return terminate(t, pool, name) > 0 })
		eventually(t, "the report", func() bool { return strings.Count(stderr.String(), " idempotency: ") >= round })
		seen := strings.Count(stdout.String(), "\n")
		eventually(t, "the next round", func() bool { return strings.Count(stdout.String(), "\n") > seen })
	}
	ends(t, cmd, os.Interrupt, 0)
}

// The server is away for a while, as in a failover, and then there again.
func TestStatsGoOnWhenTheServerIsBack(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	cfg := pool.Config().ConnConfig
	network, address := pgconn.NetworkAddress(cfg.Host, cfg.Port)
	proxy := pgproxy.New(t, network, address)
	cmd, stdout, stderr := watched(t, []string{"DATABASE_URL=" + with(pool, "host", "127.0.0.1", "port", fmt.Sprint(proxy.Port()))}, "stats", "-every", "50ms", "-json")
	eventually(t, "a round", func() bool { return stdout.String() != "" })
	proxy.SetRule(func(pgproxy.Message) pgproxy.Verdict { return pgproxy.Drop })
	proxy.CutAll()
	eventually(t, "three reports", func() bool { return strings.Count(stderr.String(), "\n") >= 3 })
	proxy.SetRule(nil)
	seen := stdout.String()
	eventually(t, "the next round", func() bool { return len(stdout.String()) > len(seen) })
	ends(t, cmd, syscall.SIGTERM, 0)
}

func TestStatsLoopEndsWhereItWouldNotHelpToTryAgain(t *testing.T) {
	t.Parallel()
	run(t, nil, "stats", "-every", "1h", "-database", "postgres://u:s3cret@127.0.0.1:1/d").wantLine(t, 1, "cannot connect", "refused")
	for name, row := range map[string]struct{ sql, says string }{
		"missing": {"drop table idempotency_keys", "idempotency migrate up"},
		"view":    {"alter table idempotency_keys rename to hidden; create view idempotency_keys as select * from hidden", "is not a table"},
	} {
		pool := pgtest.New(t)
		cmd, stdout, stderr := watched(t, on(pool), "stats", "-every", "20ms", "-json")
		eventually(t, "a round", func() bool { return stdout.String() != "" })
		do(t, pool, row.sql)
		ends(t, cmd, nil, 1)
		lines := strings.Split(strings.TrimSpace(stderr.String()), "\n") // one before may be of a round in which it happened
		if last := lines[len(lines)-1]; len(lines) > 2 || !strings.HasPrefix(last, "idempotency: ") || !strings.Contains(last, row.says) {
			t.Errorf("%s: %s", name, stderr)
		}
	}
}

// One round that takes too long is not the end, and its time is not that of the loop.
func TestTimeoutOfTheStatsLoopIsForEachRound(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	cmd, stdout, stderr := watched(t, on(pool), "stats", "-every", "600ms", "-timeout", "3s", "-json")
	eventually(t, "more rounds than fit into the timeout", func() bool { return strings.Count(stdout.String(), "\n") >= 6 })
	if stderr.String() != "" {
		t.Error(stderr)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), "lock table idempotency_keys"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the report", func() bool { return strings.Contains(stderr.String(), "gave up after 3s (-timeout)") })
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen := stdout.String()
	eventually(t, "the next round", func() bool { return len(stdout.String()) > len(seen) })
	ends(t, cmd, os.Interrupt, 0)
}

func TestStatsLoopThatIsInterruptedInARoundEndsWell(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	begin(t, pool, "lock table idempotency_keys")
	name := pool.Config().ConnConfig.Database + "-stats"
	cmd, stdout, stderr := watched(t, append(on(pool), "PGAPPNAME="+name), "stats", "-every", "1h")
	eventually(t, "the round waits for the table", func() (waits bool) {
		_ = pool.QueryRow(t.Context(), "select exists (select from pg_stat_activity where application_name = $1 and wait_event_type = 'Lock')", name).Scan(&waits)
		return waits
	})
	ends(t, cmd, os.Interrupt, 0)
	if text := stdout.String() + stderr.String(); text != "" {
		t.Error(text)
	}
}
