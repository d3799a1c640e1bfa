package idemhttp_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemhttp"
	"github.com/pgidem/idempotency/internal/pgtest"
	"github.com/pgidem/idempotency/internal/transport"
)

// event is the key of a webhook: the id of its event.
func event(_ *http.Request, body []byte) (string, error) {
	var e struct{ ID string }
	if err := json.Unmarshal(body, &e); err != nil {
		return "", errors.New("the body is no event")
	}
	return e.ID, nil
}

func TestKeyFromElsewhere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{Key: event, MaxKeyLength: 20}, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s of %s: %s", idemhttp.Key(r.Context()).ID, idemhttp.Key(r.Context()).Scope, body)
	})
	const delivery = `{"id": "evt 1"}`
	want := "evt 1 of " + b.account + ": " + delivery
	b.do(server, "POST", "/", delivery, nil).is(t, 200, want, false)
	b.do(server, "POST", "/", delivery, nil).is(t, 200, want, true)
	b.do(server, "POST", "/", delivery, withKey("not asked for")).is(t, 200, want, true)
	b.do(server, "POST", "/", `{"id": "evt 1", "more": true}`, nil).isProblem(t, 422, "key-reused")
	b.do(server, "POST", "/", `{}`, nil).isProblem(t, 400, "key-missing")
	b.do(server, "POST", "/", `{"id": "123456789012345678901"}`, nil).isProblem(t, 400, "key-invalid")
	b.do(server, "POST", "/", `{"id": "a\u0000b"}`, nil).isProblem(t, 400, "key-invalid")
	b.do(server, "POST", "/", `{"id": "\u0000"}`, nil).isProblem(t, 400, "key-invalid")
	longest := b.do(server, "POST", "/", `{"id": "12345678901234567890"}`, nil)
	if longest.StatusCode != 200 {
		t.Errorf("the longest key: %d %s", longest.StatusCode, longest.body)
	}
	got := b.do(server, "POST", "/", `{`, nil)
	got.isProblem(t, 400, "key-invalid")
	if !strings.Contains(got.body, "the body is no event.") {
		t.Errorf("got %s", got.body)
	}
	if b.reports() != "[]" {
		t.Errorf("reported %s", b.reports())
	}
	b.effects(2)
	// A field that is not the key's protects nothing.
	other := b.serve(b.middleware(idemhttp.Config{Key: event}).Handler(http.HandlerFunc(b.passing)))
	b.do(other, "PUT", "/", "{}", withKey("k")).is(t, http.StatusTeapot, "", false)
}

func TestProblemNamesTheOneThatTheDatabaseCannotHold(t *testing.T) {
	t.Parallel()
	b := &bundle{TB: t}
	b.pool = pgtest.Encoded(t, "LATIN1", pgtest.Direct, func(cfg *pgxpool.Config) {
		cfg.ConnConfig.RuntimeParams["client_encoding"] = "UTF8"
	})
	b.store = b.storeOn(b.pool, idempotency.Config{})
	server := b.serve(b.middleware(idemhttp.Config{Key: event}).Handler(http.HandlerFunc(created)))
	for _, test := range []struct{ scope, id, name string }{
		{"a", "€", "key-invalid"}, {"€", "k", "scope-invalid"}, {"€", "€", "scope-invalid"}, {strings.Repeat("a", 256), "€", "scope-invalid"},
		{"a\xff", "k", "scope-invalid"}, {strings.Repeat("a", 255), "€", "key-invalid"},
	} {
		b.do(server, "POST", "/", `{"id": "`+test.id+`"}`, func(r *http.Request) { r.Header.Set("Account", test.scope) }).isProblem(t, 400, test.name)
	}
	b.do(server, "POST", "/", `{"id": "ä"}`, func(r *http.Request) { r.Header.Set("Account", "a") }).is(t, 201, `{"id": 1}`, false)
	if b.reports() != "[]" {
		t.Errorf("reported %s", b.reports())
	}
}

func TestKeyFromElsewhereCanBeOptional(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{Key: event, Optional: true}, created)
	b.do(server, "POST", "/", `{}`, nil).is(t, 201, `{"id": 1}`, false)
	b.do(server, "POST", "/", `{}`, nil).is(t, 201, `{"id": 1}`, false)
	b.effects(2)
	p := b.middleware(idemhttp.Config{Key: event}).Policy()
	if p.Header != "" || strings.Contains(p.KeyFormat, "RFC") {
		t.Errorf("the policy is %+v", p)
	}
}

func TestKeyOfARequestIsInItsContext(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if k := idemhttp.Key(t.Context()); k != (idempotency.Key{}) {
		t.Errorf("without a request: %v", k)
	}
	server := b.serve(b.middleware(idemhttp.Config{}).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k := idemhttp.Key(r.Context())
		fmt.Fprintf(w, "%q %q %v", k.Scope, k.ID, k.Fingerprint != idempotency.Fingerprint{})
	})))
	b.post(server, `"a;b"`).is(t, 200, `"account-1" "a;b" true`, false)
	b.do(server, "PUT", "/", "", nil).is(t, 200, `"" "" false`, false)
}

func TestErrorsAreWrittenInTheFormatOfTheHouse(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.store = b.storeOn(b.pool, idempotency.Config{Wait: -1})
	running, finish := make(chan bool), make(chan bool)
	server := b.protected(idemhttp.Config{
		Documentation: "https://example.com/",
		WriteError: func(w http.ResponseWriter, r *http.Request, p idemhttp.Problem) {
			if p.Name == "in-progress" { // for clients that do not repeat a 409
				p.Status, p.RetryAfter = http.StatusServiceUnavailable, 1500*time.Millisecond
				p.Type = "https://errors.example.com/busy"
				p.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(p.Status)
			fmt.Fprintf(w, `{"error": %q, "behind": %q, "path": %q}`, p.Name, fmt.Sprint(p.Err), r.URL.Path)
		},
	}, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Fail") != "" {
			_, _ = idemhttp.Tx(r.Context()).Exec(r.Context(), "select 1/0")
		} else {
			running <- true
			<-finish
		}
		created(w, r)
	})
	got := b.do(server, "POST", "/a", "", nil)
	if got.StatusCode != 400 || got.body != `{"error": "key-missing", "behind": "<nil>", "path": "/a"}` ||
		got.Header.Get("Content-Type") != "application/json" || !strings.HasPrefix(got.Header.Get("Link"), "<https://example.com/>") {
		t.Errorf("got %d %s %v", got.StatusCode, got.body, got.Header)
	}
	got = b.do(server, "POST", "/a", "", func(r *http.Request) { withKey("f")(r); r.Header.Set("Fail", "1") })
	if got.StatusCode != 500 || !strings.Contains(got.body, "22012") || !strings.Contains(b.reports(), "22012") {
		t.Errorf("got %d %s, reported %s", got.StatusCode, got.body, b.reports())
	}
	first := make(chan answer)
	go func() { first <- b.post(server, "k") }()
	<-running
	got = b.post(server, "k")
	if got.StatusCode != 503 || got.Header.Get("Retry-After") != "2" || !strings.Contains(got.body, `"type":"https://errors.example.com/busy"`) {
		t.Errorf("got %d %s %v", got.StatusCode, got.body, got.Header)
	}
	finish <- true
	a := <-first
	a.is(t, 201, `{"id": 1}`, false)
}

func TestEveryErrorGoesThroughTheHook(t *testing.T) {
	t.Parallel()
	b := setup(t)
	m := b.middleware(idemhttp.Config{
		MaxRequestBody: 10,
		WriteError: func(w http.ResponseWriter, _ *http.Request, p idemhttp.Problem) {
			w.WriteHeader(p.Status)
			io.WriteString(w, "house: "+p.Name)
		},
	})
	server := b.serve(m.Handler(b.charging(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
	})))
	for _, test := range []struct {
		body string
		edit func(*http.Request)
		want string
	}{
		{"", nil, "key-missing"},
		{"", withKey("a b"), "key-invalid"},
		{"", func(r *http.Request) { withKey("k")(r); r.Header.Del("Account") }, "no-scope"},
		{"", func(r *http.Request) { withKey("k")(r); r.Header.Set("Account", strings.Repeat("a", 256)) }, "scope-invalid"},
		{strings.Repeat("a", 11), withKey("k"), "body-too-large"},
		{"", withKey("k"), "unrecordable"},
	} {
		if got := b.do(server, "POST", "/", test.body, test.edit); got.body != "house: "+test.want {
			t.Errorf("got %q, want %s", got.body, test.want)
		}
	}
	atomic := b.serve(m.Atomic(nil))
	if got := b.do(atomic, "GET", "/", "", nil); got.body != "house: not-protected" {
		t.Errorf("got %q", got.body)
	}
}

func TestOutcomeCanBeInTheHeaderOrTheTrailer(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	record := func(status int, header, trailer http.Header) bool {
		return idemhttp.Final(status) && header.Get("X-Error") == "" && trailer.Get("X-Status") != "failed"
	}
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		final   bool
	}{
		"neither":            {func(w http.ResponseWriter, _ *http.Request) {}, true},
		"a header":           {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-Error", "1") }, false},
		"a header, too late": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200); w.Header().Set("X-Error", "1") }, true},
		"an unforeseen trailer": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(200)
			w.Header().Set(http.TrailerPrefix+"X-Status", "failed")
		}, false},
		"an announced trailer": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-Status")
			w.WriteHeader(200)
			w.Header().Set("X-Status", "failed")
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{Record: record}, test.handler)
			b.post(server, "k").is(t, 200, "", false)
			b.effects(map[bool]int{true: 1, false: 0}[test.final])
			b.post(server, "k").is(t, 200, "", test.final)
		})
	}
}

func TestHandlerCanSayThatItsResponseIsNotToBeKept(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{Record: func(int, http.Header, http.Header) bool { return true }}, func(w http.ResponseWriter, r *http.Request) {
		if b.runs.Load() == 1 {
			idemhttp.RollBack(r.Context())
			io.WriteString(w, `{"errors": ["try again"]}`)
			return
		}
		io.WriteString(w, `{"data": 1}`)
	})
	b.post(server, "k").is(t, 200, `{"errors": ["try again"]}`, false)
	b.effects(0)
	b.post(server, "k").is(t, 200, `{"data": 1}`, false)
	b.post(server, "k").is(t, 200, `{"data": 1}`, true)
	b.effects(1)
	idemhttp.RollBack(t.Context()) // no request: nothing
}

func TestResponseNotToBeKeptIsOfOneRun(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.serve(b.middleware(idemhttp.Config{}).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b.runs.Load() == 0 {
			idemhttp.RollBack(r.Context())
		}
		b.flaky(w, r)
	})))
	b.post(server, "k").is(t, 201, `{"id": 1}`, false)
	b.post(server, "k").is(t, 201, `{"id": 1}`, true)
	b.effects(1)
}

// A replay asks no handler: rights belong in front of it.
func TestAuthorisationInFrontIsAskedBeforeAReplay(t *testing.T) {
	t.Parallel()
	b := setup(t)
	role := "treasurer"
	charges := b.middleware(idemhttp.Config{}).Handler(b.charging(created))
	inFront := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if role != "treasurer" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		charges.ServeHTTP(w, r)
	}))
	inScope := b.protected(idemhttp.Config{Scope: func(r *http.Request) (string, error) {
		return r.Header.Get("Account") + "/" + role, nil
	}}, func(w http.ResponseWriter, r *http.Request) {
		if role != "treasurer" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		created(w, r)
	})
	for _, server := range []string{inFront.URL, inScope.URL} {
		for _, test := range []struct {
			role   string
			status int
		}{{"treasurer", 201}, {"treasurer", 201}, {"guest", 403}, {"treasurer", 201}} {
			role = test.role
			req, _ := http.NewRequestWithContext(t.Context(), "POST", server, strings.NewReader("{}"))
			req.Header.Set("Account", b.account)
			withKey("k")(req)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != test.status {
				t.Errorf("%s got %d", test.role, resp.StatusCode)
			}
		}
	}
	b.effects(2)
}

func TestTransactionAndKeyAreWhereCodeUnderOtherTransportsLooks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.serve(b.middleware(idemhttp.Config{}).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		run := transport.RunOf(r.Context()) // of which Tx of idemgrpc and idemconnect reads
		if run == nil || transport.Tx(r.Context()) != idemhttp.Tx(r.Context()) || run.Key != idemhttp.Key(r.Context()) {
			t.Errorf("run %v", run)
		}
		created(w, r)
	})))
	b.post(server, "k").is(t, 201, `{"id": 1}`, false)
	if transport.Tx(t.Context()) != nil || idemhttp.Tx(t.Context()) != nil {
		t.Error("a transaction where there is no request")
	}
}
