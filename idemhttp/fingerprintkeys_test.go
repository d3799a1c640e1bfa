package idemhttp

import (
	"context"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

var (
	oldKey = []byte("0123456789abcdef")
	newKey = []byte("fedcba9876543210")
)

// The fingerprints are those that v0.1.0 makes. Where one changes, the retry of a
// request that is under way during the upgrade is refused.
func TestFingerprintsOfOrdinaryRequestsAreThoseOfTheFirstRelease(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ contentType, body, want string }{
		{"application/json", `{"b": 1, "a": [1.0, "\u00e4"]}`, "1977433eaa1e2feaa39f0fce81d2f0849459444e55d2ddf9599492ad1159f056"},
		{"application/json; charset=UTF-8", `{`, "443293774a5f15b245740df50a8306ece1aa6d8d5a47ec397a7b73d293816433"},
		{"text/plain; charset=UTF-8", "a", "7f26d8483d782f75206be83162883826db8cc667a723d7e855a17208b6b2e0b9"},
		{"", "", "2b08b699fc176dd2a03898b16ae2408caaf71bf09daaf65fd594aee469f2440e"},
		{"application/x-www-form-urlencoded", "a=1", "8d5edba77393ce0362efdadff08cb82a32fb3327c6ec29fe1b9dba75c2be6a8b"},
		{"multipart/form-data; boundary=x", "--x\r\nContent-Disposition: form-data; name=a\r\nb: c\r\n\r\n1\r\n--x\r\n\r\n2\r\n--x--\r\n", "e02042266f6abf4473eb266ba73d27411f54ed7d76af1e03048dd8204a6d281f"},
	} {
		r := httptest.NewRequest("POST", "/charges?a=1", nil)
		r.URL.Path = "/eu" + r.URL.Path
		r.Header.Set("Content-Type", test.contentType)
		f := fingerprint(r, []byte(test.body), fingerprintHeaders)
		if got := hex.EncodeToString(f[:]); got != test.want {
			t.Errorf("%q of %s: %s", test.body, test.contentType, got)
		}
	}
}

// recordedAs makes a handler of a Middleware with cfg, in whose table a request
// is recorded with the fingerprint that made returns.
func recordedAs(t *testing.T, cfg Config, made func(*http.Request, []byte) idempotency.Fingerprint, r *http.Request, body string) http.Handler {
	t.Helper()
	store := idempotency.New(pgtest.New(t))
	cfg.Scope = func(*http.Request) (string, error) { return "a", nil }
	_, _, err := idempotency.Do(t.Context(), store, idempotency.Key{Scope: "a", ID: "k", Fingerprint: made(r, []byte(body))},
		func(context.Context, pgx.Tx) (record, error) { return onlyStatus(record{Status: 299}), nil })
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(store, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("executed again") }))
}

func TestFingerprintKeyIsReplacedWithoutRefusingARetry(t *testing.T) {
	t.Parallel()
	with := func(key []byte) func(*http.Request, []byte) idempotency.Fingerprint {
		return func(r *http.Request, body []byte) idempotency.Fingerprint {
			return hmacOf(key, fingerprint(r, body, fingerprintHeaders))
		}
	}
	own := func(_ *http.Request, body []byte) idempotency.Fingerprint { return idempotency.FingerprintOf(body) }
	for name, test := range map[string]struct {
		cfg    Config
		made   func(*http.Request, []byte) idempotency.Fingerprint
		status int
	}{
		"the first key":              {Config{FingerprintKeys: [][]byte{newKey, oldKey}}, with(newKey), 299},
		"no key, then one":           {Config{FingerprintKeys: [][]byte{newKey}}, with(nil), 299},
		"another key, then this one": {Config{FingerprintKeys: [][]byte{newKey, oldKey}}, with(oldKey), 299},
		"a key to come":              {Config{FingerprintKeys: [][]byte{nil, newKey}}, with(newKey), 299},
		"a key, and a function":      {Config{FingerprintKeys: [][]byte{newKey}, Fingerprint: own}, own, 299},
		"a key that is gone":         {Config{FingerprintKeys: [][]byte{newKey}}, with(oldKey), 422},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			request := func(body string) *http.Request {
				r := httptest.NewRequest("POST", "/charges", strings.NewReader(body))
				r.Header.Set("Content-Type", "text/plain")
				r.Header.Set("Idempotency-Key", "k")
				return r
			}
			handler := recordedAs(t, test.cfg, test.made, request("a"), "a")
			for body, want := range map[string]int{"a": test.status, "b": 422} {
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, request(body))
				if w.Code != want {
					t.Errorf("the request %q got %d, want %d", body, w.Code, want)
				}
			}
		})
	}
}

func TestFingerprintKeysAreUsed(t *testing.T) {
	t.Parallel()
	f := idempotency.FingerprintOf([]byte("123456"))
	m := &Middleware{cfg: Config{FingerprintKeys: [][]byte{oldKey, newKey}}}
	if m.keyed(f) == f || m.keyed(f) != hmacOf(oldKey, f) {
		t.Error("the fingerprint is not one of the first key")
	}
	if hmacOf(oldKey, f) == hmacOf(newKey, f) {
		t.Error("two keys make one fingerprint")
	}
	if m := (&Middleware{}); m.keyed(f) != f {
		t.Error("without a key, the fingerprint is another one")
	}
}
