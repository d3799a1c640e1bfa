package main_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
	"github.com/pgidem/idempotency/internal/pgtest"
	"github.com/pgidem/idempotency/migrations"
)

func operatorsPage(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// blocks are the fenced blocks of a language.
func blocks(page, language string) (found []string) {
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(page, -1) {
		found = append(found, m[1])
	}
	return found
}

// commands are those in the blocks and in the text.
func commands(page string) (found []string) {
	for _, block := range blocks(page, "sh") {
		found = append(found, strings.Split(strings.TrimSpace(block), "\n")...)
	}
	for _, m := range regexp.MustCompile("`(idempotency [^`]*)`").FindAllStringSubmatch(page, -1) {
		found = append(found, m[1])
	}
	return found
}

// with is a URL of pool's database with more parameters.
func with(pool *pgxpool.Pool, params ...string) string {
	cfg := pool.Config().ConnConfig
	mode := "disable"
	if cfg.TLSConfig != nil {
		mode = "require"
	}
	query := url.Values{"sslmode": {mode}, "host": {cfg.Host}, "port": {fmt.Sprint(cfg.Port)}}
	for i := 0; i < len(params); i += 2 {
		query.Set(params[i], params[i+1])
	}
	u := url.URL{Scheme: "postgres", User: url.UserPassword(cfg.User, cfg.Password), Path: "/" + cfg.Database, RawQuery: query.Encode()}
	return u.String()
}

func TestEveryCommandOfTheOperatorsPageRuns(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	do(t, pool, "revoke create on schema public from public") // which PostgreSQL 14 grants
	// So careful a client that doctor -strict is content.
	address := with(pool, "tcp_keepalives_idle", "60", "tcp_keepalives_interval", "10", "tcp_keepalives_count", "6")
	env := []string{"DATABASE_URL=" + address, "PATH=" + filepath.Dir(binary) + string(os.PathListSeparator) + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	for _, id := range []string{"ride-4711", "ride-4712"} {
		rideThatStops(t, pool, "customer-7", id)
	}
	seen := make(map[string]bool)
	for _, text := range commands(operatorsPage(t)) {
		// Variables may stand before the command.
		variables := regexp.MustCompile(`^(\w+=('[^']*'|\S*) )*`).FindString(text)
		text = strings.TrimPrefix(text, variables)
		if !strings.HasPrefix(text, "idempotency ") {
			t.Errorf("%q is no command that this test can run", text)
			continue
		}
		execute(t, pool, "customer-7", "charge/order-1", "receipt")
		seen[strings.Fields(text)[1]] = true
		cmd := exec.CommandContext(t.Context(), "sh", "-euc", variables+"exec "+text)
		cmd.Env = env
		var errors lockedBuffer
		cmd.Stderr = &errors
		var out lockedBuffer
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text, "-every") {
			eventually(t, text, func() bool {
				return strings.Contains(errors.String()+out.String(), "purging every") || strings.Contains(out.String(), "Transactions")
			})
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v\n%s%s", text, err, out.String(), errors.String())
		}
	}
	for _, sub := range []string{"get", "find", "list", "delete", "settle", "stats", "doctor", "purge", "migrate"} {
		if !seen[sub] {
			t.Errorf("the page shows no %s", sub)
		}
	}
}

func TestEveryStatementOfTheOperatorsPageIsRunByATest(t *testing.T) {
	t.Parallel()
	tests := map[string]func(*testing.T){
		"pg_terminate_backend(4711)": TestEndingTheProcessThatHoldsAKeyFreesIt,
		"select coalesce((":          TestMonitoringStatementOfTheOperatorsPageIsTheAgeOfTheOldestExpired,
		"shop_app":                   TestRoleOfTheOperatorsPageHasAllItNeedsAndNoMore,
		"shop_reader":                TestReaderOfTheOperatorsPageCanLookAndNotTouch,
		"shop_purger":                TestPurgerOfTheOperatorsPageCanPurge,
		"tenants_app":                TestTenantsOfTheOperatorsPageAreKeptApart,
		"shop_owner":                 TestOwnerOfTheOperatorsPageCanMigrate,
		"update idempotency_keys\n":  TestRetentionLostInARestoreIsGivenBack,
	}
	for _, block := range blocks(operatorsPage(t), "sql") {
		runs := 0
		for word := range tests {
			if strings.Contains(block, word) {
				runs++
			}
		}
		if runs != 1 {
			t.Errorf("%d tests run\n%s", runs, block)
		}
	}
}

// statements of the page whose text has one of the words, with the names of roles
// made unique, since roles belong to the whole server.
func statements(t *testing.T, pool *pgxpool.Pool, word string) (found []string, role string) {
	t.Helper()
	role = fmt.Sprintf("%s_%08x", strings.ReplaceAll(word, " ", "_"), rand.Uint32())
	for _, block := range blocks(operatorsPage(t), "sql") {
		if !strings.Contains(block, word) {
			continue
		}
		for sql := range strings.SplitSeq(strings.ReplaceAll(block, word, role), ";\n") {
			if sql = strings.TrimSpace(sql); sql != "" {
				found = append(found, sql)
			}
		}
	}
	if len(found) == 0 {
		t.Fatalf("the page has no statement with %q", word)
	}
	return found, role
}

// withRole runs the statements for that role, but those without, and returns a pool
// that has it.
func withRole(t *testing.T, pool *pgxpool.Pool, word, without string) *pgxpool.Pool {
	t.Helper()
	all, role := statements(t, pool, word)
	for _, sql := range all {
		do(t, pool, sql)
	}
	t.Cleanup(func() {
		_, err := pool.Exec(context.Background(), "drop owned by "+role+"; drop role "+role, pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Error(err)
		}
	})
	if without != "" {
		do(t, pool, "revoke "+without+" from "+role)
	}
	return pgtest.Pool(t, pool, func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["role"] = role })
}

// everything is what a program does with a Store.
func everything(ctx context.Context, pool *pgxpool.Pool) error {
	store := idempotency.New(pool)
	for _, id := range []string{"expires", "stays"} {
		key := idempotency.Key{Scope: "s", ID: id}
		for range 2 {
			_, _, err := idempotency.Do(ctx, store, key, func(context.Context, pgx.Tx) (int, error) { return 1, nil })
			if err != nil {
				return err
			}
		}
	}
	if _, err := pool.Exec(ctx, "update idempotency_keys set expires_at = now(), purge_after = now() where id = 'expires'"); err != nil {
		return err
	}
	if _, err := store.Get(ctx, idempotency.Key{Scope: "s", ID: "stays"}); err != nil {
		return err
	}
	if n, err := store.Purge(ctx); n != 1 || err != nil {
		return errors.Join(fmt.Errorf("%d purged", n), err)
	}
	return store.Delete(ctx, idempotency.Key{Scope: "s", ID: "stays"})
}

// asks is a procedure that is recorded before it ends.
var asks = idempotency.Procedure[int, int]{
	Name: "ask",
	Run: func(ctx context.Context, op *idempotency.Op, in int) (int, error) {
		return idempotency.Call(ctx, op, "ask", func(context.Context, string) (int, error) {
			if in == 0 {
				return 0, errors.New("no answer")
			}
			return in, nil
		})
	},
}

func TestRoleOfTheOperatorsPageHasAllItNeedsAndNoMore(t *testing.T) {
	t.Parallel()
	cases := []string{""}
	for _, table := range []string{"idempotency_keys", "idempotency_operations"} {
		for _, right := range []string{"select", "insert", "update", "delete", "all"} {
			cases = append(cases, right+" on "+table)
		}
	}
	for _, without := range cases {
		pool := pgtest.New(t)
		app := withRole(t, pool, "shop_app", without)
		lacks := without != ""
		if !strings.HasSuffix(without, "keys") {
			_, _, err := asks.Do(t.Context(), idempotency.New(app), idempotency.Key{Scope: "s", ID: "procedure"}, 1)
			wantDenied(t, err, without)
			without = "" // for nothing else
		}
		wantDenied(t, everything(t.Context(), app), without)
		findings, err := doctor.Check(t.Context(), app, idempotency.Config{})
		found := slices.ContainsFunc(findings, func(f doctor.Finding) bool { return f.Check == "privileges" })
		if err != nil || found != lacks {
			t.Errorf("without %q: %v, %v", without, findings, err)
		}
		if strings.HasPrefix(without, "select") && strings.Contains(fmt.Sprint(findings), "reader") {
			t.Errorf("who cannot look is told how to look only: %v", findings)
		}
	}
	app := withRole(t, pgtest.New(t), "shop_app", "select on idempotency_migrations")
	if err := everything(t.Context(), app); err != nil {
		t.Error("calls need the grant that is for migrations.Up: ", err)
	}
	err := migrations.Up(t.Context(), app, "")
	if err == nil || !strings.Contains(err.Error(), `grant select on "public"."idempotency_migrations" to `) {
		t.Errorf("Up does not name the grant that it needs: %v", err)
	}
	// In a schema that is not everybody's.
	pool := pgtest.New(t)
	app = withRole(t, pool, "shop_app", "")
	do(t, pool, "revoke usage on schema public from public")
	if err := everything(t.Context(), app); err != nil {
		t.Error(err)
	}
	if err := migrations.Up(t.Context(), app, ""); err != nil {
		t.Error(err)
	}
}

func wantDenied(t *testing.T, err error, without string) {
	t.Helper()
	denied, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case without == "" && err != nil:
		t.Error(err)
	case without != "" && (!ok || denied.Code != "42501"):
		t.Errorf("without %s: %v", without, err)
	}
}

func TestRoleOfTheOperatorsPageCanStartTheProgramOfTheReadme(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(program, []byte(blocks(string(readme), "go")[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	pool := pgtest.New(t)
	role := withRole(t, pool, "shop_app", "").Config().ConnConfig.RuntimeParams["role"]
	cmd := exec.CommandContext(t.Context(), "go", "run", program)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+with(pool, "role", role))
	out, err := cmd.CombinedOutput()
	if want := blocks(string(readme), "text")[0]; err != nil || string(out) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, out, want)
	}
}

func TestReaderOfTheOperatorsPageCanLookAndNotTouch(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	do(t, pool, "revoke create on schema public from public") // which PostgreSQL 14 grants
	execute(t, pool, "s", "i", 1)
	pid, end := hold(t, pool, "s", "held")
	defer end()
	reader := withRole(t, pool, "shop_reader", "")
	role := reader.Config().ConnConfig.RuntimeParams["role"]
	env := []string{"DATABASE_URL=" + with(pool, "role", role)}
	run(t, env, "get", "s", "i").wantAll(t, 0, "done", "not for this role to read")
	run(t, env, "list").wantAll(t, 0, "done", "not for this role to read")
	run(t, env, "find", "i").wantAll(t, 0, "done", "not for this role to read")
	run(t, env, "find", "held").wantLine(t, 3, "1 call is in progress that could be")
	for _, args := range []string{"get s i -json", "list -json", "find i -json", "list -json -prefix i"} {
		if o := objects(t, run(t, env, strings.Fields(args)...))[0]; o["id"] != "i" || o["result_bytes"] != nil {
			t.Errorf("%s: %v", args, o)
		}
	}
	for _, args := range []string{"get s i -show-result", "get s i -show-result -json", "list -show-result", "list -show-result -json"} {
		run(t, env, strings.Fields(args)...).wantLine(t, 1, `grant select (result) on idempotency_keys to "`+role+`"`)
	}
	for _, sql := range []string{"select result from idempotency_keys", "select input from idempotency_operations", "select results from idempotency_operations", "select error from idempotency_operations"} {
		if _, err := reader.Exec(t.Context(), sql); err == nil {
			t.Errorf("it can %s", sql)
		}
	}
	if _, err := reader.Exec(t.Context(), "select id, scope, number, started_at, progressed_at, due_at, attempts, name, labels from idempotency_operations"); err != nil {
		t.Error(err)
	}
	run(t, env, "stats").wantAll(t, 0, fmt.Sprintf("process %d", pid), " for ", "1 key")
	run(t, env, "get", "s", "held").wantLine(t, 4, fmt.Sprintf("process %d", pid), " for ")
	run(t, env, "migrate", "version").want(t, 0, latest()+"\n", "")
	run(t, env, "doctor", "-reader", "-strict").wantAll(t, 0, "healthy")
	run(t, env, "doctor").wantAll(t, 1, "lacks select, insert, update, delete", "doctor -reader")
	do(t, pool, "revoke select (origin) on idempotency_keys from "+role)
	run(t, env, "doctor", "-reader").wantAll(t, 1, "lacks select")
	do(t, pool, "grant select (origin, result) on idempotency_keys to "+role)
	run(t, env, "doctor", "-reader", "-strict").wantAll(t, 0, "healthy")
	run(t, env, "get", "s", "i", "-show-result").wantAll(t, 0, "1 B")
	run(t, env, "list", "-show-result", "-json").wantAll(t, 0, `"result":1`)
	unfinished := idempotency.Key{Scope: "s", ID: "unfinished"}
	if _, _, err := asks.Do(t.Context(), idempotency.New(pool), unfinished, 0); err == nil {
		t.Error("the procedure has ended")
	}
	if _, err := idempotency.New(reader).Get(t.Context(), unfinished); !errors.Is(err, idempotency.ErrUnfinished) {
		t.Error(err)
	}
	do(t, pool, "revoke select on idempotency_migrations from "+role)
	run(t, env, "migrate", "version").wantLine(t, 1, `grant select on "public"."idempotency_migrations" to "`+role+`"`)
	run(t, env, "delete", "s", "i", "-yes").wantLine(t, 1, "SQLSTATE 42501")
	run(t, env, "purge", "-once").wantLine(t, 1, "SQLSTATE 42501")
	do(t, pool, "revoke pg_monitor from "+role)
	run(t, env, "get", "s", "held").wantLine(t, 4, fmt.Sprintf("process %d", pid), "a member of pg_monitor may: grant pg_monitor to "+role)
	holder := objects(t, run(t, env, "get", "s", "held", "-json"))[0]["holders"].([]any)[0].(map[string]any)
	if holder["pid"] != float64(pid) || holder["application"] != t.Name() || holder["user"] != pool.Config().ConnConfig.User || holder["client"] != nil || holder["transaction_start"] != nil ||
		holder["transaction_seconds"] != nil || holder["grant"] != "grant pg_monitor to "+role {
		t.Errorf("%v", holder)
	}
	do(t, pool, "grant pg_read_all_stats to "+role)
	run(t, env, "get", "s", "held").wantLine(t, 4, fmt.Sprintf("process %d", pid), "client ", "since 2")
}

func TestPurgerOfTheOperatorsPageCanPurge(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	expiredRows(t, pool, 10)
	role := withRole(t, pool, "shop_purger", "").Config().ConnConfig.RuntimeParams["role"]
	env := []string{"DATABASE_URL=" + with(pool, "role", role)}
	run(t, env, "purge", "-once").want(t, 0, "10 expired records deleted\n", "")

	expiredRows(t, pool, 10)
	loop := command(t, env, "purge", "-every", "10ms")
	end := start(t, loop)
	eventually(t, "the loop deletes", func() bool {
		var left int
		if err := pool.QueryRow(t.Context(), "select count(*) from idempotency_keys").Scan(&left); err != nil {
			t.Fatal(err)
		}
		return left == 0
	})
	if err := loop.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	end().wantAll(t, 0, "10 expired records deleted")
}

func TestPurgerOfTheOperatorsPageHasNoMoreThanItNeeds(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	expiredRows(t, pool, 10)
	purger := withRole(t, pool, "shop_purger", "")
	role := purger.Config().ConnConfig.RuntimeParams["role"]
	for _, sql := range []string{"select id from idempotency_keys", "select scope from idempotency_keys", "select result from idempotency_keys",
		"select fingerprint from idempotency_keys", "update idempotency_keys set expires_at = now()", "update idempotency_keys set result = null",
		"insert into idempotency_keys (id, scope, purge_after) values ('i', 's', now())"} {
		_, err := purger.Exec(t.Context(), sql)
		if denied, ok := errors.AsType[*pgconn.PgError](err); !ok || denied.Code != "42501" {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for _, grant := range []string{"select (ctid)", "select (tableoid)", "select (purge_after)", "select (expires_at)", "update (purge_after)", "delete"} {
		do(t, pool, "revoke "+grant+" on idempotency_keys from "+role)
		run(t, []string{"DATABASE_URL=" + with(pool, "role", role)}, "purge", "-once").wantLine(t, 1, "SQLSTATE 42501")
		do(t, pool, "grant "+grant+" on idempotency_keys to "+role)
	}
	run(t, []string{"DATABASE_URL=" + with(pool, "role", role)}, "purge", "-once").want(t, 0, "10 expired records deleted\n", "")
}

func TestOwnerOfTheOperatorsPageCanMigrate(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	role := withRole(t, pool, "shop_owner", "").Config().ConnConfig.RuntimeParams["role"]
	env := []string{"DATABASE_URL=" + with(pool, "role", role)}
	run(t, env, "migrate", "up").want(t, 0, "up to date\n", "")
	run(t, env, "migrate", "version").want(t, 0, latest()+"\n", "")
	app := withRole(t, pool, "shop_app", "")
	if err := everything(t.Context(), app); err != nil {
		t.Error(err)
	}
	if err := migrations.Up(t.Context(), app, ""); err != nil {
		t.Error(err)
	}
	run(t, env, "migrate", "down", "-yes").want(t, 0, "removed\n", "")
}

// The call of which it was taken runs again by itself.
func TestEndingTheProcessThatHoldsAKeyFreesIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var sql string
	for _, block := range blocks(operatorsPage(t), "sql") {
		if strings.Contains(block, "pg_terminate_backend(4711)") {
			sql = block
		}
	}
	begun := make(chan uint32, 1)
	outcome := make(chan error, 1)
	var runs atomic.Int64
	go func() {
		_, _, err := idempotency.Do(context.Background(), idempotency.New(pool), idempotency.Key{Scope: "s", ID: "i"}, func(ctx context.Context, tx pgx.Tx) (int, error) {
			if runs.Add(1) > 1 {
				return 2, nil
			}
			begun <- tx.Conn().PgConn().PID()
			_, err := tx.Exec(ctx, "select pg_sleep(600)")
			return 1, err
		})
		outcome <- err
	}()
	do(t, pool, strings.Replace(sql, "4711", fmt.Sprint(<-begun), 1))
	if err := <-outcome; err != nil || runs.Load() != 2 {
		t.Errorf("%d runs, %v", runs.Load(), err)
	}
	run(t, on(pool), "get", "s", "i", "-json", "-show-result").wantAll(t, 0, `"result":2`)
}

func TestMonitoringStatementOfTheOperatorsPageIsTheAgeOfTheOldestExpired(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var sql string
	for _, block := range blocks(operatorsPage(t), "sql") {
		if strings.HasPrefix(block, "select coalesce") {
			sql = strings.TrimSuffix(strings.TrimSpace(block), ";")
		}
	}
	age := func() (seconds float64) {
		t.Helper()
		if err := pool.QueryRow(t.Context(), sql).Scan(&seconds); err != nil {
			t.Fatal(err)
		}
		return seconds
	}
	execute(t, pool, "s", "i", 1)
	if got := age(); got != 0 {
		t.Errorf("%v s with nothing expired", got)
	}
	aged(t, pool, "s", 25*time.Hour)
	if got := age(); got < 3600 || got > 3900 {
		t.Errorf("%v s, want an hour", got)
	}
}

func TestRetentionLostInARestoreIsGivenBack(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", "first")
	aged(t, pool, "s", 25*time.Hour) // the restore took so long
	var sql string
	for _, block := range blocks(operatorsPage(t), "sql") {
		if strings.HasPrefix(block, "update idempotency_keys") {
			sql = block
		}
	}
	run(t, on(pool), "get", "s", "i").wantAll(t, 0, "expired")
	do(t, pool, sql)
	run(t, on(pool), "get", "s", "i").wantAll(t, 0, "done", "in 4h59m")
	run(t, on(pool), "purge", "-once").want(t, 0, "0 expired records deleted\n", "")
	key := idempotency.Key{Scope: "s", ID: "i", Fingerprint: idempotency.FingerprintOf([]byte("i"))}
	value, replayed, err := idempotency.Do(t.Context(), idempotency.New(pool), key, func(context.Context, pgx.Tx) (string, error) { return "second", nil })
	if value != "first" || !replayed || err != nil {
		t.Errorf("%v, %v, %v", value, replayed, err)
	}
}

func TestSizePerKeyIsMeasured(t *testing.T) {
	t.Parallel()
	for _, bytes := range []int{20, 300, 1500, 20_000} {
		calls := 4000
		if bytes > 1000 { // of small rows more, else the last pages count
			calls = 800
		}
		pool := pgtest.New(t)
		store := idempotency.New(pool)
		var workers sync.WaitGroup
		for w := range 8 {
			workers.Go(func() {
				for i := range calls / 8 {
					at := time.Now().UnixMilli()
					key := idempotency.Key{
						Scope:       fmt.Sprint("customer-", i%100),
						ID:          fmt.Sprintf("%08x-%04x-7%03x-8%03x-%012x", at>>16, at&0xffff, rand.IntN(1<<12), w, rand.Int64N(1<<48)),
						Fingerprint: idempotency.FingerprintOf([]byte{byte(i)}),
					}
					_, _, err := idempotency.Do(context.Background(), store, key, func(context.Context, pgx.Tx) (string, error) {
						return random(bytes - 2), nil
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		workers.Wait()
		s := objects(t, run(t, on(pool), "stats", "-json"))[0]
		perKey := s["bytes_per_key"].(float64)
		t.Logf("results of %d B: %.0f B per key, of them indexes %.0f B", bytes, perKey, s["index_bytes"].(float64)/s["keys"].(float64))
		if perKey < float64(bytes) || perKey > 2*float64(bytes)+1500 {
			t.Errorf("%.0f B per key", perKey)
		}
	}
}

// random is a text that does not compress to much less.
func random(n int) string {
	text := make([]byte, n)
	for i := range text {
		text[i] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-"[rand.IntN(64)]
	}
	return string(text)
}
