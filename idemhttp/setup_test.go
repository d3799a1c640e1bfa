package idemhttp_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemhttp"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// A bundle is what a test starts with: a database of its own with one business
// table, a Store on it, and a count of what the handlers have done.
type bundle struct {
	testing.TB
	pool    *pgxpool.Pool
	store   *idempotency.Store
	account string // whose charges and keys the bundle's are
	runs    atomic.Int64

	mu       sync.Mutex
	reported []error
}

func setup(t testing.TB, opts ...pgtest.Option) *bundle {
	t.Helper()
	b := &bundle{TB: t, pool: pgtest.New(t, opts...), account: "account-1"}
	if _, err := b.pool.Exec(t.Context(), `create table charges (account text not null, amount int not null)`); err != nil {
		t.Fatal(err)
	}
	b.store = b.storeOn(b.pool, idempotency.Config{})
	return b
}

// sub is a bundle for a subtest: another account in the same database.
func (b *bundle) sub(t testing.TB) *bundle {
	return &bundle{TB: t, pool: b.pool, store: b.store, account: t.Name()}
}

func (b *bundle) storeOn(pool *pgxpool.Pool, cfg idempotency.Config) *idempotency.Store {
	b.Helper()
	store, err := idempotency.NewWithConfig(pool, cfg)
	if err != nil {
		b.Fatal(err)
	}
	return store
}

// account is the Scope of the tests: who sends a request is in a header.
func account(r *http.Request) (string, error) {
	return r.Header.Get("Account"), nil
}

// middleware is New with the Scope and the Report of the tests.
func (b *bundle) middleware(cfg idemhttp.Config) *idemhttp.Middleware {
	b.Helper()
	if cfg.Scope == nil {
		cfg.Scope = account
	}
	cfg.Report = func(_ *http.Request, err error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.reported = append(b.reported, err)
	}
	m, err := idemhttp.New(b.store, cfg)
	if err != nil {
		b.Fatal(err)
	}
	return m
}

// reports returns what was reported, as one text.
func (b *bundle) reports() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return fmt.Sprint(b.reported)
}

// charge is the business of the tests: one row for each run.
func (b *bundle) charge(ctx context.Context, tx pgx.Tx) {
	b.runs.Add(1)
	if _, err := tx.Exec(ctx, `insert into charges values ($1, 10)`, b.account); err != nil {
		b.Errorf("charging: %v", err)
	}
}

// charging is a handler that charges and then does what respond does.
func (b *bundle) charging(respond http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.charge(r.Context(), idemhttp.Tx(r.Context()))
		respond(w, r)
	})
}

// serve starts a server for a handler.
func (b *bundle) serve(h http.Handler) *httptest.Server {
	b.Helper()
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = discardLog
	server.Start()
	b.Cleanup(server.Close)
	return server
}

// protected serves one charging handler behind a Middleware.
func (b *bundle) protected(cfg idemhttp.Config, respond http.HandlerFunc) *httptest.Server {
	b.Helper()
	return b.serve(b.middleware(cfg).Handler(b.charging(respond)))
}

// effects checks how many charges are in the table.
func (b *bundle) effects(want int) {
	b.Helper()
	var got int
	if err := b.pool.QueryRow(context.Background(), `select count(*) from charges where account = $1`, b.account).Scan(&got); err != nil {
		b.Fatal(err)
	}
	if got != want {
		b.Errorf("%d charges, want %d", got, want)
	}
}

// ran checks how often handlers have run.
func (b *bundle) ran(want int64) {
	b.Helper()
	if got := b.runs.Load(); got != want {
		b.Errorf("the handler has run %d times, want %d", got, want)
	}
}

// An answer is a response, read whole.
type answer struct {
	*http.Response
	body string
}

// do sends a request; what edits it can be nil.
func (b *bundle) do(server *httptest.Server, method, path, body string, edit func(*http.Request)) answer {
	b.Helper()
	got, err := b.try(server, method, path, body, edit)
	if err != nil {
		b.Fatal(err)
	}
	return got
}

func (b *bundle) try(server *httptest.Server, method, path, body string, edit func(*http.Request)) (answer, error) {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), method, server.URL+path, strings.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Account", b.account)
	if edit != nil {
		edit(req)
	}
	resp, err := server.Client().Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp, string(text)}, err
}

// post sends the request of most tests under a key.
func (b *bundle) post(server *httptest.Server, key string) answer {
	b.Helper()
	return b.do(server, "POST", "/charges", `{"amount": 10}`, withKey(key))
}

func withKey(key string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Idempotency-Key", key) }
}

// is checks status, body and whether the answer is a replay.
func (a answer) is(t testing.TB, status int, body string, replayed bool) {
	t.Helper()
	if a.StatusCode != status || a.body != body || (a.Header.Get("Idempotent-Replayed") == "true") != replayed {
		t.Errorf("got %d %q, replayed %q; want %d %q, %v",
			a.StatusCode, a.body, a.Header.Get("Idempotent-Replayed"), status, body, replayed)
	}
}

// isProblem checks status and type, and that the answer is what RFC 9457 asks.
func (a answer) isProblem(t testing.TB, status int, name string) {
	t.Helper()
	var p struct {
		Type, Title, Detail string
		Status              int
	}
	if err := json.Unmarshal([]byte(a.body), &p); err != nil {
		t.Errorf("got %d %q: %v", a.StatusCode, a.body, err)
		return
	}
	if a.StatusCode != status || p.Status != status || !strings.HasSuffix(p.Type, "docs/http.md#"+name) || p.Title == "" {
		t.Errorf("got %d %s, want %d %s", a.StatusCode, a.body, status, name)
	}
	if got := a.Header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("a problem of type %q", got)
	}
	retry := a.Header.Get("Retry-After") != ""
	if retry != (status == http.StatusConflict || status == http.StatusServiceUnavailable) {
		t.Errorf("%d with Retry-After %q", status, a.Header.Get("Retry-After"))
	}
}
