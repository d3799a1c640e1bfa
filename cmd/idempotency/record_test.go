package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/keylock"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// execute makes a record as a program does.
func execute(t *testing.T, pool *pgxpool.Pool, scope, id string, value any) {
	t.Helper()
	store, err := idempotency.NewWithConfig(pool, idempotency.Config{
		Trace: func(ctx context.Context, _ string) (context.Context, string) { return ctx, "trace-of-" + id },
	})
	if err != nil {
		t.Fatal(err)
	}
	key := idempotency.Key{Scope: scope, ID: id, Fingerprint: idempotency.FingerprintOf([]byte(id))}
	_, _, err = idempotency.Do(t.Context(), store, key, func(context.Context, pgx.Tx) (any, error) { return value, nil })
	if err != nil {
		t.Fatal(err)
	}
}

// hold has a call in progress until the returned function is called; it then fails.
// Its process id is pid.
func hold(t *testing.T, pool *pgxpool.Pool, scope, id string) (pid uint32, end func()) {
	t.Helper()
	begun, goOn, ended := make(chan uint32), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		_, _, err := idempotency.Do(context.Background(), idempotency.New(pool), idempotency.Key{Scope: scope, ID: id}, func(_ context.Context, tx pgx.Tx) (int, error) {
			begun <- tx.Conn().PgConn().PID()
			<-goOn
			return 0, fmt.Errorf("ended")
		})
		if err == nil || err.Error() != "ended" {
			t.Error(err)
		}
	}()
	var once bool
	end = func() {
		if !once {
			once = true
			close(goOn)
			<-ended
		}
	}
	t.Cleanup(end)
	return <-begun, end
}

// aged moves the records of a scope into the past.
func aged(t *testing.T, pool *pgxpool.Pool, scope string, by time.Duration) {
	t.Helper()
	do(t, pool, fmt.Sprintf(`update idempotency_keys set completed_at = completed_at - interval '%[1]d s',
		expires_at = expires_at - interval '%[1]d s', purge_after = purge_after - interval '%[1]d s' where scope = '%[2]s'`, int(by.Seconds()), scope))
}

func (r result) wantAll(t *testing.T, exit int, words ...string) {
	t.Helper()
	if r.exit != exit {
		t.Errorf("exit %d, want %d: %+v", r.exit, exit, r)
	}
	for _, word := range words {
		if !strings.Contains(r.stdout, word) {
			t.Errorf("stdout %q does not say %q", r.stdout, word)
		}
	}
}

func objects(t *testing.T, r result) (all []map[string]any) {
	t.Helper()
	for line := range strings.Lines(r.stdout) {
		var one map[string]any
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, one)
	}
	return all
}

// Databases that are copies of one have tables of the same number, and a lock's number is
// made of that and the key.
func TestCallInAnotherDatabaseIsNotInProgressHere(t *testing.T) {
	t.Parallel()
	pool, other := pgtest.New(t), pgtest.New(t)
	hold(t, other, "s", "i")
	run(t, on(other), "get", "s", "i").wantAll(t, 4)
	run(t, on(pool), "get", "s", "i").wantAll(t, 3)
	run(t, on(pool), "stats").wantAll(t, 0, "Transactions that hold a key now: none")
}

func TestGetShowsARecordAndHidesItsResult(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "customer-7", "order-1", map[string]string{"receipt": "10 EUR"})
	r := run(t, on(pool), "get", "customer-7", "order-1")
	r.wantAll(t, 0, "customer-7", "order-1", "done: the call took effect", "in 23h59m", "trace-of-order-1", "20 B, hidden (-show-result)",
		fmt.Sprintf("%x", idempotency.FingerprintOf([]byte("order-1"))))
	if strings.Contains(r.stdout, "10 EUR") || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	run(t, on(pool), "get", "customer-7", "order-1", "-show-result").wantAll(t, 0, "\n{\n  \"receipt\": \"10 EUR\"\n}\n")
	run(t, on(pool), "get", "-json", "customer-7", "-show-result", "order-1").wantAll(t, 0, `"result":{"receipt":"10 EUR"}`, `"state":"done"`, `"origin":"trace-of-order-1"`)
	if r := run(t, on(pool), "get", "-json", "customer-7", "order-1"); strings.Contains(r.stdout, "10 EUR") {
		t.Errorf("%+v", r)
	}
}

func TestGetTellsApartWhatBecameOfAKey(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "expired", 1)
	aged(t, pool, "s", 25*time.Hour)
	do(t, pool, `insert into idempotency_keys (id, scope, purge_after) values ('abandoned', 's', now())`)
	run(t, on(pool), "get", "s", "expired").wantAll(t, 0, "expired: the call took effect", "1h0m ago")
	run(t, on(pool), "get", "s", "abandoned").wantAll(t, 0, "abandoned: a function ended its transaction itself")
	run(t, on(pool), "get", "s", "none").wantLine(t, 3, "no record of key none of scope s")
	r := run(t, on(pool), "get", "-json", "s", "none")
	r.wantAll(t, 3, `"state":"not found"`)

	for id, effect := range map[string]string{"new": "nothing has taken effect yet", "expired": "an earlier call took effect at 2"} {
		pid, end := hold(t, pool, "s", id)
		run(t, on(pool), "get", "s", id).wantLine(t, 4, effect)
		run(t, on(pool), "get", "s", id).wantLine(t, 4, "key "+id+" of scope s is in progress", fmt.Sprintf("process %d (%s", pid, t.Name()), "idle in transaction", "for ")
		run(t, on(pool), "get", "s", id, "-json").wantAll(t, 4, `"state":"in progress"`, fmt.Sprintf(`"pid":%d`, pid))
		end()
	}
	run(t, on(pool), "get", "s", "new").wantLine(t, 3, "no record")
}

func TestAbsentTableIsNamedWithAWayOut(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	for _, args := range []string{"get s i", "find i", "list", "list -prefix i", "stats", "stats -every 1h", "purge -once", "purge -every 1h", "delete -yes s i", "delete s i"} {
		run(t, on(pool), strings.Fields(args)...).wantLine(t, 1, "idempotency_keys", "idempotency migrate up")
	}
}

func TestRecordsOfANamedSchemaAreFound(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	do(t, pool, `create schema "My ""S"; alter table idempotency_keys set schema "My ""S"`)
	schema := []string{"-schema", `My "S`}
	for _, args := range []string{"get s i", "find i", "list", "list -prefix i", "stats", "purge -once", "doctor"} {
		run(t, on(pool), append(strings.Fields(args), schema...)...).wantAll(t, 0)
	}
	run(t, on(pool), append([]string{"delete", "s", "i", "-yes"}, schema...)...).want(t, 0, "deleted\n", "")
}

func TestListFiltersByScopeStateAndAge(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "old", "a", 1)
	execute(t, pool, "ancient", "b", 1)
	execute(t, pool, "fresh", "c", 1)
	aged(t, pool, "old", 2*time.Hour)
	aged(t, pool, "ancient", 72*time.Hour)
	do(t, pool, `insert into idempotency_keys (id, scope, purge_after) values ('d', 'torn', now() - interval '100 hours')`)
	for args, want := range map[string]string{
		"":                        "c a b d",
		"-scope old":              "a",
		"-state done":             "c a",
		"-state expired":          "b",
		"-state abandoned":        "d",
		"-newer 1h":               "c",
		"-older 1h":               "a b",
		"-older 1h -newer 2.5d":   "a",
		"-older 2d":               "b",
		"-scope none":             "",
		"-limit 2":                "c a",
		"-scope old -state done":  "a",
		"-newer 3d -state done":   "c a",
		"-limit 0 -state expired": "b",
	} {
		var got []string
		for _, o := range objects(t, run(t, on(pool), append([]string{"list", "-json"}, strings.Fields(args)...)...)) {
			got = append(got, o["id"].(string))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("list %s: %v, want %s", args, got, want)
		}
	}
	r := run(t, on(pool), "list")
	r.wantAll(t, 0, "SCOPE", "old", "abandoned", "2h0m", "in 21h59m", "2d0h ago")
	if n := strings.Count(r.stdout, "\n"); n != 5 {
		t.Errorf("%d lines:\n%s", n, r.stdout)
	}
	run(t, on(pool), "list", "-scope", "none").want(t, 0, "", "idempotency: no records pass these filters\n")
}

func TestListPagesThroughEveryRecordOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	const rows = 2500 // more than one page of the command's own; many of the same time
	do(t, pool, `insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after)
		select i::text, 's' || i % 3, '1', t, t, t from generate_series(1, 2500) i, lateral (select now() + i / 100 * interval '1 second') x (t)`)
	seen := make(map[string]bool)
	after := regexp.MustCompile(`add -after (\S+)\n$`)
	args, pages := []string{"list", "-json", "-limit", "700"}, 0
	for {
		r := run(t, on(pool), args...)
		for _, o := range objects(t, r) {
			key := o["scope"].(string) + "/" + o["id"].(string)
			if seen[key] {
				t.Errorf("%s twice", key)
			}
			seen[key] = true
		}
		pages++
		next := after.FindStringSubmatch(r.stderr)
		if next == nil {
			break
		}
		args = []string{"list", "-json", "-limit", "700", "-after", next[1]}
	}
	if len(seen) != rows || pages != 4 {
		t.Errorf("%d records on %d pages", len(seen), pages)
	}
	if all := objects(t, run(t, on(pool), "list", "-json", "-limit", "0")); len(all) != rows {
		t.Errorf("%d with -limit 0", len(all))
	}
}

// Keys and results are what clients have sent.
func TestListAndGetSendNothingOddToATerminal(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	const odd = "\x1b]0;title\a\u009b31m\nnext\u202e"
	execute(t, pool, "scope"+odd, "key"+odd, odd)
	for _, args := range [][]string{{"list", "-show-result"}, {"get", "scope" + odd, "key" + odd, "-show-result"}, {"stats"}, {"get", "scope" + odd, "none" + odd}, {"find", "key" + odd}, {"list", "-prefix", "key" + odd}} {
		r := run(t, on(pool), args...)
		if all := r.stdout + r.stderr; strings.ContainsAny(all, "\x1b\a\u009b\u202e") || !strings.Contains(all, `\x1b]0;title`) {
			t.Errorf("%v: %q", args, all)
		}
	}
}

func TestDeleteFreesAKeyForTheNextCall(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	run(t, on(pool), "delete", "s", "i", "-yes").want(t, 0, "deleted\n", "")
	run(t, on(pool), "delete", "s", "i", "-yes").wantLine(t, 3, "no record of key i of scope s")
	run(t, on(pool), "delete", "s", "i").wantLine(t, 3, "no record of key i of scope s")
	execute(t, pool, "s", "i", 2)
	run(t, on(pool), "get", "s", "i", "-json", "-show-result").wantAll(t, 0, `"result":2`)
}

func TestDeleteSaysInProgressAndByWhom(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	pid, _ := hold(t, pool, "s", "i")
	for _, args := range []string{"delete s i", "delete s i -yes"} {
		run(t, on(pool), strings.Fields(args)...).wantLine(t, 4, "is in progress", fmt.Sprintf("process %d", pid))
	}
}

func TestDeleteSaysInJSONWhatItHasDone(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	if r := run(t, on(pool), "delete", "s", "i", "-json"); r.exit != 2 || r.stdout != "" || !strings.Contains(r.stderr, "add -yes") {
		t.Errorf("%+v", r)
	}
	run(t, on(pool), "delete", "s", "i", "-yes", "-json").want(t, 0, `{"scope":"s","id":"i","deleted":true,"state":"deleted"}`+"\n", "")
	for _, args := range []string{"delete s i -json", "delete s i -json -yes"} {
		r := run(t, on(pool), strings.Fields(args)...)
		if r.wantAll(t, 3); r.stdout != `{"scope":"s","id":"i","deleted":false,"state":"not found"}`+"\n" || !strings.Contains(r.stderr, "no record of key i of scope s") {
			t.Errorf("%+v", r)
		}
	}
	pid, _ := hold(t, pool, "s", "i")
	for _, args := range []string{"delete s i -json", "delete s i -json -yes"} {
		r := run(t, on(pool), strings.Fields(args)...)
		if r.wantAll(t, 4, `{"scope":"s","id":"i","deleted":false,"state":"in progress","holders":[{"pid":`+fmt.Sprint(pid)); !strings.Contains(r.stderr, "is in progress") {
			t.Errorf("%+v", r)
		}
	}
}

func TestGetSaysWhoHoldsAKeyAndSinceWhen(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	cfg := pool.Config().ConnConfig
	client := "127.0.0.1"
	if strings.HasPrefix(cfg.Host, "/") {
		client = "[local]"
	}
	before := time.Now().Add(-2 * time.Second)
	pid, end := hold(t, pool, "s", "i")
	defer end()
	o := objects(t, run(t, on(pool), "get", "s", "i", "-json"))[0]["holders"].([]any)[0].(map[string]any)
	start, err := time.Parse(time.RFC3339Nano, fmt.Sprint(o["transaction_start"]))
	age, _ := o["transaction_seconds"].(float64)
	if err != nil || start.Before(before) || start.After(time.Now().Add(2*time.Second)) || age <= 0 || age > time.Since(before).Seconds() ||
		o["pid"] != float64(pid) || o["application"] != t.Name() || o["user"] != cfg.User || o["client"] != client || o["state"] != "idle in transaction" || o["grant"] != nil {
		t.Errorf("%v", o)
	}
	text := fmt.Sprintf("process %d (%s, user %s, client %s, idle in transaction) for ", pid, t.Name(), cfg.User, client)
	run(t, on(pool), "get", "s", "i").wantLine(t, 4, text, "s, since "+start.Format("2006-01-02T15:04:05Z"), "select pg_terminate_backend")
}

func TestDeleteWithoutTerminalAndYesIsRefused(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	cmd := command(t, on(pool), "delete", "s", "i")
	cmd.Stdin = strings.NewReader("yes\n") // a pipe
	finish(t, cmd).wantLine(t, 2, "this forgets key i of scope s (done, completed ", "a retry runs the operation again", "add -yes")
	run(t, on(pool), "get", "s", "i").wantAll(t, 0, "done")
}

func TestKeysThatLookLikeFlagsCanBeNamed(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "-s", "-yes", 1)
	run(t, on(pool), "get", "--", "-s", "-yes").wantAll(t, 0, "-yes")
	run(t, on(pool), "get", "-json", "--", "-s", "-yes").wantAll(t, 0, `"id":"-yes"`)
	if r := run(t, on(pool), "get", "-s", "-yes"); r.exit != 2 {
		t.Errorf("%+v", r)
	}
}

func TestCommandsWorkInEveryModeOfPgx(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for _, mode := range []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"} {
		execute(t, pool, "s", "i", 1)
		hold(t, pool, "s", mode)
		env := []string{"DATABASE_URL=" + with(pool, "default_query_exec_mode", mode)}
		run(t, env, "get", "s", "i", "-show-result").wantAll(t, 0, "done")
		run(t, env, "list", "-newer", "1h").wantAll(t, 0, "done")
		run(t, env, "list", "-prefix", "i").wantAll(t, 0, "done")
		run(t, env, "find", "i").wantAll(t, 0, "done")
		run(t, env, "stats").wantAll(t, 0, "in progress")
		run(t, env, "doctor").wantAll(t, 0)
		run(t, env, "delete", "-yes", "s", "i").wantAll(t, 0)
		run(t, env, "purge", "-once").wantAll(t, 0)
	}
}

func TestInterruptEndsEveryCommand(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	locked, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer locked.Rollback(context.Background())
	if _, err := locked.Exec(t.Context(), "lock table idempotency_keys"); err != nil {
		t.Fatal(err)
	}
	for i, args := range []string{"list", "list -id i", "get s i", "find i", "stats", "purge -once", "delete -yes s i"} {
		name := fmt.Sprintf("%s-%d", pool.Config().ConnConfig.Database, i)
		cmd := command(t, append(on(pool), "PGAPPNAME="+name), strings.Fields(args)...)
		wait := start(t, cmd)
		eventually(t, args+" waits for the lock", func() bool {
			var n int
			err := pool.QueryRow(t.Context(), "select count(*) from pg_stat_activity where application_name = $1 and wait_event_type = 'Lock'", name).Scan(&n)
			return err == nil && n == 1
		})
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		wait().wantLine(t, 1, "interrupted")
	}
}

// A replay has the key's lock for a moment, and so has a call that waits for nobody.
func TestRecordThatIsDoneIsDoneWhoeverHasTheLock(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	begin(t, pool, lockOf("s", "i"))
	run(t, on(pool), "get", "s", "i").wantAll(t, 0, "done")
	run(t, on(pool), "find", "i").wantAll(t, 0, "done")
}

// Its next call fails, and does not take the key.
func TestAbandonedRecordIsAbandonedWhoeverHasTheLock(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	do(t, pool, "insert into idempotency_keys (id, scope, purge_after) values ('i', 's', now())")
	begin(t, pool, lockOf("s", "i"), asACall)
	run(t, on(pool), "get", "s", "i").wantAll(t, 0, "abandoned: ")
	run(t, on(pool), "find", "i").wantAll(t, 0, "abandoned")
}

// asACall is the lock of a statement that writes to the table.
const asACall = "lock table idempotency_keys in row exclusive mode"

// lockOf takes the lock of a key.
func lockOf(scope, id string) string {
	return fmt.Sprintf("select pg_advisory_xact_lock((%d)::bigint # 'idempotency_keys'::regclass::oid::bigint)", keylock.ID(scope, id))
}

// begin runs the statements in a transaction that ends with the test.
func begin(t *testing.T, pool *pgxpool.Pool, statements ...string) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	for _, sql := range statements {
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
}

// To end its process would not help.
func TestWhoWaitsForAKeyDoesNotHoldIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	pid, end := hold(t, pool, "s", "i")
	waited := make(chan error, 1)
	go func() {
		waited <- pgx.BeginFunc(context.Background(), pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(context.Background(), asACall+"; "+lockOf("s", "i"), pgx.QueryExecModeSimpleProtocol)
			return err
		})
	}()
	defer func() {
		end()
		if err := <-waited; err != nil {
			t.Error(err)
		}
	}()
	eventually(t, "the other waits", func() (waits bool) {
		_ = pool.QueryRow(t.Context(), "select exists (select from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database()))").Scan(&waits)
		return waits
	})
	holders := objects(t, run(t, on(pool), "get", "s", "i", "-json"))[0]["holders"].([]any)
	if len(holders) != 1 || holders[0].(map[string]any)["pid"] != float64(pid) {
		t.Errorf("%d: %v", pid, holders)
	}
	if s := objects(t, run(t, on(pool), "stats", "-json"))[0]; len(s["holders"].([]any)) != 1 {
		t.Errorf("%v", s["holders"])
	}
}

func TestListPrintsNoMoreThanItsLimit(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	plainRows(t, pool, 1300)
	for _, args := range []string{"list -json -limit 1200", "list -json -limit 50 -show-result"} { // more than one page of the command's own
		r := run(t, on(pool), strings.Fields(args)...)
		if n := strconv.Itoa(len(objects(t, r))); n != strings.Fields(args)[3] || !strings.Contains(r.stderr, "there is more") {
			t.Errorf("%s: %s records, %s", args, n, r.stderr)
		}
	}
}

// The scope alone tells them apart.
func TestListPagesThroughOneKeyInManyScopesOfOneTime(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	do(t, pool, `insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after)
		select 'daily', 's' || i, '1', now(), now(), now() from generate_series(1, 9) i`)
	var all []string
	args := []string{"list", "-json", "-limit", "2"}
	for pages := 0; pages < 9; pages++ {
		r := run(t, on(pool), args...)
		all = append(all, found(t, r)...)
		_, after, more := strings.Cut(strings.TrimSpace(r.stderr), "add -after ")
		if !more {
			break
		}
		args = append(args[:4:4], "-after", after)
	}
	if want := "s9 daily,s8 daily,s7 daily,s6 daily,s5 daily,s4 daily,s3 daily,s2 daily,s1 daily"; strings.Join(all, ",") != want {
		t.Errorf("%q, want %s", all, want)
	}
}
