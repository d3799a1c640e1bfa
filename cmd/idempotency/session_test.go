package main_test

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgtest"
)

var modes = []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"}

// withMode is the environment with pool's database and a mode of pgx.
func withMode(pool *pgxpool.Pool, mode string) []string {
	return []string{"DATABASE_URL=" + with(pool, "default_query_exec_mode", mode)}
}

// looks are the commands whose answers are compared, with what moves left out.
func looks(t *testing.T, env []string) string {
	t.Helper()
	var all strings.Builder
	for _, args := range []string{
		"get s order-1 -json -show-result", "get s order-2 -json", "get s none -json", "get s forever -json",
		"list -json -show-result -limit 0", "list -json -limit 2", "list -json -newer 1000d", "stats -json -exact",
		"find order-1 -json", "list -json -id bytes", "list -json -prefix order- -limit 1 -scope s",
	} {
		r := run(t, env, strings.Fields(args)...)
		fmt.Fprintf(&all, "%s: exit %d\n%s%s\n", args, r.exit, r.stdout, r.stderr)
	}
	moving := regexp.MustCompile(`"(now|pid|transaction_start|transaction_seconds|dead_rows_estimate|last_autovacuum)":("[^"]*"|[^,}]*)`)
	return moving.ReplaceAllString(all.String(), `"$1":0`)
}

func TestAnswersDoNotDependOnHowASessionShowsValues(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "order-1", "10 € \\ \" and a line\nmore")
	execute(t, pool, "s", "order-2", map[string]float64{"amount": 12.345678901})
	do(t, pool, `insert into idempotency_keys (id, scope, result, fingerprint, completed_at, expires_at, purge_after)
		values ('bytes', 's', '\x00ff5c27', '\x5c00ff', now(), now() - interval '1 hour', now() + interval '1 hour'),
		('forever', 's', '1', null, now(), 'infinity', 'infinity')`)
	looks := func(env []string) string { // the call is a new one each time: Config.MaxIdle would end it on a slow machine
		_, end := hold(t, pool, "s", "held")
		defer end()
		return looks(t, env)
	}
	want := looks(withMode(pool, "cache_statement"))
	if strings.Count(want, "exit 0") != 10 || strings.Count(want, "exit 3") != 1 {
		t.Fatal(want)
	}
	for i, styles := range pgtest.OddStyles {
		pgtest.Odd(t, pool, styles)
		for j, mode := range modes {
			if j < 3 && i+j > 0 {
				continue // binary, as the first mode: not what a style can change
			}
			env := withMode(pool, mode)
			if got := looks(env); got != want {
				t.Errorf("%v, %s:\n%s\nwant\n%s", styles, mode, got, want)
			}
			for _, args := range []string{"get s order-1 -show-result", "list -show-result -newer 7d", "stats", "doctor"} {
				run(t, env, strings.Fields(args)...).wantAll(t, 0)
			}
			id := fmt.Sprint("deleted-", i, j)
			execute(t, pool, "s", id, 1)
			run(t, env, "delete", "s", id, "-yes").want(t, 0, "deleted\n", "")
		}
	}
}

// One digit would be left of a float8 under extra_float_digits = -15.
func TestHoldersTimeIsPreciseInEveryMode(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	pgtest.Odd(t, pool, pgtest.OddStyles[0])
	_, end := hold(t, pool, "s", "held")
	defer end()
	for _, mode := range modes {
		var precise bool
		for range 3 { // one may be round by chance
			s := objects(t, run(t, withMode(pool, mode), "stats", "-json"))[0]
			seconds := s["holders"].([]any)[0].(map[string]any)["transaction_seconds"].(float64)
			digits := strconv.FormatFloat(seconds, 'g', -1, 64)
			precise = precise || len(strings.Trim(digits, "0.")) > 2
		}
		if !precise {
			t.Errorf("%s: a time of one digit", mode)
		}
	}
}

// All of these are legal: the column is a timestamptz, and somebody may have set it.
func TestNoTimeInTheTableFailsACommand(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	const times = `(values ('now', now()), ('null', null), ('infinity', 'infinity'), ('-infinity', '-infinity'),
		('first', '4714-11-24 00:00:00+00 BC'), ('last', '294276-12-31 23:59:59+00'), ('before 1970', '1969-12-31 23:59:59.5+00'), ('end', '294276-12-31 23:59:59.999999+00'), ('year 1', '0001-12-31 00:00:00+00 BC'))`
	do(t, pool, `insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after)
		select concat_ws('/', c.name, e.name, p.name), 's', '1', c.at::timestamptz, e.at::timestamptz, p.at::timestamptz
		from `+times+` c (name, at), `+times+` e (name, at), `+times+` p (name, at) where p.at is not null`)
	const rows = 9 * 9 * 8
	for _, mode := range []string{"cache_describe", "exec", "simple_protocol"} {
		env := withMode(pool, mode)
		all := make(map[string]map[string]any)
		args := []string{"list", "-json", "-limit", "150"}
		for {
			r := run(t, env, args...)
			for _, o := range objects(t, r) {
				id := o["id"].(string)
				if all[id] != nil {
					t.Errorf("%s: %s twice", mode, id)
				}
				all[id] = o
			}
			_, after, more := strings.Cut(strings.TrimSpace(r.stderr), "add -after ")
			if !more {
				break
			}
			args = []string{"list", "-json", "-limit", "150", "-after", after}
		}
		if len(all) != rows {
			t.Errorf("%s: %d of %d records listed", mode, len(all), rows)
		}
		for name, shown := range map[string]string{
			"infinity": "infinity", "-infinity": "-infinity", "first": "4714-11-24T00:00:00Z BC", "last": "294276-12-31T23:59:59Z",
			"before 1970": "1969-12-31T23:59:59.5Z", "year 1": "0001-12-31T00:00:00Z BC",
		} {
			id := name + "/" + name + "/now"
			if got := all[id]; got["completed_at"] != shown || got["expires_at"] != shown {
				t.Errorf("%s: %s is listed as %v", mode, name, got)
			}
			run(t, env, "get", "-json", "--", "s", id).wantAll(t, 0, `"completed_at":"`+shown+`","expires_at":"`+shown+`"`)
			run(t, env, "get", "--", "s", id).wantAll(t, 0, "completed:  "+strings.Replace(shown, ".5Z", "Z", 1))
		}
		if got := all["now/last/last"]; got["created_at"] != all["now/now/now"]["completed_at"] {
			t.Errorf("%s: expires in 292277 years and was created %v", mode, got["created_at"])
		}
		if _, told := all["infinity/infinity/now"]["created_at"]; told {
			t.Errorf("%s: it cannot be told when that was created", mode)
		}
		run(t, env, "list", "-limit", "0").wantAll(t, 0, "-infinity")
		run(t, env, "stats").wantAll(t, 0, fmt.Sprint(rows), "oldest expired")
		run(t, env, "doctor").wantAll(t, 0)
	}
	do(t, pool, "delete from idempotency_keys where id <> '-infinity/-infinity/-infinity'")
	for _, mode := range []string{"cache_describe", "exec", "simple_protocol"} {
		run(t, withMode(pool, mode), "stats").wantAll(t, 0, "oldest expired   -infinity\n", "Arrivals by the hour, last 24 hours (first calls still in the table; replays are not stored): none")
		run(t, withMode(pool, mode), "doctor").wantAll(t, 0, "nothing purges")
	}
}

// Somebody who may create in a schema of the search_path would otherwise get the
// rights of whoever uses the command.
func TestNothingPlantedInTheSearchPathRuns(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	execute(t, pool, "s", "expired", 1)
	aged(t, pool, "s", 25*time.Hour)
	execute(t, pool, "s", "done", 1)
	rideThatStops(t, pool, "other", "ride")
	pgtest.Plant(t, pool, "*.go", "../../internal/inspect/*.go", "../../doctor/*.go", "../../internal/keytable/*.go")
	for _, mode := range []string{"cache_describe", "exec", "simple_protocol"} { // the types of arguments differ
		env := withMode(pool, mode)
		_, end := hold(t, pool, "s", "held")
		for args, exit := range map[string]int{
			"get s i -show-result": 0, "get s none": 3, "get other ride": 0, "list -state unfinished -json": 0, "get s held": 4, "list -scope s -state done -newer 1d -older 1ms -show-result": 0, "list -limit 1 -scope s": 0,
			"find i": 0, "find none": 3, "list -id i -state done -newer 1d": 0, "list -prefix i -scope s": 0, "find i -json": 0, "purge -every 1h -timeout 100ms -json": 1, "delete s held -yes -json": 4,
			"stats": 0, "stats -exact": 0, "doctor": 0, "delete s none -yes": 3, "purge -every 1h -timeout 100ms": 1, "migrate version": 0,
		} {
			r := run(t, env, strings.Fields(args)...)
			if r.exit != exit || strings.Contains(r.stdout+r.stderr, "planted") {
				t.Errorf("%s: %s: %+v", mode, args, r)
			}
		}
		end()
		first := objects(t, run(t, env, "list", "-limit", "1", "-scope", "s", "-json"))[0]["cursor"]
		run(t, env, "list", "-after", fmt.Sprint(first)).wantAll(t, 0, "expired")
		run(t, env, "list", "-prefix", "e", "-after", fmt.Sprint(first)).wantAll(t, 0, "expired")
	}
	// What is planted catches what is not exact: else the above could not fail.
	fresh := pgtest.Pool(t, pool, pgtest.MaxConns(1))
	for sql, caught := range map[string]bool{
		"select 5::bigint * interval '1 second'":                         true,
		"select 5::bigint::float8 * interval '1 second'":                 false,
		"select (extract(epoch from now()) * 1000)::bigint":              true,
		"select (extract(epoch from now()) * 1000::numeric)::bigint":     false,
		"select pg_relation_size('pg_class'::regclass::oid)":             true,
		"select pg_relation_size('pg_class'::regclass)":                  false,
		"select pg_has_role('pg_monitor', 'usage')":                      true,
		"select unnest(array['a'])":                                      true,
		"select count(*) from pg_class where oid = 'pg_class'::regclass": true,
	} {
		_, err := fresh.Exec(t.Context(), sql)
		if (err != nil) != caught {
			t.Errorf("%s: %v", sql, err)
		}
	}
}
