package idemhttp_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemhttp"
)

func TestSameRequestIsReplayedAndAnotherIs422(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	type request struct{ method, path, contentType, body string }
	first := request{"POST", "/charges?a=1", "application/json", `{"a": 1, "b": [1.0]}`}
	for name, test := range map[string]struct {
		request
		same bool
	}{
		"the same":            {first, true},
		"other key order":     {request{"POST", "/charges?a=1", "application/json", "{\"b\":[1.0],\n\"\\u0061\":1}"}, true},
		"other spelling":      {request{"POST", "/charges?a=1", "Application/JSON", first.body}, true},
		"other number text":   {request{"POST", "/charges?a=1", "application/json", `{"a": 1, "b": [1]}`}, false},
		"other value":         {request{"POST", "/charges?a=1", "application/json", `{"a": 2, "b": [1.0]}`}, false},
		"other method":        {request{"PATCH", "/charges?a=1", "application/json", first.body}, false},
		"other path":          {request{"POST", "/refunds?a=1", "application/json", first.body}, false},
		"other query":         {request{"POST", "/charges?a=2", "application/json", first.body}, false},
		"other content type":  {request{"POST", "/charges?a=1", "application/merge-patch+json", first.body}, false},
		"other charset":       {request{"POST", "/charges?a=1", "application/json; charset=latin1", first.body}, false},
		"no body":             {request{"POST", "/charges?a=1", "application/json", ""}, false},
		"body that is broken": {request{"POST", "/charges?a=1", "application/json", first.body + "}"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{}, created)
			send := func(r request) answer {
				return b.do(server, r.method, r.path, r.body, func(req *http.Request) {
					withKey("k")(req)
					req.Header.Set("Content-Type", r.contentType)
				})
			}
			send(first).is(t, 201, `{"id": 1}`, false)
			if got := send(test.request); test.same {
				got.is(t, 201, `{"id": 1}`, true)
			} else {
				got.isProblem(t, 422, "key-reused")
			}
			b.ran(1)
		})
	}
}

func TestWhatIsNotJSONIsComparedByItsBytes(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for _, test := range []struct {
		contentType, encoding, body, other string
	}{
		{"text/plain", "", `{"a": 1}`, `{"a":1}`},
		{"", "", `{"a": 1}`, `{"a":1}`},
		{"application/json", "gzip", `{"a": 1}`, `{"a":1}`},
		{"application/json", "", `{"a": 1`, `{"a":1`},
		{"application/octet-stream", "", "\xff\x00", "\xfe\x00"},
	} {
		t.Run(fmt.Sprint(test.contentType, test.encoding, test.body), func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{}, created)
			send := func(body string) answer {
				return b.do(server, "POST", "/", body, func(r *http.Request) {
					withKey("k")(r)
					r.Header.Set("Content-Type", test.contentType)
					r.Header.Set("Content-Encoding", test.encoding)
				})
			}
			send(test.body).is(t, 201, `{"id": 1}`, false)
			send(test.other).isProblem(t, 422, "key-reused")
			send(test.body).is(t, 201, `{"id": 1}`, true)
		})
	}
}

func TestHeadersOfTheFingerprintCanBeChosen(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for name, test := range map[string]struct {
		headers []string
		changed string
		same    bool
	}{
		"not selected": {nil, "X-Version", true},
		"selected":     {[]string{"x-version"}, "X-Version", false},
		"none":         {[]string{}, "Content-Type", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{FingerprintHeaders: test.headers}, created)
			b.do(server, "POST", "/", "x", withKey("k")).is(t, 201, `{"id": 1}`, false)
			got := b.do(server, "POST", "/", "x", func(r *http.Request) {
				withKey("k")(r)
				r.Header.Set(test.changed, "application/2+json")
			})
			if test.same {
				got.is(t, 201, `{"id": 1}`, true)
			} else {
				got.isProblem(t, 422, "key-reused")
			}
		})
	}
}

func TestFingerprintOfOnesOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{Fingerprint: func(r *http.Request, body []byte) idempotency.Fingerprint {
		read, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(read, body) {
			t.Errorf("its request has %q, %v", read, err)
		}
		return idempotency.FingerprintOf(body[:1])
	}}, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, r.Body)
	})
	b.do(server, "POST", "/a", "x1", withKey("k")).is(t, 200, "x1", false)
	b.do(server, "POST", "/b", "x2", withKey("k")).is(t, 200, "x1", true)
	b.do(server, "POST", "/a", "y1", withKey("k")).isProblem(t, 422, "key-reused")
}

func TestHandlerReadsTheWholeRequest(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			t.Error(err)
		}
		fmt.Fprint(w, r.Form, r.ContentLength, r.TransferEncoding, r.RemoteAddr != "", r.Context().Value(http.ServerContextKey) != nil)
	})
	b.do(server, "POST", "/?a=1", "b=2&c=3", func(r *http.Request) {
		withKey("k")(r)
		r.ContentLength = -1 // chunked
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}).is(t, 200, "map[a:[1] b:[2] c:[3]] 7 [] true true", false)
}
