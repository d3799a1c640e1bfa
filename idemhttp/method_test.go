package idemhttp_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/idemhttp"
)

// passing is a handler that charges under a key only, and says whether it does.
func (b *bundle) passing(w http.ResponseWriter, r *http.Request) {
	if tx := idemhttp.Tx(r.Context()); tx != nil {
		b.charge(r.Context(), tx)
		w.WriteHeader(http.StatusCreated)
		return
	}
	w.WriteHeader(http.StatusTeapot)
}

func TestMethodsWithoutEffectsPassThrough(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.serve(b.middleware(idemhttp.Config{}).Handler(http.HandlerFunc(b.passing)))
	for _, method := range []string{"GET", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "REPORT", "SEARCH", "QUERY"} {
		for range 2 {
			b.do(server, method, "/", "", withKey("k")).is(t, http.StatusTeapot, "", false)
		}
	}
	for _, method := range []string{"PUT", "DELETE"} {
		b.do(server, method, "/", "", nil).is(t, http.StatusTeapot, "", false)
	}
}

func TestNoMethodIsExecutedUnprotectedByOversight(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for name, test := range map[string]struct {
		methods []string
		method  string
		keyless bool // is executed without a key
	}{
		"fetch's patch":                          {nil, "patch", false},
		"a method that nobody knows":             {nil, "PURCHASE", false},
		"get, which is not GET":                  {nil, "get", false},
		"PUT with a key":                         {nil, "PUT", true},
		"DELETE with a key":                      {nil, "DELETE", true},
		"patch where PATCH is listed":            {[]string{"POST", "PATCH"}, "patch", false},
		"a listed PUT":                           {[]string{"PUT"}, "PUT", false},
		"a method that is not listed, but keyed": {[]string{"PUT"}, "POST", true},
		"an unknown method beside a list":        {[]string{"PUT"}, "LOCK", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.serve(b.middleware(idemhttp.Config{Methods: test.methods}).Handler(http.HandlerFunc(b.passing)))
			for _, replayed := range []bool{false, true} {
				b.do(server, test.method, "/", "", withKey("k")).is(t, 201, "", replayed)
			}
			b.effects(1)
			if got := b.do(server, test.method, "/", "", nil); (got.StatusCode == http.StatusTeapot) != test.keyless {
				t.Errorf("without a key: %d", got.StatusCode)
			}
			b.effects(1)
		})
	}
}

func TestOperationOfTheTransportIsProtectedWhateverItsMethodBecomes(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for _, sent := range []string{"POST", "PATCH", "patch", "PURCHASE"} {
		for _, becomes := range []string{"", "DELETE", "PUT", "PATCH", "delete"} {
			t.Run(sent+" becomes "+becomes, func(t *testing.T) {
				t.Parallel()
				b := shared.sub(t)
				inner := b.middleware(idemhttp.Config{}).Handler(http.HandlerFunc(b.passing))
				overridden := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if becomes != "" {
						r.Method = becomes
					}
					inner.ServeHTTP(w, r)
				})
				lost := false
				server := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if !lost { // it is executed, and its answer gets lost
						lost = true
						overridden.ServeHTTP(httptest.NewRecorder(), r)
						panic(http.ErrAbortHandler)
					}
					overridden.ServeHTTP(w, r)
				}))
				req, err := http.NewRequestWithContext(t.Context(), sent, server.URL, strings.NewReader("{}"))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Account", b.account)
				resp, err := b.transport(&http.Transport{}).Do(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != 201 || resp.Header.Get("Idempotent-Replayed") != "true" {
					t.Errorf("got %d, %v", resp.StatusCode, resp.Header)
				}
				b.effects(1)
			})
		}
	}
}

func TestAtomicTakesNoMethodButThoseOfItsConfig(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.serve(b.middleware(idemhttp.Config{}).Atomic(func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
		b.charge(r.Context(), tx)
		created(w, r)
	}))
	for _, method := range []string{"PUT", "DELETE", "patch", "PURCHASE", "GET"} {
		got := b.do(server, method, "/charges", "", withKey("k"))
		got.isProblem(t, 405, "not-protected")
		if got.Header.Get("Allow") != "POST, PATCH" {
			t.Errorf("%s: Allow: %q", method, got.Header.Get("Allow"))
		}
	}
	b.effects(0)
	b.post(server, "k").is(t, 201, `{"id": 1}`, false)
}
