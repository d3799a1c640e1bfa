package doctor_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
)

// played returns a pool for one check, whose sessions see the functions and relations that
// sql makes in schema shim before those of PostgreSQL. So a test can say what a server's
// settings and statistics are.
func (d *database) played(sql string, params ...string) *pgxpool.Pool {
	d.Helper()
	d.exec("drop schema if exists shim cascade; create schema shim; grant usage on schema shim to " + d.role + "; " + sql +
		"; grant select on all tables in schema shim to " + d.role)
	cfg := d.pool(params...).Config()
	var looks atomic.Int32
	cfg.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
		if looks.Add(1) == 1 { // a doctor that met it at once would look no further
			return true, nil
		}
		_, err := conn.Exec(ctx, "set search_path = shim, pg_catalog, public")
		return true, err
	}
	pool, err := pgxpool.NewWithConfig(d.Context(), cfg)
	if err != nil {
		d.Fatal(err)
	}
	d.Cleanup(pool.Close)
	return pool
}

// setting plays a server on which a setting has a value.
func setting(name, value string) string {
	return `create function shim.current_setting(name text) returns text language sql as $$
		select case when name = '` + name + `' then '` + value + `' else pg_catalog.current_setting(name) end $$`
}

// followers plays a server with so many standbys.
func followers(n int, settings string) string {
	return fmt.Sprintf("create view shim.pg_stat_replication as select from generate_series(1, %d); ", n) + settings
}

func TestWhatIsWrongWithTheServerIsFoundAndItsOppositeIsHealthy(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name     string
		sql      string
		params   []string
		severity doctor.Severity // empty: healthy
		check    string
		says     []string
	}{
		{"standby", "create function shim.pg_is_in_recovery() returns bool language sql as 'select true'", nil, doctor.Error, "primary", []string{"a standby", "target_session_attrs=read-write"}},
		{"primary", "create function shim.pg_is_in_recovery() returns bool language sql as 'select false'", nil, "", "", nil},
		{"fsync off", setting("fsync", "off"), nil, doctor.Error, "fsync", []string{"fsync is off", "set fsync = on; select pg_reload_conf()"}},
		{"fsync on", setting("fsync", "on"), nil, "", "", nil},
		{"torn pages", setting("full_page_writes", "off"), nil, doctor.Warning, "full_page_writes", []string{"torn pages", "set full_page_writes = on; select pg_reload_conf()"}},
		{"whole pages", setting("full_page_writes", "on"), nil, "", "", nil},
		{"one standby", followers(1, setting("synchronous_standby_names", "")), nil, doctor.Note, "standbys", []string{"1 standbys follow", "set synchronous_standby_names"}},
		{"no standby", followers(0, setting("synchronous_standby_names", "")), nil, "", "", nil},
		{"synchronous standby", followers(1, setting("synchronous_standby_names", "b")), nil, "", "", nil},
		{"commits that wait here only", setting("synchronous_standby_names", "b"), []string{"synchronous_commit", "local"}, doctor.Warning, "synchronous_commit", []string{"is local", "set synchronous_commit = on, at least for this role: alter role "}},
		{"commits that wait here, and no standby", setting("synchronous_standby_names", ""), []string{"synchronous_commit", "local"}, "", "", nil},
		{"commits that wait for the standby's memory", setting("synchronous_standby_names", "b"), []string{"synchronous_commit", "remote_write"}, "", "", nil},
		{"autovacuum off", setting("autovacuum", "off"), nil, doctor.Warning, "autovacuum", []string{"off on this server", "set autovacuum = on; alter system set track_counts = on; select pg_reload_conf()"}},
		{"no statistics", setting("track_counts", "off"), nil, doctor.Warning, "autovacuum", []string{"off on this server", "set autovacuum = on; alter system set track_counts = on; select pg_reload_conf()"}},
		{"autovacuum on", setting("autovacuum", "on"), nil, "", "", nil},
		{"keepalives of a Unix socket", "create function shim.inet_client_addr() returns inet language sql as 'select null::inet'", []string{"tcp_keepalives_idle", "7200"}, "", "", nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			d := setup(t)
			findings := d.check(d.played(row.sql, row.params...), idempotency.Config{})
			if row.severity == "" {
				healthy(t, findings)
				return
			}
			wants(t, findings, row.severity, row.check, row.says...)
		})
	}
}

// The limit of the keepalives is ten minutes, after which the key of a machine that is gone
// is free.
func TestSilenceOfTenMinutesIsHealthyAndOneSecondMoreIsNot(t *testing.T) {
	t.Parallel()
	d := setup(t)
	keepalives := func(idle, interval, count string) *pgxpool.Pool {
		return d.pool("tcp_keepalives_idle", idle, "tcp_keepalives_interval", interval, "tcp_keepalives_count", count)
	}
	for _, row := range []struct{ idle, interval, count, after string }{
		{"540", "10", "6", ""},
		{"541", "10", "6", "10m1s"},
		{"60", "108", "5", ""},
		{"61", "108", "5", "10m1s"},
	} {
		pool := keepalives(row.idle, row.interval, row.count)
		if pool.Config().ConnConfig.Host[0] == '/' {
			t.Skip("a Unix socket has no keepalives")
		}
		findings := d.check(pool, idempotency.Config{})
		if row.after == "" {
			healthy(t, findings)
			continue
		}
		wants(t, findings, doctor.Warning, "tcp keepalives", "after "+row.after, "idle "+row.idle, "tcp_keepalives_idle = 60, tcp_keepalives_interval = 10 and tcp_keepalives_count = 6")
	}
}

// A setting of the table counts before that of the server.
func TestDeadRowsJustUnderTheLimitAreHealthy(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		rows, dead        int
		threshold, factor string // of the table, if they are set there
		found             bool
	}{
		// More than 10,000, which one purge leaves, and more than five times what calls for
		// autovacuum: by default 50 rows and a fifth of the table.
		{0, 10_000, "", "", false},
		{0, 10_001, "", "", true},
		{1000, 10_001, "2000", "0", true},
		{1000, 10_001, "2001", "0", false},
		{1000, 10_005, "2001", "0", false},
		{1000, 10_006, "2001", "0", true},
		{20_000, 20_250, "", "", false},
		{20_000, 20_251, "", "", true},
		{20_000, 10_250, "", "0.1", false},
		{20_000, 10_251, "", "0.1", true},
		{20_000, 20_005, "1", "", false},
		{20_000, 20_006, "1", "", true},
	} {
		t.Run(fmt.Sprintf("%+v", row), func(t *testing.T) {
			t.Parallel()
			d := setup(t)
			d.exec(fmt.Sprintf("update pg_class set reltuples = %d where oid = 'idempotency_keys'::regclass", row.rows))
			if row.threshold != "" {
				d.exec("alter table idempotency_keys set (autovacuum_vacuum_threshold = " + row.threshold + ")")
			}
			if row.factor != "" {
				d.exec("alter table idempotency_keys set (autovacuum_vacuum_scale_factor = " + row.factor + ")")
			}
			pool := d.played(fmt.Sprintf(`create view shim.pg_stat_user_tables as
				select relid, %d::bigint as n_dead_tup, '2026-01-02 03:04:05Z'::timestamptz as last_autovacuum from pg_catalog.pg_stat_user_tables`, row.dead))
			findings := d.check(pool, idempotency.Config{})
			if !row.found {
				healthy(t, findings)
				return
			}
			wants(t, findings, doctor.Warning, "dead rows", fmt.Sprintf("about %d dead rows", row.dead), "last autovacuum: 2026-01-02T03:04:05Z")
		})
	}
}

// What another database's sessions see holds nothing back here, and neither does autovacuum
// itself; a standby's feedback does, wherever it is connected to.
func TestOldestSnapshotIsOneThatHoldsBackThisDatabase(t *testing.T) {
	t.Parallel()
	const session = "(12, current_database(), 'client backend', '4', null)"
	for oldest, row := range map[string]struct{ sessions, prepared, slots, held string }{
		"this database":    {sessions: "(11, current_database(), 'client backend', '3', '2026-01-02 03:04:05Z'), " + session, held: "process 11, in its transaction since 2026-01-02T03:04:05Z"},
		"another database": {sessions: "(11, 'elsewhere', 'client backend', '3', null), " + session, held: "process 12"},
		"autovacuum":       {sessions: "(11, current_database(), 'autovacuum worker', '3', null), " + session, held: "process 12"},
		"the doctor":       {sessions: "(pg_backend_pid(), current_database(), 'client backend', '3', null), " + session, held: "process 12"},
		"a standby":        {sessions: "(11, null, 'walsender', '3', null), " + session, held: "process 11"},
		"nobody":           {sessions: "(11, current_database(), 'client backend', null, null)"},
		"prepared":         {sessions: session, prepared: "('3', 'left', current_database())", held: "the prepared transaction left"},
		"prepared there":   {sessions: session, prepared: "('3', 'left', 'elsewhere')", held: "process 12"},
		"a slot":           {sessions: session, slots: "('replica', '3', null)", held: "the replication slot replica"},
		"a logical slot":   {sessions: session, slots: "('changes', null, '3')", held: "process 12"}, // holds back the catalog alone
	} {
		t.Run(oldest, func(t *testing.T) {
			t.Parallel()
			d := setup(t)
			pool := d.played(`create view shim.pg_stat_user_tables as select relid, 10001::bigint as n_dead_tup, null::timestamptz as last_autovacuum from pg_catalog.pg_stat_user_tables;
				create view shim.pg_stat_activity as select pid::int, datname::name, backend_type::text, backend_xmin::text::xid, xact_start::timestamptz
					from (values ` + row.sessions + `) x (pid, datname, backend_type, backend_xmin, xact_start);
				create view shim.pg_prepared_xacts as select transaction::text::xid, gid, database::name
					from (values ` + cmp.Or(row.prepared, "(null, '', '')") + `) x (transaction, gid, database);
				create view shim.pg_replication_slots as select slot_name::name, xmin::text::xid, catalog_xmin::text::xid
					from (values ` + cmp.Or(row.slots, "('', null, null)") + `) x (slot_name, xmin, catalog_xmin)`)
			findings := d.check(pool, idempotency.Config{})
			wants(t, findings, doctor.Warning, "dead rows", "last autovacuum: never", row.held)
			if row.held == "" && len(findings) == 1 && strings.Contains(findings[0].Found, "held by") {
				t.Error(findings[0])
			}
		})
	}
}

func TestRecordsThatExpiredWithinADayAreHealthy(t *testing.T) {
	t.Parallel()
	d := setup(t)
	expired := func(ago, purgeAfter string) {
		d.exec("delete from idempotency_keys; insert into idempotency_keys (id, scope, completed_at, expires_at, purge_after) values ('i', 's', now(), now() - interval '" + ago + "', now() - interval '" + purgeAfter + "')")
	}
	expired("23 hours 59 minutes", "73 hours")
	healthy(t, d.check(d.pool(), idempotency.Config{}))
	expired("24 hours 1 minute", "1 minute")
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Warning, "purge", "expired 24 hours ago")
	expired("73 hours", "-1 minute") // no purge would delete it yet
	healthy(t, d.check(d.pool(), idempotency.Config{}))
	expired("-1 minute", "73 hours")
	healthy(t, d.check(d.pool(), idempotency.Config{}))
	d.exec("update idempotency_keys set expires_at = '-infinity', purge_after = now()")
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Warning, "purge", "is still there")
}

// The oldest is the first of the purge's index, whichever expired first.
func TestFirstRecordThatAPurgeWouldDeleteIsTheOneThatIsSaid(t *testing.T) {
	t.Parallel()
	d := setup(t)
	d.exec(`insert into idempotency_keys (id, scope, completed_at, expires_at, purge_after) values
		('a', 's', now(), now() - interval '30 hours 1 minute', now() - interval '1 hour'),
		('b', 's', now(), now() - interval '40 hours 1 minute', now() - interval '2 hours'),
		('c', 's', now(), now() - interval '50 hours 1 minute', now() - interval '1 hour')`)
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Warning, "purge", "expired 40 hours ago")
}

// The doctor asks its clock before and after it asks the server's, so a clock that a test
// moves by itself has an exact round trip. What the test takes in between only makes the
// first clock later behind, and no earlier.
func TestClocksLessThanTwoSecondsApartAreHealthy(t *testing.T) {
	t.Parallel()
	d := setup(t)
	for _, row := range []struct {
		by, trip time.Duration
		apart    string // empty: healthy
	}{
		{-time.Minute, 0, "is 1m"},
		{time.Minute, 0, "is 1m"},
		{-2001 * time.Millisecond, 0, "s apart"},
		{1999 * time.Millisecond, 0, ""},
		{0, 10 * time.Second, ""},                // half of a slow round trip is no difference
		{6900 * time.Millisecond, 0, "s apart"},  // but the same difference without one is
		{-5 * time.Second, 10 * time.Second, ""}, // the middle of the trip is now
		{-12001 * time.Millisecond, 10 * time.Second, "s apart"},
		{-40 * time.Second, time.Minute, ""}, // 10 s apart, of which the trip can be 30
	} {
		var asked time.Time
		clock := func() time.Time {
			if asked.IsZero() {
				asked = time.Now().Add(row.by)
				return asked
			}
			return asked.Add(row.trip)
		}
		findings, err := doctor.CheckAt(t.Context(), d.pool(), idempotency.Config{}, clock)
		if err != nil {
			t.Fatal(err)
		}
		if row.apart == "" {
			healthy(t, findings)
			continue
		}
		wants(t, findings, doctor.Note, "clock", row.apart, "NTP")
	}
}

func TestOnlyATableOfAnotherSchemaIsOffered(t *testing.T) {
	t.Parallel()
	d := setup(t)
	d.exec(`alter table idempotency_keys rename to other; create schema b; create view b.idempotency_keys as select 1 as a`)
	findings := d.check(d.pool(), idempotency.Config{})
	wants(t, findings, doctor.Error, "table", "no table idempotency_keys along the search_path, ")
	if want := `run "idempotency migrate up" or migrations.Up on this database and schema`; len(findings) == 1 && findings[0].Remedy != want {
		t.Errorf("remedy %q, want %q", findings[0].Remedy, want)
	}
	d.exec(`create schema c; create table c.idempotency_keys (a int) partition by hash (a); create schema d; create table d.idempotency_keys (a int)`)
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Error, "table", `there is one in schema "c"`)
}

func TestContextThatHasEndedIsTheErrorAndWhatWasFoundIsReturned(t *testing.T) {
	t.Parallel()
	d := setup(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	findings, err := doctor.CheckAt(ctx, d.pool("idle_in_transaction_session_timeout", "0"), idempotency.Config{}, func() time.Time {
		cancel() // the last check is that of the clocks
		return time.Now()
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	wants(t, findings, doctor.Note, "idle timeout", "DoTx")
}
