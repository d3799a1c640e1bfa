package idemweb_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemweb"
	"github.com/pgidem/idempotency/internal/inspect"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestOverviewCountsWhatIsThere(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{})
	b.get("/").want(t, 200, "0 keys in flight", "0 unfinished", "0 keys", "nothing is left to be purged", "The table has no keys.", "No key that is still in the table was made in the last 24 hours.")
	for i := range 3 {
		execute(t, pool, "customer-7", fmt.Sprint("order-", i), strings.Repeat("x", 100*i))
	}
	execute(t, pool, "customer-8", "order-0", strings.Repeat("y", 1000))
	execute(t, pool, "customer-8", "expired", 1)
	expire(t, pool, "expired")
	abandon(t, pool, "customer-8", "lost")
	stop(t, pool, "rider", "ride")
	hold(t, pool, "s", "held")
	var hour, current string
	if err := pool.QueryRow(t.Context(), `select to_char(date_trunc('hour', now() at time zone 'UTC') - interval '1 hour', 'YYYY-MM-DD HH24:MI'),
		to_char(date_trunc('hour', now() at time zone 'UTC'), 'YYYY-MM-DD HH24:MI')`).Scan(&hour, &current); err != nil {
		t.Fatal(err)
	}
	do(t, pool, `update idempotency_keys set completed_at = $1::timestamp at time zone 'UTC' + interval '30 minutes',
		purge_after = $1::timestamp at time zone 'UTC' + interval '1 day 30 minutes', expires_at = $1::timestamp at time zone 'UTC' + interval '1 day 30 minutes' where expires_at > now()`, hour)
	do(t, pool, "update idempotency_keys set purge_after = now() - interval '2 hours' where id = 'order-0' and scope = 'customer-7'") // it has not expired
	r := b.get("/")
	if !strings.Contains(r.body, `<th scope="row">`+hour+`</th><td class="number">3</td>`) {
		t.Errorf("the hour %s does not have its calls: %s", hour, r.body)
	}
	if !strings.Contains(r.body, `<th scope="row">`+current+`</th>`) || strings.Count(r.body, ":00</th>") != 24 {
		t.Errorf("the hours do not end with %s: %s", current, r.body)
	}
	r.want(t, 200, "1 key in flight", "the oldest began ", "1 unfinished", "1 in a call whose outcome is not known", "7 keys", "1 of them expired", "1 abandoned",
		"oldest that is not purged: expired 1h0m ago", "The highest column: 3. ", "There are 3 scopes.")
	r.wantNot(t, "about", "sample")
	customer8, customer7 := strings.Index(r.body, "customer-8"), strings.Index(r.body, "customer-7")
	if customer8 < 0 || customer7 < customer8 {
		t.Error("the scope with more bytes does not come first")
	}
	b.press(r, "customer-8").want(t, 200, "Keys of customer-8", "lost", "Abandoned", "Expired", "Recorded")
}

func TestScopeWithTheMostBytesIsShownHoweverFewKeysItHas(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for i := range 12 {
		execute(t, pool, fmt.Sprint("small-", i), "one", 1)
		execute(t, pool, fmt.Sprint("small-", i), "two", 1)
	}
	execute(t, pool, "large", "one", strings.Repeat("y", 1500))
	r := open(t, pool, idemweb.Config{}).get("/")
	r.want(t, 200, "There are 13 scopes.")
	if large, small := strings.Index(r.body, "large"), strings.Index(r.body, "small-"); large < 0 || large > small {
		t.Errorf("it is not the first: %s", r.body)
	}
	if m := regexp.MustCompile(`<bdi>large</bdi>.*?<rect width="([\d.]+)"`).FindStringSubmatch(r.body); m == nil || m[1] != "100.0" {
		t.Errorf("its bar is not the widest: %v", m)
	}
}

func TestLargeTableIsEstimatedAndThePageSaysSo(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	do(t, pool, `insert into idempotency_keys (purge_after, id, scope, completed_at, expires_at, result)
		select now() + interval '1 day', 'order-' || i, 'customer-1', now(), now() + interval '1 day', convert_to(repeat('x', 1500), 'UTF8') from generate_series(1, 6000) i`)
	r := open(t, pool, idemweb.Config{}).get("/")
	r.want(t, 200, "“About” is an estimate from a sample of ", " % of the table.", "as far as the sample shows", "The sample has 1 scope; the table can have more.")
	m := regexp.MustCompile(`about (\d,\d{3}) keys`).FindStringSubmatch(r.text())
	if m == nil || m[1] < "4,500" || m[1] > "7,500" {
		t.Errorf("%v of 6,000 keys: %s", m, r.text())
	}
}

func TestWhatIsInFlightIsListedByAge(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{})
	empty := b.get("/in-flight")
	empty.want(t, 200, "No key is in flight.", "Refreshes every 5 seconds.")
	hold(t, pool, "s", "one")
	hold(t, pool, "s", "two")
	var pids []string
	if err := pool.QueryRow(t.Context(), "select array_agg(l.pid::text order by a.xact_start) from pg_locks l join pg_stat_activity a using (pid) where locktype = 'advisory' and l.database = (select oid from pg_database where datname = current_database())").Scan(&pids); err != nil || len(pids) != 2 {
		t.Fatal(pids, err)
	}
	r := b.get("/in-flight")
	r.want(t, 200, "2 keys in 2 transactions.", "no statement runs: the function is busy elsewhere, or frozen", "postgres", "PostgreSQL knows a key in flight as the number of a lock")
	if first, second := strings.Index(r.text(), pids[0]), strings.Index(r.text(), pids[1]); first < 0 || second < first {
		t.Errorf("%v are not listed, or the oldest is not the first: %s", pids, r.text())
	}
	if n := strings.Count(r.body, `<rect width="0"`); n != 5 && n != 4 {
		t.Errorf("%d empty bars", n)
	}
}

func TestRefreshIsWhatTheOperatorAskedFor(t *testing.T) {
	t.Parallel()
	b := open(t, pgtest.New(t), idemweb.Config{})
	for target, want := range map[string]string{
		"/in-flight": "5", "/in-flight?refresh=0": "", "/in-flight?refresh=60": "60", "/in-flight?refresh=1": "2", "/in-flight?refresh=999999": "3600",
		"/in-flight?refresh=-1": "", "/in-flight?refresh=x": "", "/": "", "/?refresh=30": "30", "/unfinished": "", "/unfinished?refresh=30": "30", "/health?refresh=30": "",
	} {
		r := b.get(target)
		m := regexp.MustCompile(`<meta http-equiv="refresh" content="(\d+)">`).FindStringSubmatch(r.body)
		if (m == nil) != (want == "") || m != nil && m[1] != want {
			t.Errorf("%s: %v, want %q", target, m, want)
		}
		if want != "" {
			r.want(t, 200, "Refreshes every "+strings.Replace(want, "3600", "3,600", 1)+" seconds. Stop refreshing")
		}
	}
}

func TestProceduresThatStandStillAreListedLongestFirst(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{})
	b.get("/unfinished").want(t, 200, "None: each procedure that has begun has ended.")
	stop(t, pool, "rider", "young")
	stop(t, pool, "rider", "zero")
	stop(t, pool, "rider", "held")
	do(t, pool, "update idempotency_operations set due_at = now() + interval '1 hour'")
	do(t, pool, "update idempotency_operations set progressed_at = progressed_at - interval '25 hours' where id = 'zero'")
	hold(t, pool, "other", "held") // another key
	r := b.get("/unfinished")
	r.want(t, 200, "3 have begun and not ended", "25h0m ago", "call charge", "1 next due", "ride")
	r.wantNot(t, "at work now", "or more")
	if old, young := strings.Index(r.body, ">zero<"), strings.Index(r.body, ">young<"); old < 0 || young < old {
		t.Error("the one that stands still for longest does not come first")
	}
	b.press(r, "zero").want(t, 200, "Procedure ride", "outcome unknown call charge")

	begun, end, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		p := ride(func(context.Context, string) (string, error) { close(begun); <-end; return "", errors.New("no answer") })
		_, _, _ = p.Do(context.Background(), idempotency.New(pool), idempotency.Key{Scope: "rider", ID: "held"}, 20)
	}()
	defer func() { close(end); <-ended }()
	<-begun
	b.get("/unfinished").want(t, 200, "at work now")
	held := b.find("rider", "held")
	held.want(t, 200, "In flight A procedure is at work.", "Procedure ride", "At work on it now", "call charge")
	held.wantNot(t, "idempotency settle") // it may end well
}

func TestKeysOfAScopeArePaged(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{})
	do(t, pool, `insert into idempotency_keys (purge_after, id, scope, completed_at, expires_at, result)
		select now() + i * interval '1 second', 'order-' || to_char(i, 'FM000'), case when i % 2 = 0 then 'even' else 'odd' end, now(), now() + i * interval '1 second', '1' from generate_series(1, 202) i`)
	first := b.post("/scope", "scope", "even")
	first.want(t, 200, "Keys of even", "order-202", "order-104", "The last to expire come first.")
	first.wantNot(t, "order-102", "order-201", "No index")
	second := b.press(first, "Next page")
	second.want(t, 200, "order-102", "order-004", "this is a later page")
	second.wantNot(t, "order-104", "order-002")
	third := b.press(second, "Next page")
	third.want(t, 200, "order-002")
	third.wantNot(t, "order-004", "Next page", "Go on")
	b.get("/scope").want(t, 200, "A scope’s keys")
	b.post("/scope", "scope", "none").want(t, 200, "The scope has no keys in the table.")
	b.post("/scope", "scope", "even", "after", "?").want(t, 400, "The form cannot be read")
	b.post("/scope", "of", "?").want(t, 400, "The form cannot be read")
	b.post("/scope", "scope", "a\x00").want(t, 400, "a NUL")
}

func TestHealthHasTheSizesAndWhatTheDoctorFinds(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	expire(t, pool, "i")
	b := open(t, pool, idemweb.Config{})
	b.get("/health").want(t, 200, "0 errors, ", " warning", " note", "superuser", "To do: ", "Size of all", "The indexes", "Oldest record that the purge should have deleted", "expired 20", "1h0m ago")
	do(t, pool, "drop index idempotency_keys_purge_after")
	b.get("/health").want(t, 200, "purge index", "warning")
	b.get("/health").wantNot(t, "could not ask all")
	empty := open(t, pgtest.Empty(t), idemweb.Config{})
	empty.get("/health").want(t, 200, "is missing", "migrations.Up")
	empty.get("/").want(t, 503, "is missing", "migrations.Up")
}

// reader makes a role without rights, and returns its name.
func reader(t *testing.T, pool *pgxpool.Pool) string {
	t.Helper()
	who := "reader_" + pool.Config().ConnConfig.Database
	do(t, pool, "revoke create on schema public from public; create role "+who) // which PostgreSQL 14 grants
	t.Cleanup(func() {
		_, _ = pool.Exec(context.Background(), "drop owned by "+who)
		_, _ = pool.Exec(context.Background(), "drop role "+who)
	})
	return who
}

func as(who string) pgtest.Option {
	return func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["role"] = who }
}

func TestReaderSeesAllButWhatWasRecorded(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", "secret")
	stop(t, pool, "s", "ride")
	who := reader(t, pool)
	do(t, pool, "grant select (id, scope, completed_at, expires_at, purge_after, fingerprint, origin) on idempotency_keys to "+who)
	do(t, pool, "grant select (id, scope, number, started_at, progressed_at, due_at, attempts, name, labels) on idempotency_operations to "+who)
	do(t, pool, "grant select on idempotency_migrations to "+who)
	b := open(t, pgtest.Pool(t, pool, as(who)), idemweb.Config{Results: always, Delete: always})
	hold(t, pool, "s", "held")
	for _, r := range []reply{b.find("s", "i"), b.find("", "i"), b.post("/scope", "scope", "s"), b.post("/key", "key", idemweb.HandleOf("s", "i"), "show", "result")} {
		r.want(t, 200, "Recorded", "not for this role to read")
		r.wantNot(t, "secret", "Show the result")
	}
	b.get("/").want(t, 200, "1 unfinished", "2 keys")
	b.get("/unfinished").want(t, 200, "ride")
	b.find("s", "ride").want(t, 200, "call charge: this role may not see whether it has ended")
	b.get("/in-flight").want(t, 200, "1 key in 1 transaction", "not for this role to see", "grant pg_monitor to "+who)
	b.get("/health").want(t, 200, "This role cannot make calls")
	b.get("/health").wantNot(t, "lacks")
	b.press(b.press(b.find("s", "i"), "Delete…"), "Delete the record").want(t, 503, "The role needs select, insert, update and delete")
	do(t, pool, "revoke select on idempotency_operations from "+who)
	do(t, pool, "revoke select (id) on idempotency_operations from "+who)
	b.get("/unfinished").want(t, 200, "This role may not read them")
	b.get("/").want(t, 200, "this role may not read them")
}

func TestErrorIsAPageInWordsWithoutThePassword(t *testing.T) {
	t.Parallel()
	for url, says := range map[string]string{
		"postgres://user:s3cret@127.0.0.1:1/db":  "No connection can be made: connect: connection refused.",
		"postgres://user:s3cret@no.invalid:1/db": "No connection can be made",
	} {
		pool, err := pgxpool.New(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		b := open(t, pool, idemweb.Config{Delete: always})
		for _, r := range []reply{b.get("/"), b.find("s", "i"), b.get("/health"), b.post("/delete", "key", idemweb.HandleOf("s", "i"), "confirmed", "yes")} {
			r.want(t, 503, "The database did not answer", says)
			r.wantNot(t, "s3cret", "127.0.0.1", "goroutine", ".go:")
		}
	}
	pool := pgtest.New(t)
	cfg := pool.Config()
	cfg.ConnConfig.RuntimeParams["role"] = "nobody_at_all"
	refused, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer refused.Close()
	open(t, refused, idemweb.Config{}).get("/").want(t, 503, "nobody_at_all", "SQLSTATE")
	execute(t, pool, "s", "i", 1)
	b := open(t, pool, idemweb.Config{})
	do(t, pool, "alter table idempotency_keys rename column origin to source")
	b.find("s", "i").want(t, 503, "The table is not read", "it has no column origin")
}

// The pool is the program's.
func TestPageWaitsForItsTurnAndTakesNoMoreThanTwoConnections(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	ctx, cancel := context.WithCancel(t.Context())
	lock, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Rollback(context.Background()) }()
	if _, err := lock.Exec(t.Context(), "lock table idempotency_keys in access exclusive mode"); err != nil {
		t.Fatal(err)
	}
	site := pgtest.Pool(t, pool, func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["application_name"] = "site" })
	b := open(t, site, idemweb.Config{})
	const requests = 6
	replies := make(chan reply, requests)
	for range requests {
		go func() { replies <- b.send(httptest.NewRequest(http.MethodGet, "/in-flight", nil).WithContext(ctx)) }()
	}
	timedOut := <-replies // the first two wait for the table, and give up after 2 s
	if n := site.Stat().TotalConns(); n > 2 {
		t.Errorf("%d connections", n)
	}
	timedOut.want(t, 503, "A statement took longer than 2s", "somebody has locked the table")
	cancel()
	for range requests - 1 {
		(<-replies).want(t, 503)
	}
}

func TestConfigIsValidated(t *testing.T) {
	t.Parallel()
	store := idempotency.New(pgtest.New(t))
	for _, trace := range []string{"", "https://traces.example.com/{trace}", "http://localhost:16686/trace/{trace}?from={origin}", "https://x/#{trace}"} {
		if _, err := idemweb.New(store, idemweb.Config{Trace: trace}); err != nil {
			t.Errorf("%s: %v", trace, err)
		}
	}
	for trace, says := range map[string]string{
		"https://traces.example.com/":     "has neither {trace} nor {origin}",
		"javascript:alert({trace})":       "has to begin with http:// or https:// and a host",
		"/trace/{trace}":                  "has to begin with http:// or https:// and a host",
		"https:///{trace}":                "has to begin with http:// or https:// and a host",
		"https://{origin}/trace":          "in the host",
		"https://{trace}.example.com":     "in the host",
		"https://a:b@x.{origin}?q":        "in the host",
		"https://x:{trace}/":              "in the host",
		"https://example.com/%zz/{trace}": "is not a URL",
	} {
		if _, err := idemweb.New(store, idemweb.Config{Trace: trace}); err == nil || !strings.HasPrefix(err.Error(), "idemweb: Config.Trace ") || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %s", trace, err, says)
		}
	}
	if _, err := idemweb.New(nil, idemweb.Config{}); err == nil {
		t.Error("a nil Store is accepted")
	}
}

func TestOriginStaysOnePartOfTheLink(t *testing.T) {
	t.Parallel()
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, row := range []struct{ template, origin, want string }{
		{"", parent, ""},
		{"https://x/{trace}", "", ""},
		{"https://x/{trace}", parent, "https://x/0af7651916cd43dd8448eb211c80319c"},
		{"https://x/{trace}", "request 7", ""},
		{"https://x/{trace}", parent + "x", ""},
		{"https://x/{origin}/y", "../a?b=c&d#e f+%", "https://x/%2E%2E%2Fa%3Fb%3Dc%26d%23e%20f%2B%25/y"},
		{"https://x/{origin}", "..", "https://x/%2E%2E"},
		{"https://x/?q={origin}", "{trace}", "https://x/?q=%7Btrace%7D"},
	} {
		if got := idemweb.TraceURL(row.template, row.origin); got != row.want {
			t.Errorf("%s of %q: %s, want %s", row.template, row.origin, got, row.want)
		}
	}
}

func TestKeyIsReadAsItIsWhateverTheClientEncoding(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "Zürich", 1)
	b := open(t, pgtest.Pool(t, pool, func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["client_encoding"] = "LATIN1" }), idemweb.Config{Delete: always})
	b.find("", "Zürich").want(t, 200, "Zürich", "Recorded")
	b.post("/scope", "scope", "s").want(t, 200, "Zürich")
}

func TestEachModeOfPgxShowsTheSame(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	stop(t, pool, "s", "ride")
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		execute(t, pool, "s", "i", 1)
		abandonAgain(t, pool)
		walk(t, open(t, pgtest.Pool(t, pool, func(cfg *pgxpool.Config) { cfg.ConnConfig.DefaultQueryExecMode = mode }), idemweb.Config{Delete: always, Results: always}))
	}
}

func abandonAgain(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	do(t, pool, "delete from idempotency_keys where id = 'lost'")
	abandon(t, pool, "s", "lost")
}

func TestTransactionsInFlightAreCountedByTheirAge(t *testing.T) {
	t.Parallel()
	now := inspect.Instant{Time: time.Now()}
	var holders []inspect.KeyHolder
	for i, seconds := range []inspect.Seconds{700, 600, 599, 60, 10, 1, 0.999, 0.1, 0.05, 0.01} { // the oldest first
		start := inspect.Instant{Time: now.Add(-time.Duration(float64(seconds) * float64(time.Second)))}
		holders = append(holders, inspect.KeyHolder{Holder: inspect.Holder{PID: int32(i + 1), Start: &start, Seconds: &seconds}, Keys: int64(i + 1)})
	}
	f := idemweb.NewFlight(append(holders, inspect.KeyHolder{Keys: 1}), now) // one that this role may not see
	var counts []int64
	for _, class := range f.Ages {
		counts = append(counts, class.Transactions)
	}
	if want := []int64{2, 2, 1, 1, 2, 2}; !slices.Equal(counts, want) || f.Most != 2 {
		t.Errorf("%v, want %v; most %d", counts, want, f.Most)
	}
	if f.Keys != 56 || f.Count() != 11 || f.More() != 0 || f.Oldest != holders[0].Start {
		t.Errorf("%d keys in %d transactions, %d not listed, the oldest since %v", f.Keys, f.Count(), f.More(), f.Oldest)
	}
	if f := idemweb.NewFlight(make([]inspect.KeyHolder, 203), now); f.More() != 3 || len(f.Holders) != 200 || f.Count() != 203 {
		t.Errorf("%d of %d are listed, %d not", len(f.Holders), f.Count(), f.More())
	}
}

func TestEstimateHasTwoDigitsThatCount(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "about 0", 7: "about 7", 99: "about 99", 104: "about 100", 1234: "about 1,200", 1250: "about 1,300", 98_765_432: "about 99,000,000"} {
		if got := idemweb.About(n, true); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	if got := idemweb.About(98_765_432, false); got != "98,765,432" {
		t.Error(got)
	}
}

// A pool that the program has used up is not waited for for ever.
func TestRequestGivesUpWithinItsBound(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t, pgtest.MaxConns(1))
	b := open(t, pool, idemweb.Config{})
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	b.send(httptest.NewRequest(http.MethodGet, "/in-flight", nil).WithContext(ctx)).want(t, 503, "No connection of the pool was free, or none could be made, within 10s.")
}

// A role that may read results, too, makes no calls.
func TestReaderOfTheWholeTableIsExaminedAsAReader(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	who := reader(t, pool)
	do(t, pool, "grant select on idempotency_keys, idempotency_operations, idempotency_migrations to "+who)
	r := open(t, pgtest.Pool(t, pool, as(who)), idemweb.Config{}).get("/health")
	r.want(t, 200, "Nothing that endangers the promise.", "This role cannot make calls")
	r.wantNot(t, "lacks")
}
