package main_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// found are the scopes and ids in an answer, in its order.
func found(t *testing.T, r result) (all []string) {
	t.Helper()
	for _, o := range objects(t, r) {
		all = append(all, o["scope"].(string)+" "+o["id"].(string))
	}
	return all
}

// plainRows puts done records into the table, many at once.
func plainRows(t *testing.T, pool *pgxpool.Pool, n int) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after)
		select 'row-' || lpad(i::text, 6, '0'), 's' || i % 7, '1', now(), now() + interval '1 day', now() + interval '1 day' from generate_series(1, $1::int) i`, n); err != nil {
		t.Fatal(err)
	}
}

func TestFindShowsAKeyInEveryScope(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for _, scope := range []string{"eu", "us", "old"} {
		execute(t, pool, scope, "order-1", 1)
		execute(t, pool, scope, "order-10", 1)
	}
	aged(t, pool, "old", 25*time.Hour)
	do(t, pool, `insert into idempotency_keys (id, scope, purge_after) values ('order-1', 'torn', now() + interval '5 hours')`)
	r := run(t, on(pool), "find", "order-1")
	r.wantAll(t, 0, "SCOPE", "eu ", "us ", "torn ", "done", "expired", "1h0m ago", "in 23h59m", "abandoned", "(in 4h59m)")
	if r.stderr != "" || strings.Count(r.stdout, "\n") != 5 || strings.Contains(r.stdout, "order-10") {
		t.Errorf("%+v", r)
	}
	all := objects(t, run(t, on(pool), "find", "-json", "order-1"))
	var states []string
	for _, o := range all {
		states = append(states, fmt.Sprint(o["scope"], " ", o["state"], " ", o["completed_at"] != nil, " ", o["purge_after"] != nil))
	}
	if want := []string{"eu done true false", "old expired true false", "torn abandoned false true", "us done true false"}; !slices.Equal(states, want) {
		t.Errorf("%v, want %v", states, want)
	}
	run(t, on(pool), "find", "order").wantLine(t, 3, "no record of key order in any scope", "no call is in progress")
	run(t, on(pool), "find", "-json", "order").wantLine(t, 3, "no record of key order in any scope")
	run(t, on(pool), "find", "").wantLine(t, 2, "KEY: it is empty")
	run(t, on(pool), "find").wantLine(t, 2, "KEY is missing")
}

func TestFindReadsAllPages(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	do(t, pool, `insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after)
		select 'daily', 's' || i, '1', now(), now(), now() from generate_series(1, 2500) i`)
	seen := make(map[string]bool)
	for _, key := range found(t, run(t, on(pool), "find", "-json", "daily")) {
		seen[key] = true
	}
	if len(seen) != 2500 {
		t.Errorf("%d of 2500", len(seen))
	}
}

// A lock is made of the scope and the id together.
func TestFindSaysHowManyCallsInProgressCouldBeIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "old", "order-1", 1)
	execute(t, pool, "done", "order-1", 1)
	_, end := hold(t, pool, "s", "order-2")
	run(t, on(pool), "find", "order-2").wantLine(t, 3, "no record of key order-2", "1 call is in progress that could be", "get SCOPE order-2")
	_, endOther := hold(t, pool, "s", "order-3")
	run(t, on(pool), "find", "order-2").wantLine(t, 3, "2 calls are in progress, each of which could be")
	r := run(t, on(pool), "find", "order-1")
	if r.wantAll(t, 0, "old", "done"); r.stderr != "idempotency: in other scopes: 2 calls are in progress, each of which could be with this key: get SCOPE order-1 tells\n" {
		t.Errorf("%+v", r)
	}
	endOther()
	end()

	// An expired record tells the scope in which it may be.
	aged(t, pool, "old", 25*time.Hour)
	pid, end := hold(t, pool, "old", "order-1")
	defer end()
	r = run(t, on(pool), "find", "order-1")
	r.wantAll(t, 4, "old ", "in progress", "done ")
	if !strings.Contains(r.stderr, "key order-1 of scope old is in progress") || !strings.Contains(r.stderr, fmt.Sprintf("process %d", pid)) || strings.Contains(r.stderr, "could be") {
		t.Errorf("%+v", r)
	}
	o := objects(t, run(t, on(pool), "find", "-json", "order-1"))
	if o[0]["state"] != "done" || o[0]["holders"] != nil || o[1]["state"] != "in progress" || o[1]["holders"].([]any)[0].(map[string]any)["pid"] != float64(pid) {
		t.Errorf("%v", o)
	}
	// An advisory lock that no call has, or that is of another table.
	other, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback(t.Context())
	if _, err := other.Exec(t.Context(), "select pg_advisory_xact_lock(4711)"); err != nil {
		t.Fatal(err)
	}
	run(t, on(pool), "find", "none").wantLine(t, 3, "1 call is in progress")
}

// counters of the primary key's scans and of the table's sequential ones.
func counters(t *testing.T, pool *pgxpool.Pool) (indexScans, read, sequential int64) {
	t.Helper()
	err := pool.QueryRow(t.Context(), `select i.idx_scan, i.idx_tup_read, t.seq_scan from pg_stat_user_indexes i join pg_stat_user_tables t using (relid)
		where i.indexrelname = 'idempotency_keys_pkey'`).Scan(&indexScans, &read, &sequential)
	if err != nil {
		t.Fatal(err)
	}
	return indexScans, read, sequential
}

func TestFindAndListByKeyReadTheirRangeOfThePrimaryKeyAlone(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*testing.T, *pgxpool.Pool){
		"never analyzed": func(t *testing.T, pool *pgxpool.Pool) { plainRows(t, pool, 20_000) },
		"small":          func(t *testing.T, pool *pgxpool.Pool) { plainRows(t, pool, 40) },
		"small and analyzed": func(t *testing.T, pool *pgxpool.Pool) {
			plainRows(t, pool, 40)
			do(t, pool, "vacuum analyze idempotency_keys")
		},
		"analyzed when it was empty": func(t *testing.T, pool *pgxpool.Pool) {
			do(t, pool, "vacuum analyze idempotency_keys")
			plainRows(t, pool, 20_000)
		},
		"analyzed": func(t *testing.T, pool *pgxpool.Pool) {
			plainRows(t, pool, 20_000)
			do(t, pool, "vacuum analyze idempotency_keys")
		},
		"generic plans": func(t *testing.T, pool *pgxpool.Pool) {
			plainRows(t, pool, 20_000)
			do(t, pool, "alter database "+pool.Config().ConnConfig.Database+" set plan_cache_mode = force_generic_plan")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			do(t, pool, "alter table idempotency_keys set (autovacuum_enabled = off)")
			prepare(t, pool)
			for args, rows := range map[string]int{
				"find -json row-000017":                    1,
				"list -json -id row-000017":                1,
				"list -json -id row-000017 -scope s3":      1,
				"list -json -prefix row-00001":             10,
				"list -json -prefix row-00001 -state done": 10,
				"list -json -prefix row-00001 -limit 2":    2,
				"list -json -prefix row-00001 -scope s3":   2, // 10, 17
				"list -json -prefix row-00001 -newer 1h":   10,
				"list -json -prefix none":                  0,
			} {
				scans, read, sequential := counters(t, pool)
				r := run(t, on(pool), strings.Fields(args)...)
				if got := found(t, r); len(got) != rows {
					t.Errorf("%s: %v", args, got)
				}
				eventually(t, "the counters of "+args, func() bool { n, _, _ := counters(t, pool); return n > scans })
				if _, n, s := counters(t, pool); n-read > 12 || s != sequential {
					t.Errorf("%s: %d entries of the index read, %d sequential scans", args, n-read, s-sequential)
				}
			}
		})
	}
}

// What like, a collation or a byte order would confuse.
func TestListByKeyIsExactForEveryText(t *testing.T) {
	t.Parallel()
	ids := []string{"a", "A", "aa", "a%", "a%b", "a_", "a_b", `a\`, `a\%`, `a\\b`, "a b", "ab", "b", "é", "e\u0301", "éa", "z", "ß", "ss", "\U0010ffff", "\U0010ffff\U0010ffff",
		"\ud7ff", "\ud7ffx", "\ue000", "日本", "日本語", "日曜", "a\u007f", "a\u0080", "%", "_", "'", "a'b", "a\tb", "\u007f"}
	for _, encoding := range []string{"UTF8", "SQL_ASCII"} {
		pool := pgtest.New(t)
		if encoding != "UTF8" {
			pool = pgtest.Encoded(t, encoding)
		}
		for _, id := range ids {
			if _, err := pool.Exec(t.Context(), `insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after)
				values ($1, 's', '1', now(), now() + interval '1 day', now() + interval '1 day')`, id); err != nil {
				t.Fatal(err)
			}
		}
		for i, env := range [][]string{withMode(pool, "cache_describe"), withMode(pool, "simple_protocol")} {
			texts := []string{"a", "a%", "a_", `a\`, `a\\b`, "e", "é", "\U0010ffff", "\ud7ff", "日本", "a\u007f", "%", "_", "'", "\u007f"}
			if encoding != "UTF8" {
				texts = []string{"a", "é", "\U0010ffff", "日本"}
			}
			if i > 0 { // the text stands in the statement
				texts = []string{`a\`, `a\%`, "_", "'"}
			}
			if i > 0 && encoding != "UTF8" { // the mode needs a client_encoding of UTF8
				break
			}
			for _, text := range texts {
				var want []string
				for _, id := range ids {
					if strings.HasPrefix(id, text) {
						want = append(want, "s "+id)
					}
				}
				slices.Sort(want) // by bytes, as collate "C" does
				if got := found(t, run(t, env, "list", "-json", "-prefix", text)); !slices.Equal(got, want) {
					t.Errorf("%s: -prefix %q: %q, want %q", encoding, text, got, want)
				}
				for _, args := range [][]string{{"list", "-json", "-id", text}, {"find", "-json", "--", text}} {
					if got := found(t, run(t, env, args...)); slices.Contains(ids, text) && !slices.Equal(got, []string{"s " + text}) {
						t.Errorf("%s: %q: %q", encoding, args, got)
					}
				}
			}
		}
	}
}

func TestListByKeyCombinesWithOtherFiltersAndPages(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for _, scope := range []string{"eu", "us"} {
		for i := range 4 {
			execute(t, pool, scope, fmt.Sprint("order-", i), 1)
		}
	}
	execute(t, pool, "old", "order-0", 1)
	aged(t, pool, "old", 25*time.Hour)
	do(t, pool, `insert into idempotency_keys (id, scope, purge_after) values ('order-1', 'torn', now() - interval '2 hours')`)
	for args, want := range map[string]string{
		"-id order-0":                         "eu order-0,old order-0,us order-0",
		"-id order-0 -scope us":               "us order-0",
		"-id order-0 -state expired":          "old order-0",
		"-id order-1 -state abandoned":        "torn order-1",
		"-id order-0 -newer 1h":               "eu order-0,us order-0",
		"-id order-0 -older 2h":               "old order-0",
		"-id none":                            "",
		"-prefix order-2":                     "eu order-2,us order-2",
		"-prefix order- -scope us -limit 2":   "us order-0,us order-1",
		"-prefix order- -state done -limit 3": "eu order-0,us order-0,eu order-1",
		"-prefix order- -older 2h":            "old order-0",
	} {
		r := run(t, on(pool), append([]string{"list", "-json"}, strings.Fields(args)...)...)
		if got := strings.Join(found(t, r), ","); got != want || r.exit != 0 {
			t.Errorf("list %s: %s, want %s", args, got, want)
		}
	}
	var all []string
	args := []string{"list", "-json", "-prefix", "order-", "-limit", "3"}
	for pages := 1; ; pages++ {
		r := run(t, on(pool), args...)
		all = append(all, found(t, r)...)
		_, after, more := strings.Cut(strings.TrimSpace(r.stderr), "add -after ")
		if !more {
			if pages != 4 {
				t.Errorf("%d pages", pages)
			}
			break
		}
		args = append(args[:6:6], "-after", after)
	}
	if want := found(t, run(t, on(pool), "list", "-json", "-prefix", "order-")); !slices.Equal(all, want) || len(all) != 10 {
		t.Errorf("%q, want %q", all, want)
	}
	run(t, on(pool), "list", "-id", "none").want(t, 0, "", "idempotency: no records pass these filters\n")
	run(t, on(pool), "list", "-prefix", "none").want(t, 0, "", "idempotency: no records pass these filters\n")
	run(t, on(pool), "list", "-id", "someone@example.com").want(t, 0, "", "idempotency: no records pass these filters\n")
	run(t, on(pool), "list", "-prefix", "someone@").want(t, 0, "", "idempotency: no records pass these filters\n")
}

// The row knows when it would be purged, and not when it was made.
func TestAbandonedRecordHasATime(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	do(t, pool, `insert into idempotency_keys (id, scope, purge_after) values ('i', 's', '2030-01-02 03:04:05Z'), ('past', 's', now() - interval '3 hours'), ('forever', 's', 'infinity')`)
	run(t, on(pool), "get", "s", "i").wantAll(t, 0, "claimed:  one retention before 2030-01-02T03:04:05Z: with the default of 24h at 2030-01-01T03:04:05Z (in ")
	run(t, on(pool), "get", "s", "past").wantAll(t, 0, "(27h0m ago)")
	run(t, on(pool), "get", "s", "forever").wantAll(t, 0, "claimed:  one retention before infinity\n")
	for _, args := range []string{"get s i -json", "list -id i -json", "list -json -scope s", "find i -json"} {
		run(t, on(pool), strings.Fields(args)...).wantAll(t, 0, `"state":"abandoned","purge_after":"2030-01-02T03:04:05Z"`)
	}
	for _, args := range []string{"list", "find past"} {
		run(t, on(pool), strings.Fields(args)...).wantAll(t, 0, "(3h0m ago)")
	}
	execute(t, pool, "s", "done", 1)
	if r := run(t, on(pool), "get", "s", "done", "-json"); strings.Contains(r.stdout, "purge_after") {
		t.Errorf("%+v", r)
	}
}

// A replay in a transaction of the program's own keeps the lock of its key until that ends.
func TestCallWhoseKeyIsKnownIsNotOneThatCouldBeIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	begin(t, pool, lockOf("s", "i"), asACall)
	r := run(t, on(pool), "find", "i")
	if r.wantAll(t, 0, "done"); r.stderr != "" {
		t.Errorf("%+v", r)
	}
	run(t, on(pool), "find", "other").wantLine(t, 3, "1 call is in progress that could be")
}

// A program can have an advisory lock of its own while it reads the table.
func TestReadingTheTableIsNoCallInProgress(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	begin(t, pool, "select pg_advisory_xact_lock(4711)", "select from idempotency_keys")
	run(t, on(pool), "find", "none").wantLine(t, 3, "no call is in progress")
	run(t, on(pool), "stats").wantAll(t, 0, "Transactions that hold a key now: none")
}
