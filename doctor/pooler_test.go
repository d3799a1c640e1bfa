package doctor_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// A function plays the pooler, by the process ids that the doctor gets, one after the other:
// of a connection of the pool; of one that has prepared a statement, of another in a
// transaction, and of the first again. Then it executes the statement.
func TestPoolerIsToldByTheSessionsItGives(t *testing.T) {
	t.Parallel()
	const session, transaction = "2000000001, 2000000002, 2000000003, 2000000002", "2000000001, 2000000002, 2000000003, 2000000004"
	for _, row := range []struct {
		pids, code string // of the error of a statement that the pooler has lost
		mode       pgx.QueryExecMode
		found      string
	}{
		{session, "", pgx.QueryExecModeCacheStatement, ""},
		{session, "", pgx.QueryExecModeDescribeExec, ""},
		{transaction, "", pgx.QueryExecModeCacheStatement, "note"},
		{transaction, "26000", pgx.QueryExecModeCacheStatement, "error note"},
		{transaction, "42P05", pgx.QueryExecModeCacheStatement, "error note"},
		{transaction, "22012", pgx.QueryExecModeCacheStatement, "note"},
		{transaction, "", pgx.QueryExecModeDescribeExec, "error note"},
		{transaction, "26000", pgx.QueryExecModeCacheDescribe, "note"},
	} {
		t.Run(fmt.Sprintf("%+v", row), func(t *testing.T) {
			t.Parallel()
			d := setup(t)
			cfg := d.played(`create sequence shim.asked; create function shim.pg_backend_pid() returns int security definer language plpgsql as $$
				declare n bigint := nextval('shim.asked');
				begin
					if n = 5 and '` + row.code + `' <> '' then raise exception using errcode = '` + row.code + `'; end if;
					return (array[` + row.pids + `])[n];
				end $$`).Config()
			cfg.ConnConfig.DefaultQueryExecMode = row.mode
			var open atomic.Int32
			dial := cfg.ConnConfig.DialFunc
			cfg.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := dial(ctx, network, address)
				if err != nil {
					return nil, err
				}
				open.Add(1)
				return &counted{conn, sync.OnceFunc(func() { open.Add(-1) })}, nil
			}
			cfg.BeforeConnect = func(_ context.Context, conn *pgx.ConnConfig) error {
				conn.RuntimeParams["search_path"] = "shim, pg_catalog, public"
				return nil
			}
			var looks atomic.Int32
			cfg.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
				path := "shim, pg_catalog, public"
				if looks.Add(1) == 1 { // a doctor that met it at once would look no further
					path = "public"
				}
				_, err := conn.Exec(ctx, "set search_path = "+path, pgx.QueryExecModeExec)
				return true, err
			}
			pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			var found []string
			for _, f := range d.check(pool, idempotency.Config{}) {
				if f.Check != "pooler" {
					t.Error(f)
				}
				found = append(found, string(f.Severity))
			}
			if got := strings.Join(found, " "); got != row.found {
				t.Errorf("found %q, want %q", got, row.found)
			}
			if stat := pool.Stat(); stat.TotalConns() != 1 || stat.AcquiredConns() != 0 {
				t.Fatalf("%d connections of the pool, of which %d are not given back", stat.TotalConns(), stat.AcquiredConns()) // Close would wait for these
			}
			pool.Close()
			if n := open.Load(); n != 0 { // a garbage collection would end them, too, at some time
				t.Errorf("%d connections were not closed", n)
			}
		})
	}
}

// A counted connection says when it is closed.
type counted struct {
	net.Conn
	closed func()
}

func (c *counted) Close() error {
	c.closed()
	return c.Conn.Close()
}

func TestPoolerThatBreaksPreparedStatementsIsFound(t *testing.T) {
	if os.Getenv("DATABASE_URL_DIRECT") == "" {
		t.Skip("needs a PgBouncer in front of the server: make test-pgbouncer")
	}
	t.Parallel()
	pool := pgtest.New(t)
	for mode, want := range map[pgx.QueryExecMode]doctor.Severity{
		pgx.QueryExecModeCacheStatement: doctor.Error,
		pgx.QueryExecModeDescribeExec:   doctor.Error,
		pgx.QueryExecModeCacheDescribe:  doctor.Note,
		pgx.QueryExecModeExec:           doctor.Note,
		pgx.QueryExecModeSimpleProtocol: doctor.Note,
	} {
		for range 3 { // what one check prepares does not mislead the next
			findings, err := doctor.Check(t.Context(), pgtest.Pool(t, pool, func(cfg *pgxpool.Config) {
				cfg.ConnConfig.DefaultQueryExecMode = mode
			}), idempotency.Config{})
			if err != nil {
				t.Fatal(err)
			}
			var found []doctor.Finding
			for _, f := range findings {
				if f.Check == "pooler" && f.Severity == want {
					found = append(found, f)
				} else if f.Check == "pooler" && want == doctor.Note {
					t.Errorf("%v: %s", mode, f)
				}
			}
			wants(t, found, want, "pooler")
		}
	}
}
