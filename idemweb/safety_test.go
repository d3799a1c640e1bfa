package idemweb_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemweb"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestEachResponseHasAStrictPolicyAndIsNotKept(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{})
	cross := b.form("/key", "id", "i")
	cross.Header.Set("Sec-Fetch-Site", "cross-site")
	replies := []reply{b.get("/nothing"), b.get("/delete"), b.send(cross), b.find("", "")}
	for _, path := range idemweb.Paths() {
		replies = append(replies, b.get("/"+path))
	}
	for _, r := range append(replies, b.get("/style.css")) {
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
			"X-Content-Type-Options":  "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "same-origin",
			"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin", "X-Robots-Tag": "noindex",
		} {
			if got := r.header.Get(name); got != want {
				t.Errorf("%d: %s: %q", r.status, name, got)
			}
		}
	}
	for _, r := range replies {
		if r.header.Get("Cache-Control") != "no-store" || r.header.Get("Content-Type") != "text/html; charset=utf-8" {
			t.Errorf("%d: %v", r.status, r.header)
		}
		if regexp.MustCompile(`(?i)<script|<style| style=| on[a-z]+=|javascript:`).MatchString(r.body) {
			t.Errorf("it has something that the policy does not allow: %s", r.body)
		}
	}
}

func TestFormOfAnotherSiteIsRefused(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{Delete: always, Results: always})
	execute(t, pool, "s", "i", 1)
	for _, path := range []string{"/key", "/delete", "/scope"} {
		for name, value := range map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example.com"} {
			r := b.form(path, "key", idemweb.HandleOf("s", "i"), "of", idemweb.HandleOf("s", ""), "confirmed", "yes")
			r.Header.Del("Sec-Fetch-Site")
			r.Header.Set(name, value)
			b.send(r).want(t, 403, "The form came from another site", "Nothing was done")
		}
	}
	if records(t, pool) != 1 {
		t.Error("the record was deleted")
	}
	same := b.form("/key", "scope", "s", "id", "i") // a browser without Sec-Fetch-Site, as without TLS
	same.Header.Del("Sec-Fetch-Site")
	same.Header.Set("Origin", "http://"+same.Host)
	b.send(same).want(t, 200, "Recorded")
}

func TestMethodsAndPathsThatAreNotThere(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{Delete: always})
	for _, path := range []string{"/nothing", "/key/nothing", "/pages/layout.html", "/layout.html", "/style.css/"} {
		if r := b.get(path); path == "/style.css/" {
			r.want(t, 200, "Overview") // it ends in a slash
		} else {
			r.want(t, 404, "There is no such page")
		}
	}
	for _, method := range []string{"PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"} {
		for _, path := range idemweb.Paths() {
			r := httptest.NewRequest(method, "/"+path, nil).WithContext(t.Context())
			r.Header.Set("Sec-Fetch-Site", "same-origin")
			if got := b.send(r); got.status != 405 || !strings.Contains(got.header.Get("Allow"), "T") {
				t.Errorf("%s /%s: %d %v", method, path, got.status, got.header)
			}
		}
	}
	b.get("/delete").want(t, 405, "It takes POST.")
	b.post("/").want(t, 405, "It takes GET, HEAD.")
}

func TestHeadIsAnsweredAsGet(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	handler, err := idemweb.New(idempotency.New(pool), idemweb.Config{})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	defer server.Close()
	for _, path := range append(idemweb.Paths(), "style.css") {
		if path == "delete" {
			continue
		}
		resp, err := http.Head(server.URL + "/" + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("/%s: %d", path, resp.StatusCode)
		}
	}
}

// What a browser sends for a link or a form without an input of text is all that a log of
// requests has.
func TestKeyIsNeverInAURLUnlessTheOperatorTypedIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{Delete: always, Results: always})
	const scope, id = "scope-of-4711", "key-of-4711"
	execute(t, pool, scope, id, "result-of-4711")
	stop(t, pool, scope, id+"-ride")
	one := b.find(scope, id)
	asked := b.press(one, "Delete…")
	pages := []reply{b.get("/"), b.find("", id), one, asked, b.press(one, "Show the result"), b.press(one, "All keys of this scope"), b.get("/in-flight"),
		b.get("/unfinished"), b.get("/scope?scope=" + scope), b.get("/key?scope=" + scope + "&id=" + id), b.get("/health"), b.press(asked, "Delete the record")}
	addresses := regexp.MustCompile(`(href|action|src|content)="([^"]*)"`)
	for _, r := range pages {
		if r.status != 200 {
			t.Fatal(r.status, r.body)
		}
		if strings.Contains(r.body, `method="get"`) || strings.Contains(r.body, "<form action") {
			t.Errorf("a form puts its fields into the URL: %s", r.body)
		}
		for _, a := range addresses.FindAllStringSubmatch(r.body, -1) {
			if strings.Contains(a[2], "4711") || strings.Contains(a[2], idemweb.HandleOf(scope, id)) {
				t.Errorf("an address has the key: %s", a[0])
			}
		}
		if location := r.header.Get("Location"); location != "" {
			t.Errorf("it leads to %s", location)
		}
	}
	if !strings.Contains(pages[4].body, "result-of-4711") || strings.Contains(pages[2].body, "result-of-4711") {
		t.Error("the result is not shown, or too early")
	}
}

func TestResultIsShownOnDemandToWhomTheConfigAllowsIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", map[string]string{"card": "secret\u202e</pre><script>"})
	for _, results := range []func(*http.Request) bool{nil, func(r *http.Request) bool { return r.Header.Get("User") == "admin" }} {
		b := open(t, pool, idemweb.Config{Results: results})
		b.find("s", "i").wantNot(t, "Show the result", "secret")
		b.post("/key", "key", idemweb.HandleOf("s", "i"), "show", "result").wantNot(t, "secret")
	}
	b := open(t, pool, idemweb.Config{Results: always})
	b.find("s", "i").wantNot(t, "secret")
	b.get("/key?scope=s&id=i&show=result").wantNot(t, "secret") // a link could lead there
	shown := b.press(b.find("s", "i"), "Show the result")
	shown.want(t, 200, `{ "card": "secret\u202e`)
	if strings.Contains(shown.body, "<script") || strings.Contains(shown.body, "\u202e") {
		t.Error(shown.body)
	}
	execute(t, pool, "s", "long", strings.Repeat("é", 60_000))
	long := b.press(b.find("s", "long"), "Show the result")
	long.want(t, 200, "The first 64 kB of 117 kB.", "idempotency get -show-result")
	if n := strings.Count(long.body, "é"); n != 32767 {
		t.Errorf("%d characters are shown", n)
	}
	abandon(t, pool, "s", "abandoned")
	b.find("s", "abandoned").wantNot(t, "Show the result")
}

func TestSiteWorksBelowAnyPath(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pool, idemweb.Config{})
	execute(t, pool, "s", "i", 1)
	mux := http.NewServeMux()
	mux.Handle("/ops/keys/", b.handler)
	mux.Handle("/stripped/", http.StripPrefix("/stripped", b.handler))
	mux.Handle("/bare", http.StripPrefix("/bare", b.handler))
	mounted := browser{t, mux}
	for _, prefix := range []string{"/ops/keys/", "/stripped/"} {
		mounted.get(prefix).want(t, 200, "Overview", "1 keys")
		mounted.get(prefix+"style.css").want(t, 200, "color-scheme")
		mounted.post(prefix+"key", "scope", "s", "id", "i").want(t, 200, "Recorded")
		page := mounted.get(prefix + "in-flight")
		for _, a := range regexp.MustCompile(`(?:href|action)="([^"]*)"`).FindAllStringSubmatch(page.body, -1) {
			if u, err := url.Parse(a[1]); err != nil || u.IsAbs() || strings.HasPrefix(a[1], "/") {
				t.Errorf("not relative: %s", a[1])
			}
		}
	}
	if r := mounted.get("/bare"); r.status != 307 || r.header.Get("Location") != "./bare/" && r.header.Get("Location") != "/bare/" {
		t.Errorf("%d %v", r.status, r.header)
	}
}

// A looker knows, of each connection, which tables its transaction has looked at, and
// keeps what named others, or ran outside of a transaction.
type looker struct {
	seen  map[*pgx.Conn][]string
	blind []string
	named int
}

func (l *looker) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.HasPrefix(data.SQL, "begin") {
		l.seen[conn] = nil
	}
	if strings.Contains(data.SQL, "recursive friends") {
		for _, arg := range data.Args {
			if text, ok := arg.(string); ok {
				l.seen[conn] = append(l.seen[conn], text)
			}
		}
		return ctx
	}
	text := strings.ReplaceAll(data.SQL, "'\"public\"", "") // a name as a text, of which the catalog is asked
	for _, table := range []string{"idempotency_keys", "idempotency_operations"} {
		if strings.Contains(text, pgx.Identifier{"public", table}.Sanitize()) && !strings.HasPrefix(text, "lock table") {
			l.named++
			if !slices.Contains(l.seen[conn], table) {
				l.blind = append(l.blind, data.SQL)
			}
		}
	}
	return ctx
}

func (l *looker) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// Whatever is named in a statement can run something, so that the transaction has to have
// looked at it before.
func TestEachTransactionLooksAtEveryTableThatItsStatementsName(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	l := &looker{seen: map[*pgx.Conn][]string{}}
	abandon(t, pool, "s", "lost")
	b := open(t, pgtest.Pool(t, pool, func(cfg *pgxpool.Config) { cfg.ConnConfig.Tracer = l }), idemweb.Config{Delete: always, Results: always})
	for _, missing := range []bool{false, true} {
		if missing {
			do(t, pool, "drop table idempotency_operations")
		}
		execute(t, pool, "s", "i", 1)
		walk(t, b)
		for _, sql := range l.blind {
			if strings.Contains(sql, "purge_after <= now() and expires_at") || strings.Contains(sql, "idempotency_operations") && strings.Contains(sql, "select count(*)") {
				continue // the doctor's, which looks at the table in a way of its own
			}
			t.Errorf("missing %v: not looked at: %s", missing, sql)
		}
	}
	if l.named < 20 {
		t.Errorf("only %d statements named a table", l.named)
	}
}

// walk opens each page, and deletes the key i of scope s.
func walk(t *testing.T, b browser) {
	t.Helper()
	for _, path := range idemweb.Paths() {
		if path != "delete" {
			b.get("/"+path).want(t, 200)
		}
	}
	b.find("", "i").want(t, 200, "Recorded")
	b.find("s", "lost").want(t, 200)
	b.post("/scope", "scope", "s").want(t, 200, "Recorded")
	one := b.find("s", "i")
	b.press(one, "Show the result").want(t, 200)
	b.press(b.press(one, "Delete…"), "Delete the record").want(t, 200, "Deleted")
}

func TestTableThatObeysAStrangerIsNotRead(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	who := "stranger_" + pool.Config().ConnConfig.Database
	do(t, pool, "create role "+who)
	t.Cleanup(func() {
		_, _ = pool.Exec(context.Background(), "drop owned by "+who)
		_, _ = pool.Exec(context.Background(), "drop role "+who)
	})
	do(t, pool, "grant trigger on idempotency_keys to "+who)
	do(t, pool, "create function theirs() returns trigger language plpgsql as 'begin return old; end'")
	do(t, pool, "alter function theirs() owner to "+who)
	do(t, pool, "create trigger theirs before delete on idempotency_keys for each row execute function theirs()")
	b := open(t, pool, idemweb.Config{Delete: always})
	for _, r := range []reply{b.get("/"), b.find("s", "i"), b.get("/in-flight"), b.get("/unfinished"), b.post("/scope", "scope", "s"),
		b.post("/delete", "key", idemweb.HandleOf("s", "i")), b.post("/delete", "key", idemweb.HandleOf("s", "i"), "confirmed", "yes")} {
		r.want(t, 503, "The table is not read", who)
		r.wantNot(t, "Recorded")
	}
	b.get("/health").want(t, 200, who, "error")
	if records(t, pool) != 1 {
		t.Error("the record was deleted")
	}
}

func TestNoStatementOfThePageRunsWhatSomebodyHasPlanted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "s", "i", 1)
	abandon(t, pool, "s", "lost")
	stop(t, pool, "s", "ride")
	pgtest.Plant(t, pool, "../internal/inspect/*.go", "../internal/keytable/*.go", "../doctor/*.go")
	walk(t, open(t, pgtest.Pool(t, pool), idemweb.Config{Delete: always, Results: always}))
}

func TestSessionInWhichAnythingCouldRunIsRefused(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	b := open(t, pgtest.Pool(t, pool, func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["search_path"] = "public, pg_catalog" }), idemweb.Config{Delete: always})
	b.get("/").want(t, 503, "The table is not read", "names pg_catalog behind another schema")
	b.post("/delete", "key", idemweb.HandleOf("s", "i"), "confirmed", "yes").want(t, 503, "names pg_catalog behind another schema")
}

// The settings of a page, and its statements, are gone when the program has the connection
// again.
func TestPageLeavesNothingInTheSession(t *testing.T) {
	t.Parallel()
	all := pgtest.New(t)
	execute(t, all, "s", "i", 1)
	for _, encoding := range []string{"UTF8", "LATIN1"} { // of which the page makes UTF8
		pool := pgtest.Pool(t, all, pgtest.MaxConns(1), func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["client_encoding"] = encoding })
		settings := func() (all string) {
			t.Helper()
			err := pool.QueryRow(t.Context(), `select string_agg(name || '=' || setting, ' ' order by name) || (select ' ' || count(*) from pg_prepared_statements)
				from pg_settings where source = 'session' and name not like 'transaction%' or name in ('jit', 'enable_seqscan', 'statement_timeout', 'client_encoding')`, pgx.QueryExecModeExec).Scan(&all)
			if err != nil {
				t.Fatal(err)
			}
			return all
		}
		before := settings()
		b := open(t, pool, idemweb.Config{})
		for _, path := range []string{"/", "/in-flight", "/unfinished", "/scope?scope=s", "/key?scope=s&id=i", "/key?id=i"} {
			b.get(path).want(t, 200)
		}
		if after := settings(); after != before || !strings.Contains(after, "client_encoding="+encoding) {
			t.Errorf("before: %s, after: %s", before, after)
		}
	}
}
