package idemweb_test

import (
	"context"
	"errors"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemweb"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// A browser sends requests to a site as a browser does that is on one of its pages.
type browser struct {
	t       *testing.T
	handler http.Handler
}

// A reply is what came back.
type reply struct {
	status int
	header http.Header
	body   string
}

func always(*http.Request) bool { return true }

// open returns a browser on the site of a Store on pool.
func open(t *testing.T, pool *pgxpool.Pool, cfg idemweb.Config) browser {
	t.Helper()
	return openStore(t, idempotency.New(pool), cfg)
}

func openStore(t *testing.T, store *idempotency.Store, cfg idemweb.Config) browser {
	t.Helper()
	handler, err := idemweb.New(store, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return browser{t, handler}
}

func (b browser) send(r *http.Request) reply {
	b.t.Helper()
	w := httptest.NewRecorder()
	b.handler.ServeHTTP(w, r)
	body, err := io.ReadAll(w.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return reply{w.Code, w.Result().Header, string(body)}
}

func (b browser) get(target string) reply {
	b.t.Helper()
	return b.send(httptest.NewRequest(http.MethodGet, target, nil).WithContext(b.t.Context()))
}

// form is the request that a form of the page makes.
func (b browser) form(path string, fields ...string) *http.Request {
	values := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		values.Set(fields[i], fields[i+1])
	}
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(values.Encode())).WithContext(b.t.Context())
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	return r
}

func (b browser) post(path string, fields ...string) reply {
	b.t.Helper()
	return b.send(b.form(path, fields...))
}

// find is what the page says of a key.
func (b browser) find(scope, id string) reply {
	b.t.Helper()
	return b.post("/key", "scope", scope, "id", id)
}

var hiddenField = regexp.MustCompile(`<form method="post" action="(\w+)">((?:<input type="hidden" name="\w+" value="[^"]*">)+)<button[^>]*>(.*?)</button>`)
var field = regexp.MustCompile(`name="(\w+)" value="([^"]*)"`)

// press sends the form of the first button that says text.
func (b browser) press(r reply, text string) reply {
	b.t.Helper()
	for _, form := range hiddenField.FindAllStringSubmatch(r.body, -1) {
		if !strings.Contains(html.UnescapeString(form[3]), text) {
			continue
		}
		var fields []string
		for _, f := range field.FindAllStringSubmatch(form[2], -1) {
			fields = append(fields, f[1], html.UnescapeString(f[2]))
		}
		return b.post("/"+form[1], fields...)
	}
	b.t.Fatalf("there is no button %q on the page: %s", text, r.body)
	return reply{}
}

func (r reply) want(t *testing.T, status int, texts ...string) {
	t.Helper()
	if r.status != status {
		t.Errorf("status %d, want %d", r.status, status)
	}
	for _, text := range texts {
		if !strings.Contains(r.text(), text) {
			t.Errorf("the page does not say %q: %s", text, r.body)
		}
	}
}

func (r reply) wantNot(t *testing.T, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if strings.Contains(r.text(), text) {
			t.Errorf("the page says %q: %s", text, r.body)
		}
	}
}

var tag = regexp.MustCompile(`<[^>]*>`)
var blank = regexp.MustCompile(`\s+`)

// text is what a person reads.
func (r reply) text() string {
	return blank.ReplaceAllString(html.UnescapeString(tag.ReplaceAllString(r.body, "")), " ")
}

func do(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// execute records a call.
func execute(t *testing.T, pool *pgxpool.Pool, scope, id string, value any) {
	t.Helper()
	store, err := idempotency.NewWithConfig(pool, idempotency.Config{Trace: func(ctx context.Context, _ string) (context.Context, string) {
		return ctx, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	}})
	if err != nil {
		t.Fatal(err)
	}
	key := idempotency.Key{Scope: scope, ID: id, Fingerprint: idempotency.FingerprintOf([]byte("request"))}
	_, _, err = idempotency.Do(t.Context(), store, key, func(context.Context, pgx.Tx) (any, error) { return value, nil })
	if err != nil {
		t.Fatal(err)
	}
}

// abandon leaves a row without a result.
func abandon(t *testing.T, pool *pgxpool.Pool, scope, id string) {
	t.Helper()
	do(t, pool, "insert into idempotency_keys (id, scope, purge_after) values ($1, $2, now() + interval '1 day')", id, scope)
}

// expire lets the retention of a record be over.
func expire(t *testing.T, pool *pgxpool.Pool, id string) {
	t.Helper()
	do(t, pool, "update idempotency_keys set expires_at = now() - interval '1 hour', purge_after = now() - interval '1 hour' where id = $1", id)
}

func ride(charge func(ctx context.Context, key string) (string, error)) idempotency.Procedure[int, string] {
	return idempotency.Procedure[int, string]{Name: "ride", Run: func(ctx context.Context, op *idempotency.Op, amount int) (string, error) {
		if _, err := idempotency.Step(ctx, op, "create", func(context.Context, pgx.Tx) (int, error) { return 7, nil }); err != nil {
			return "", err
		}
		return idempotency.Call(ctx, op, "charge", charge)
	}}
}

// stop begins a procedure whose provider does not answer.
func stop(t *testing.T, pool *pgxpool.Pool, scope, id string) {
	t.Helper()
	noAnswer := errors.New("no answer from the provider")
	p := ride(func(context.Context, string) (string, error) { return "", noAnswer })
	if _, _, err := p.Do(t.Context(), idempotency.New(pool), idempotency.Key{Scope: scope, ID: id}, 20); !errors.Is(err, noAnswer) {
		t.Fatal(err)
	}
	_, _ = idempotency.New(pool).Complete(t.Context(), 0, p) // an attempt that fails as well
}

// hold begins a call that ends with the test, and waits until it has its key.
func hold(t *testing.T, pool *pgxpool.Pool, scope, id string) {
	t.Helper()
	begun, end, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		_, _, err := idempotency.Do(context.Background(), idempotency.New(pool), idempotency.Key{Scope: scope, ID: id}, func(context.Context, pgx.Tx) (int, error) {
			close(begun)
			<-end
			return 0, errors.New("the test has ended")
		})
		if err == nil {
			t.Error("the call has ended well")
		}
	}()
	t.Cleanup(func() { close(end); <-ended })
	<-begun
}
