package main_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func expiredRows(t *testing.T, pool *pgxpool.Pool, n int) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after)
		select i::text, 'expired', '1', now(), now(), now() from generate_series(1, $1::int) i`, n); err != nil {
		t.Fatal(err)
	}
}

func left(t *testing.T, pool *pgxpool.Pool) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), "select count(*) from idempotency_keys").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestPurgeOnceDeletesWhatHasExpired(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "live", "i", 1)
	run(t, on(pool), "purge", "-once").want(t, 0, "0 expired records deleted\n", "")
	expiredRows(t, pool, 2500)
	run(t, on(pool), "purge", "-once").want(t, 0, "2,500 expired records deleted\n", "")
	if n := left(t, pool); n != 1 {
		t.Errorf("%d left", n)
	}
}

func TestInterruptedPurgeSaysWhatItHasDeleted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	expiredRows(t, pool, 30_000)
	cmd := command(t, on(pool), "purge", "-once")
	wait := start(t, cmd)
	eventually(t, "the first batch", func() bool { return left(t, pool) < 30_000 })
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	wait().wantLine(t, 1, "interrupted: ", "000 expired records deleted, then: ")
	if n := left(t, pool); n == 0 {
		t.Error("it was not interrupted")
	}
}

func TestPurgeLoopGoesOnUntilItIsInterrupted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	cmd, stdout, stderr := watched(t, on(pool), "purge", "-every", "50ms")
	purged := func(rounds int) {
		t.Helper()
		eventually(t, "the report of a purge", func() bool { return strings.Count(stdout.String(), " expired records deleted in ") >= rounds })
		if n := left(t, pool); n != 0 {
			t.Errorf("%d records left", n)
		}
	}
	for i := range 2 {
		expiredRows(t, pool, 1500)
		purged(i + 1)
	}
	// A connection that is lost does not end it.
	do(t, pool, `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'idempotency' and datname = current_database()`)
	expiredRows(t, pool, 10)
	purged(3)
	ends(t, cmd, os.Interrupt, 0)
	if said := stderr.String(); !strings.Contains(said, "purging every 50ms") || !strings.Contains(said, "interrupted after 3,010 deleted records") {
		t.Errorf("%s%s", stdout, stderr)
	}
}

func TestPurgeLoopEndsWhenTheTableIsGoneAndSaysItOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	wait := start(t, command(t, on(pool), "purge", "-every", "50ms"))
	expiredRows(t, pool, 10)
	eventually(t, "the purge", func() bool { return left(t, pool) == 0 })
	do(t, pool, "drop table idempotency_keys")
	r := wait()
	if r.exit != 1 || strings.Count(r.stderr, "migrate up") != 1 || !strings.HasSuffix(r.stderr, "the loop has ended, because to try again would not help\n") {
		t.Errorf("%+v", r)
	}
}

func TestPurgeLoopRunsNothingThatAStrangerPutsOnTheTableMeanwhile(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	purge := command(t, on(pool), "purge", "-every", "50ms")
	wait := start(t, purge)
	expiredRows(t, pool, 10)
	eventually(t, "the purge", func() bool { return left(t, pool) == 0 })
	who := stranger(t, pool)
	// The rows are locked until the loop has ended, so that the trigger meets none of them in
	// a transaction that has looked at the table just before there was a trigger. The loop of
	// a command that does not look again meets them in the end.
	do(t, pool, "insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after) select i::text, 's', '1', now(), t, t from generate_series(1, 10) i, (select now() + interval '5 seconds') x (t)")
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "select from idempotency_keys for update"); err != nil {
		t.Fatal(err)
	}
	do(t, pool, `create function run() returns trigger language plpgsql as $$ begin raise exception 'theirs runs'; end $$; alter function run() owner to `+who+`;
		create trigger t before delete on idempotency_keys for each row execute function run()`)
	released := time.AfterFunc(10*time.Second, func() {
		_ = tx.Rollback(context.Background())
		time.Sleep(2 * time.Second)
		_ = purge.Process.Kill()
	})
	r := wait()
	if released.Stop() {
		_ = tx.Rollback(t.Context())
	}
	if r.exit != 1 || !strings.Contains(r.stderr, `the trigger "t" of role "`+who+`"`) || !strings.HasSuffix(r.stderr, "the loop has ended, because to try again would not help\n") {
		t.Errorf("%+v", r)
	}
	if strings.Contains(r.stderr, "theirs runs") || left(t, pool) != 10 {
		t.Errorf("%+v, %d records left", r, left(t, pool))
	}
}

func TestPurgeLoopDoesNotBeginWithoutADatabase(t *testing.T) {
	t.Parallel()
	run(t, nil, "purge", "-every", "1m", "-database", "postgres://u:s3cret@127.0.0.1:1/d").wantLine(t, 1, "cannot connect", "refused")
}

func TestPasswordIsNeverPrintedByAnyCommand(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"postgres://u:s3cret@127.0.0.1:1/d",
		"postgres://u:s3cret@127.0.0.1:1,127.0.0.1:2/d",
		"postgres://u:s3cret@127.0.0.1:x/d",
		"postgres://u:a@s3cret@127.0.0.1:1/d",
		"host=127.0.0.1 port=1 user=u password='s3cret",
	} {
		for _, args := range []string{"get s i", "list", "find i", "list -id i", "delete s i", "delete -yes s i", "stats", "stats -every 1h", "purge -once", "purge -every 1h", "doctor"} {
			r := run(t, []string{"DATABASE_URL=" + url}, append(strings.Fields(args), "-timeout", "2s")...)
			if r.exit != 1 || strings.Contains(r.stdout+r.stderr, "s3cret") {
				t.Errorf("%s: %+v", args, r)
			}
		}
	}
	// A server that says no.
	pool := pgtest.Empty(t)
	url := with(pool, "user", "nobody_of_that_name", "password", "s3cret")
	for _, args := range []string{"list", "doctor", "purge -every 1h"} {
		if r := run(t, []string{"DATABASE_URL=" + url}, strings.Fields(args)...); strings.Contains(r.stdout+r.stderr, "s3cret") {
			t.Errorf("%s: %+v", args, r)
		}
	}
	// One that does not know a parameter: the rest of a password, after a space.
	for _, args := range []string{"list", "doctor", "purge -once", "migrate version"} {
		for code, url := range map[string]string{"42704": with(pool, "s3cret", "x"), "22023": with(pool, "client_encoding", "s3cret")} {
			r := run(t, []string{"DATABASE_URL=" + url}, strings.Fields(args)...)
			if r.wantLine(t, 1, "refuses a parameter", code); strings.Contains(r.stdout+r.stderr, "s3cret") {
				t.Errorf("%s: %+v", args, r)
			}
		}
	}
}

func TestPurgeSaysInJSONWhatItHasDone(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	expiredRows(t, pool, 1500)
	for _, deleted := range []float64{1500, 0} {
		r := run(t, on(pool), "purge", "-once", "-json")
		o := objects(t, r)
		if seconds, _ := o[0]["seconds"].(float64); r.exit != 0 || r.stderr != "" || len(o) != 1 || o[0]["deleted"] != deleted || o[0]["outcome"] != "done" || seconds <= 0 || o[0]["error"] != nil || o[0]["now"] == nil {
			t.Errorf("%+v", r)
		}
	}
	do(t, pool, "create function refuse() returns trigger language plpgsql as $$ begin raise 'not \x1b now'; end $$; create trigger t before delete on idempotency_keys for each row execute function refuse()")
	expiredRows(t, pool, 1)
	r := run(t, on(pool), "purge", "-once", "-json")
	if o := objects(t, r); r.exit != 1 || len(o) != 1 || o[0]["deleted"] != 0.0 || o[0]["outcome"] != "failed" || !strings.Contains(o[0]["error"].(string), "now") || !strings.Contains(r.stderr, "now") {
		t.Errorf("%+v", r)
	}
}

func TestPurgeLoopHasAnObjectForEachPurge(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	cmd, stdout, stderr := watched(t, on(pool), "purge", "-every", "30ms", "-json")
	eventually(t, "a purge of nothing", func() bool { return strings.Contains(stdout.String(), `{"deleted":0,`) })
	expiredRows(t, pool, 10)
	eventually(t, "a purge", func() bool { return strings.Contains(stdout.String(), `{"deleted":10,`) })
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), "select pg_advisory_xact_lock('idempotency_keys'::regclass::oid::integer, 0)"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another's turn", func() bool { return strings.Contains(stdout.String(), `"outcome":"standing_by"`) })
	ends(t, cmd, os.Interrupt, 0)
	for _, o := range objects(t, result{stdout: stdout.String()}) {
		if o["error"] != nil {
			t.Errorf("%v", o)
		}
	}
	if text := stderr.String(); !strings.Contains(text, "interrupted after 10 deleted records") {
		t.Error(text)
	}
}

func TestStatsCountScopesHoursSizesAndHolders(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	run(t, on(pool), "stats").wantAll(t, 0, "keys", "Scopes: none", "Transactions that hold a key now: none", "24 hours", "replays are not stored")
	execute(t, pool, "customer-1", "a", strings.Repeat("x", 100_000)) // in TOAST
	execute(t, pool, "customer-1", "b", 1)
	execute(t, pool, "customer-2", "c", 1)
	execute(t, pool, "old", "d", 1)
	aged(t, pool, "old", 26*time.Hour)
	pid, _ := hold(t, pool, "customer-3", "e")
	r := run(t, on(pool), "stats")
	r.wantAll(t, 0, "of them expired  1\n", "(2h0m ago)", "Arrivals by the hour", "customer-1  2\n", "customer-2  1\n", "old         1\n", "1 key", "in progress")
	s := objects(t, run(t, on(pool), "stats", "-json", "-scopes", "1"))[0]
	var arrived float64
	for _, h := range s["hourly_arrivals"].([]any) {
		arrived += h.(map[string]any)["keys"].(float64)
	}
	holder := s["holders"].([]any)[0].(map[string]any)
	if s["keys"] != 4.0 || s["expired"] != 1.0 || s["estimated"] != false || s["scope_count"] != 3.0 || len(s["scopes"].([]any)) != 1 ||
		arrived != 3 || holder["pid"] != float64(pid) || holder["keys"] != 1.0 || holder["writing"] != true || holder["transaction_seconds"] == nil {
		t.Errorf("%v", s)
	}
	for name, sql := range map[string]string{
		"index_bytes": `select pg_indexes_size('idempotency_keys')`,
		"toast_bytes": `select pg_total_relation_size(reltoastrelid) from pg_class where oid = 'idempotency_keys'::regclass`,
		"table_bytes": `select pg_total_relation_size('idempotency_keys') - pg_indexes_size('idempotency_keys') - pg_total_relation_size(reltoastrelid) from pg_class where oid = 'idempotency_keys'::regclass`,
	} {
		var want float64
		if err := pool.QueryRow(t.Context(), sql).Scan(&want); err != nil || s[name] != want {
			t.Errorf("%s: %v, want %v, %v", name, s[name], want, err)
		}
	}
}

func TestStatsOfALargeTableAreMarkedAsEstimates(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	do(t, pool, `insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after)
		select i::text, 's' || i % 2, convert_to(repeat('x', 300), 'utf8'), now(), now() + interval '1 day', now() + interval '1 day' from generate_series(1, 20000) i`)
	r := run(t, on(pool), "stats", "-sample", "400")
	r.wantAll(t, 0, "estimated from", "-exact reads all", "keys             ~")
	s := objects(t, run(t, on(pool), "stats", "-json", "-sample", "400"))[0]
	if keys := s["keys"].(float64); s["estimated"] != true || keys < 13_000 || keys > 27_000 {
		t.Errorf("%v of 20,000 keys, sampled from %v %%", keys, s["sampled_percent"])
	}
	if s := objects(t, run(t, on(pool), "stats", "-json", "-exact", "-sample", "400"))[0]; s["keys"] != 20_000.0 || s["estimated"] != false {
		t.Errorf("%v", s)
	}
}

// Citus is played by its setting, its catalog and the functions that add the shards up.
func TestStatsOnCitusHaveTheSizesOfTheShards(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	do(t, pool, `set allow_system_table_mods = on;
		create table pg_catalog.pg_dist_partition (logicalrelid regclass);
		create function pg_catalog.citus_table_size(regclass) returns bigint language sql as 'select 81920000::bigint';
		create function pg_catalog.citus_total_relation_size(regclass, boolean) returns bigint language sql as 'select 90000000::bigint';
		create function pg_catalog.citus_relation_size(regclass) returns bigint language sql as 'select 81920000::bigint';
		alter database `+pool.Config().ConnConfig.Database+` set citus.cluster_name = 'default';
		insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after)
		select i::text, 's', '1', now(), now() + interval '1 day', now() + interval '1 day' from generate_series(1, 500) i`)
	if s := objects(t, run(t, on(pool), "stats", "-json"))[0]; s["table_bytes"] == 81920000.0 {
		t.Error("the table is not distributed")
	}
	do(t, pool, `set allow_system_table_mods = on; insert into pg_catalog.pg_dist_partition values ('idempotency_keys')`)
	s := objects(t, run(t, on(pool), "stats", "-json", "-sample", "5000"))[0]
	if s["table_bytes"] != 81920000.0 || s["index_bytes"] != 8080000.0 || s["toast_bytes"] != 0.0 || s["sampled_percent"] != 50.0 || s["estimated"] != true {
		t.Errorf("%v", s)
	}
}

func TestDoctorExitsWith1ForErrorsAndStrictlyForWarnings(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	do(t, pool, `drop index idempotency_keys_purge_after`)
	r := run(t, on(pool), "doctor")
	r.wantAll(t, 0, "warning: purge index: ", "    to do: create index concurrently", "no errors: found ")
	r = run(t, on(pool), "doctor", "-strict")
	r.wantAll(t, 1, "warning: purge index: ")
	if !strings.HasPrefix(r.stderr, "idempotency: found ") {
		t.Errorf("%+v", r)
	}
	do(t, pool, `drop table idempotency_keys`)
	r = run(t, on(pool), "doctor", "-json")
	r.wantAll(t, 1)
	if all := objects(t, r); all[0]["severity"] != "error" || all[0]["check"] != "table" || all[0]["remedy"] == "" {
		t.Errorf("%v", all)
	}
}

func TestPurgeDoesNotWriteProgressToAPipe(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	expiredRows(t, pool, 5000)
	if r := run(t, on(pool), "purge", "-once"); bytes.ContainsRune([]byte(r.stdout+r.stderr), '\r') {
		t.Errorf("%+v", r)
	}
}

// Whatever a trigger, or the server, says.
func TestPasswordInAMessageOfTheServerIsNotPrinted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	aged(t, pool, "s", 25*time.Hour)
	do(t, pool, `create function refuse() returns trigger language plpgsql as $$ begin raise 'cannot ask postgres://u:s3cret@127.0.0.1/d, nor password=s3cret host=h'; end $$;
		create trigger t before delete on idempotency_keys for each row execute function refuse()`)
	for _, args := range []string{"purge -once", "purge -once -json", "delete -yes s i"} {
		r := run(t, on(pool), strings.Fields(args)...)
		if all := r.stdout + r.stderr; r.exit != 1 || !strings.Contains(all, "cannot ask postgres://u:***@127.0.0.1/d") || strings.Contains(all, "s3cret") {
			t.Errorf("%s: %+v", args, r)
		}
	}
	cmd, stdout, stderr := watched(t, on(pool), "purge", "-every", "50ms", "-json")
	eventually(t, "a failed purge", func() bool {
		return strings.Contains(stderr.String(), "cannot ask ") && strings.Contains(stdout.String(), "cannot ask ")
	})
	ends(t, cmd, os.Interrupt, 0)
	if all := stdout.String() + stderr.String(); strings.Contains(all, "s3cret") {
		t.Error(all)
	}
}

func TestArrivalsAreThoseOf24Hours(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	do(t, pool, `insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after)
		select i::text, 's', '1', t, t + interval '1 day', t + interval '1 day' from generate_series(0, 60) i, lateral (select now() - i * interval '30 minutes') x (t)`)
	s := objects(t, run(t, on(pool), "stats", "-json"))[0]
	instant := func(value any) time.Time {
		at, err := time.Parse(time.RFC3339Nano, fmt.Sprint(value))
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	hours := s["hourly_arrivals"].([]any)
	for _, h := range hours {
		if hour := instant(h.(map[string]any)["hour"]); instant(s["now"]).Sub(hour) > 24*time.Hour {
			t.Errorf("%v is not of the last 24 hours before %v", hour, s["now"])
		}
	}
	if len(hours) < 23 || len(hours) > 24 { // nothing is made in the last one where it has just begun
		t.Errorf("%d hours", len(hours))
	}
}

// All have the same time, scope and state.
func TestEachCountOfALargeTableIsScaledUp(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	do(t, pool, `insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after)
		select i::text, 's', convert_to(repeat('x', 300), 'utf8'), now(), now(), now() from generate_series(1, 20000) i`)
	s := objects(t, run(t, on(pool), "stats", "-json", "-sample", "400"))[0]
	hours, scopes := s["hourly_arrivals"].([]any), s["scopes"].([]any)
	if len(hours) != 1 || len(scopes) != 1 {
		t.Fatalf("%v", s)
	}
	for what, n := range map[string]any{"expired": s["expired"], "the scope's": scopes[0].(map[string]any)["keys"], "the hour's": hours[0].(map[string]any)["keys"]} {
		if n != s["keys"] || s["estimated"] != true {
			t.Errorf("%s: %v of %v", what, n, s["keys"])
		}
	}
}

func TestReplayThatHoldsAKeyIsNotWriting(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	do(t, pool, "create table other (n int)")
	begin(t, pool, lockOf("s", "i"), asACall)
	begin(t, pool, "insert into other values (1)") // somebody else writes
	if h := objects(t, run(t, on(pool), "stats", "-json"))[0]["holders"].([]any); len(h) != 1 || h[0].(map[string]any)["writing"] != false {
		t.Errorf("%v", h)
	}
	run(t, on(pool), "stats").wantAll(t, 0, "replaying, or just begun")
}
