package idemhttp

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// asBefore serves a request that an earlier release has recorded under its key:
// with the fingerprint that the given function makes.
func asBefore(t *testing.T, cfg Config, made func(*http.Request, []byte) idempotency.Fingerprint) (*httptest.Server, func(*http.Request) *http.Response) {
	t.Helper()
	store := idempotency.New(pgtest.New(t))
	cfg.Scope = func(*http.Request) (string, error) { return "a", nil }
	record := func(r *http.Request, body []byte) { // as the earlier release does
		_, _, err := idempotency.Do(r.Context(), store, idempotency.Key{Scope: "a", ID: "k", Fingerprint: made(r, body)},
			func(context.Context, pgx.Tx) (record, error) { return onlyStatus(record{Status: 299}), nil })
		if err != nil {
			t.Error(err)
		}
	}
	m, err := New(store, cfg)
	if err != nil {
		t.Fatal(err)
	}
	handler := m.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	first := true
	server := httptest.NewServer(http.StripPrefix("/eu", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if first {
			first = false
			x := &exchange{m: m, w: w, r: r}
			x.readBody()
			record(r, x.body.bytes)
			return
		}
		handler.ServeHTTP(w, r)
	})))
	t.Cleanup(server.Close)
	return server, func(r *http.Request) *http.Response {
		resp, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
}

func TestRequestUnderWayDuringAReleaseIsTheSameAfterIt(t *testing.T) {
	t.Parallel()
	former := func(fields ...string) func(*http.Request, []byte) idempotency.Fingerprint {
		if fields == nil {
			fields = []string{"Content-Type", "Content-Encoding"}
		}
		return func(r *http.Request, body []byte) idempotency.Fingerprint { return formerFingerprint(r, body, fields) }
	}
	oldKey, newKey := []byte("0123456789abcdef"), []byte("fedcba9876543210")
	today := func(key []byte) func(*http.Request, []byte) idempotency.Fingerprint {
		return func(r *http.Request, body []byte) idempotency.Fingerprint {
			return hmacOf(key, fingerprint(r, body, []string{"Content-Type", "Content-Encoding"}))
		}
	}
	own := func(_ *http.Request, body []byte) idempotency.Fingerprint { return idempotency.FingerprintOf(body) }
	for name, test := range map[string]struct {
		cfg               Config
		contentType, body string
		made              func(*http.Request, []byte) idempotency.Fingerprint
		status            int
	}{
		"the charset of JSON":                       {Config{}, "application/json; charset=UTF-8", "{}", former(), 299},
		"a stripped prefix":                         {Config{}, "application/json", "{}", former(), 299},
		"multipart":                                 {Config{}, "multipart/form-data; boundary=x", "--x\r\n\r\na\r\n--x--", former(), 299},
		"the Host":                                  {Config{FingerprintHeaders: []string{"Host"}}, "text/plain", "a", former("Host"), 299},
		"no key, then one":                          {Config{FingerprintKeys: [][]byte{newKey}}, "text/plain", "a", today(nil), 299},
		"no key, and former rules":                  {Config{FingerprintKeys: [][]byte{newKey}}, "text/plain", "a", former(), 299},
		"another key, then this one":                {Config{FingerprintKeys: [][]byte{newKey, oldKey}}, "text/plain", "a", today(oldKey), 299},
		"a key to come":                             {Config{FingerprintKeys: [][]byte{nil, newKey}}, "text/plain", "a", today(newKey), 299},
		"a key, and a function":                     {Config{FingerprintKeys: [][]byte{newKey}, Fingerprint: own}, "text/plain", "a", own, 299},
		"a key that is gone":                        {Config{FingerprintKeys: [][]byte{newKey}}, "text/plain", "a", today(oldKey), 422},
		"former rules, and a function of one's own": {Config{Fingerprint: own}, "text/plain", "a", former(), 422},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, send := asBefore(t, test.cfg, test.made)
			ask := func(body string) *http.Response {
				req, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/eu/charges", strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Content-Type", test.contentType)
				req.Header.Set("Idempotency-Key", "k")
				return send(req)
			}
			ask(test.body) // recorded by the earlier release
			if got := ask(test.body); got.StatusCode != test.status {
				t.Errorf("the retry got %d", got.StatusCode)
			}
			if got := ask(strings.Replace(test.body, "a", "b", 1) + " "); got.StatusCode != 422 && test.contentType == "text/plain" {
				t.Errorf("another request got %d", got.StatusCode)
			}
		})
	}
}

func TestFingerprintsOfRequestsThatWereRightAreTheSameAsEver(t *testing.T) {
	t.Parallel()
	fields := []string{"Content-Type", "Content-Encoding"}
	for _, test := range []struct{ contentType, body string }{
		{"application/json", `{"a": 1}`}, {"application/json", `{`}, {"text/plain; charset=UTF-8", "a"}, {"", ""},
		{"application/x-www-form-urlencoded", "a=1"}, {"application/json; v=1", "{}"}, {"application/merge-patch+json", "{}"},
	} {
		r := httptest.NewRequest("POST", "/charges?a=1", nil)
		r.Header.Set("Content-Type", test.contentType)
		if fingerprint(r, []byte(test.body), fields) != formerFingerprint(r, []byte(test.body), fields) {
			t.Errorf("%q of %s has another fingerprint than before", test.body, test.contentType)
		}
	}
}

func TestFingerprintKeysAreUsed(t *testing.T) {
	t.Parallel()
	f := idempotency.FingerprintOf([]byte("123456"))
	m := &Middleware{cfg: Config{FingerprintKeys: [][]byte{[]byte("0123456789abcdef"), []byte("fedcba9876543210")}}}
	if m.keyed(f) == f || m.keyed(f) != hmacOf([]byte("0123456789abcdef"), f) {
		t.Error("the fingerprint is not one of the first key")
	}
	if hmacOf([]byte("0123456789abcdef"), f) == hmacOf([]byte("fedcba9876543210"), f) {
		t.Error("two keys make one fingerprint")
	}
	if m := (&Middleware{}); m.keyed(f) != f {
		t.Error("without a key, the fingerprint is another one")
	}
}
