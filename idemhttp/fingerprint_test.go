package idemhttp_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
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
		"UTF-8, said":         {request{"POST", "/charges?a=1", "application/json; charset=utf-8", first.body}, true},
		"UTF-8, said loudly":  {request{"POST", "/charges?a=1", `Application/JSON;CHARSET="UTF-8"`, first.body}, true},
		"another parameter":   {request{"POST", "/charges?a=1", "application/json; charset=utf-8; v=2", first.body}, false},
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

func TestSpellingsOfAMediaTypeAreTheSame(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for _, test := range []struct {
		one, other string
		same       bool
	}{
		{"text/plain; charset=UTF-8", "text/plain;charset=utf-8", true},
		{"text/plain; charset=utf-8", "text/plain", false}, // text has no charset of its own
		{"application/merge-patch+json", "application/merge-patch+json; charset=UTF-8", true},
		{"application/json; charset=latin1", "application/json; charset=LATIN1", true},
		{"application/json; charset=latin1", "application/json", false},
		{"application/json;;", "application/json;;", true},
		{"application/json;=", "application/json", false},
		// One of more than 4,096 bytes is not looked into.
		{"text/plain; charset=UTF-8; x=" + strings.Repeat("x", 4096-29), "text/plain; charset=utf-8; x=" + strings.Repeat("x", 4096-29), true},
		{"text/plain; charset=UTF-8; x=" + strings.Repeat("x", 4097-29), "text/plain; charset=utf-8; x=" + strings.Repeat("x", 4097-29), false},
	} {
		t.Run(fmt.Sprintf("%.60s and %.60s", test.one, test.other), func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{}, created)
			send := func(contentType string) answer {
				return b.do(server, "POST", "/", "{}", func(r *http.Request) {
					withKey("k")(r)
					r.Header.Set("Content-Type", contentType)
				})
			}
			send(test.one).is(t, 201, `{"id": 1}`, false)
			if got := send(test.other); test.same {
				got.is(t, 201, `{"id": 1}`, true)
			} else {
				got.isProblem(t, 422, "key-reused")
			}
		})
	}
}

func TestMultipartIsComparedByItsParts(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	const head = "Content-Disposition: form-data; name="
	one := "--x\r\n" + head + "a\r\n\r\n1\r\n--x\r\n" + head + "b\r\nX-Note: n\r\n\r\n2\r\n--x--\r\n"
	allowed := func(boundary string) string { // 1,000 parts of 10 header lines
		return strings.Repeat("--"+boundary+"\r\n"+strings.Repeat("a:\r\n", 10)+"\r\n\r\n", 1000) + "--" + boundary + "--"
	}
	for name, test := range map[string]struct {
		contentType, body string
		same              bool
	}{
		"the same":                       {"multipart/form-data; boundary=x", one, true},
		"another boundary":               {"multipart/form-data; boundary=yy", strings.ReplaceAll(one, "--x", "--yy"), true},
		"with words around the parts":    {"multipart/form-data; boundary=x", "preamble\r\n" + one + "epilogue", true},
		"other header order":             {"multipart/form-data; boundary=x", strings.Replace(one, head+"b\r\nX-Note: n\r\n", "X-Note: n\r\n"+head+"b\r\n", 1), true},
		"another value":                  {"multipart/form-data; boundary=x", strings.Replace(one, "\r\n2\r\n", "\r\n3\r\n", 1), false},
		"another name":                   {"multipart/form-data; boundary=x", strings.Replace(one, "name=b", "name=c", 1), false},
		"another part header":            {"multipart/form-data; boundary=x", strings.Replace(one, "X-Note: n", "X-Note: m", 1), false},
		"a part less":                    {"multipart/form-data; boundary=x", "--x\r\n" + head + "a\r\n\r\n1\r\n--x--\r\n", false},
		"another kind of multipart":      {"multipart/mixed; boundary=x", one, false},
		"another parameter":              {"multipart/form-data; boundary=x; v=2", one, false},
		"as many parts as are looked at": {"multipart/form-data; boundary=yy", allowed("yy"), true},
		"cut off":                        {"multipart/form-data; boundary=x", one[:len(one)-8], false},
		"compressed, as it says":         {"multipart/form-data; boundary=x", one, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{}, created)
			send := func(contentType, body, encoding string) answer {
				return b.do(server, "POST", "/", body, func(r *http.Request) {
					withKey("k")(r)
					r.Header.Set("Content-Type", contentType)
					r.Header.Set("Content-Encoding", encoding)
				})
			}
			first := one
			if strings.HasPrefix(name, "as many") {
				first = allowed("x")
			}
			send("multipart/form-data; boundary=x", first, "").is(t, 201, `{"id": 1}`, false)
			encoding := ""
			if strings.HasPrefix(name, "compressed") {
				encoding = "br"
			}
			if got := send(test.contentType, test.body, encoding); test.same {
				got.is(t, 201, `{"id": 1}`, true)
			} else {
				got.isProblem(t, 422, "key-reused")
			}
		})
	}
}

func TestMultipartThatIsBrokenIsComparedByItsBytes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, created)
	send := func(body string) answer {
		return b.do(server, "POST", "/", body, func(r *http.Request) {
			withKey("k")(r)
			r.Header.Set("Content-Type", "multipart/form-data; boundary=x")
		})
	}
	send("--x\r\n\r\none").is(t, 201, `{"id": 1}`, false)
	send("--x\r\n\r\ntwo").isProblem(t, 422, "key-reused")
	send("--x\r\n\r\none").is(t, 201, `{"id": 1}`, true)
}

func TestBytesThatMeanSomethingElseAreAnotherRequest(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	type field struct{ name, value string }
	const broken = "--x\r\n\r\n--y\r\n\r\na"
	parts := strings.Repeat("--x\n\n\n", 1001) + "--x--"
	lines := "--x\r\n" + strings.Repeat("a:\r\n", 6000) + "\r\na\r\n--x\r\n" + strings.Repeat("a:\r\n", 6000) + "\r\n--x--"
	many := strings.Repeat(";a=1", 2000)
	for name, test := range map[string]struct {
		headers    []string // of the fingerprint
		body       string
		one, other []field
		same       bool
	}{
		"boundary of a broken multipart":          {nil, broken, []field{{"Content-Type", "multipart/mixed; boundary=x"}}, []field{{"Content-Type", "multipart/mixed; boundary=y"}}, false},
		"the same broken multipart":               {nil, broken, []field{{"Content-Type", "multipart/mixed; boundary=x"}}, []field{{"Content-Type", "multipart/mixed; boundary=x"}}, true},
		"boundary, and no Content-Type chosen":    {[]string{}, broken, []field{{"Content-Type", "multipart/mixed; boundary=x"}}, []field{{"Content-Type", "multipart/mixed; boundary=y"}}, false},
		"boundary under an encoding":              {nil, broken, []field{{"Content-Type", "multipart/mixed; boundary=x"}, {"Content-Encoding", "br"}}, []field{{"Content-Type", "multipart/mixed; boundary=y"}, {"Content-Encoding", "br"}}, false},
		"boundary of too many parts":              {nil, parts, []field{{"Content-Type", "multipart/mixed; boundary=x"}}, []field{{"Content-Type", "multipart/mixed; boundary=y"}}, false},
		"boundary of too many header lines":       {nil, lines, []field{{"Content-Type", "multipart/mixed; boundary=x"}}, []field{{"Content-Type", "multipart/mixed; boundary=y"}}, false},
		"parameter of a long Content-Type":        {nil, "a", []field{{"Content-Type", "text/plain; charset=a" + many}}, []field{{"Content-Type", "text/plain; charset=b" + many}}, false},
		"charset":                                 {nil, "a", []field{{"Content-Type", "text/plain; charset=utf-8"}}, []field{{"Content-Type", "text/plain; charset=latin1"}}, false},
		"encoding":                                {nil, "a", []field{{"Content-Encoding", "gzip"}}, []field{{"Content-Encoding", "br"}}, false},
		"an encoding more":                        {nil, "a", []field{{"Content-Encoding", "gzip"}}, []field{{"Content-Encoding", "gzip"}, {"Content-Encoding", "br"}}, false},
		"language":                                {nil, "a", []field{{"Content-Language", "de"}}, []field{{"Content-Language", "en"}}, false},
		"no language":                             {nil, "a", nil, []field{{"Content-Language", "en"}}, false},
		"the same language":                       {nil, "a", []field{{"Content-Language", "en"}}, []field{{"Content-Language", "en"}}, true},
		"language, not chosen":                    {[]string{}, "a", nil, []field{{"Content-Language", "en"}}, true},
		"name of a file":                          {nil, "a", []field{{"Content-Disposition", "attachment; filename=a"}}, []field{{"Content-Disposition", "attachment; filename=b"}}, false},
		"place in a file":                         {nil, "a", []field{{"Content-Range", "bytes 0-0/2"}}, []field{{"Content-Range", "bytes 1-1/2"}}, false},
		"one field where the other has another":   {nil, "a", []field{{"Content-Language", "a"}}, []field{{"Content-Range", "a"}}, false},
		"JSON whose second encoding line says so": {nil, "{}", []field{{"Content-Encoding", ""}, {"Content-Encoding", "br"}}, []field{{"Content-Encoding", ""}, {"Content-Encoding", "gzip"}}, false},
		"encoding on a second line, and none":     {[]string{}, "{}", []field{{"Content-Type", "application/json"}, {"Content-Encoding", ""}, {"Content-Encoding", "br"}}, []field{{"Content-Type", "application/json"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{FingerprintHeaders: test.headers}, created)
			send := func(fields []field) answer {
				return b.do(server, "POST", "/", test.body, func(r *http.Request) {
					withKey("k")(r)
					r.Header.Del("Content-Type")
					for _, f := range fields {
						r.Header.Add(f.name, f.value)
					}
				})
			}
			send(test.one).is(t, 201, `{"id": 1}`, false)
			if got := send(test.other); test.same {
				got.is(t, 201, `{"id": 1}`, true)
			} else {
				got.isProblem(t, 422, "key-reused")
			}
			send(test.one).is(t, 201, `{"id": 1}`, true)
		})
	}
}

func TestPathIsTheOneThatHasArrived(t *testing.T) {
	t.Parallel()
	b := setup(t)
	m := b.middleware(idemhttp.Config{}).Handler(b.charging(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) }))
	mux := http.NewServeMux()
	mux.Handle("/eu/", http.StripPrefix("/eu", m))
	mux.Handle("/us/", http.StripPrefix("/us", m))
	mux.HandleFunc("/rewritten/", func(w http.ResponseWriter, r *http.Request) {
		r.URL.Path = "/charges"
		m.ServeHTTP(w, r)
	})
	mux.Handle("/charges", m)
	server := b.serve(mux)
	b.do(server, "POST", "/eu/charges", "", withKey("k")).is(t, 200, "/charges", false)
	b.do(server, "POST", "/charges", "", withKey("k")).isProblem(t, 422, "key-reused")
	b.do(server, "POST", "/charges", "", withKey("c")).is(t, 200, "/charges", false)
	b.do(server, "POST", "/eu/charges", "", withKey("c")).isProblem(t, 422, "key-reused")
	b.do(server, "POST", "/us/charges", "", withKey("k")).isProblem(t, 422, "key-reused")
	b.do(server, "POST", "/rewritten/1", "", withKey("k")).isProblem(t, 422, "key-reused")
	b.do(server, "POST", "/eu/charges", "", withKey("k")).is(t, 200, "/charges", true)
	b.do(server, "POST", "/rewritten/1", "", withKey("r")).is(t, 200, "/charges", false)
	b.do(server, "POST", "/rewritten/2", "", withKey("r")).isProblem(t, 422, "key-reused")
}

func TestHostCanBeInTheFingerprint(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for name, test := range map[string]struct {
		headers []string
		same    bool
	}{
		"not selected": {nil, true},
		"selected":     {[]string{"host"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{FingerprintHeaders: test.headers}, created)
			send := func(host string) answer {
				return b.do(server, "POST", "/", "", func(r *http.Request) { withKey("k")(r); r.Host = host })
			}
			send("eu.example.com").is(t, 201, `{"id": 1}`, false)
			send("EU.example.com").is(t, 201, `{"id": 1}`, true)
			if got := send("us.example.com"); test.same {
				got.is(t, 201, `{"id": 1}`, true)
			} else {
				got.isProblem(t, 422, "key-reused")
			}
		})
	}
}
