package idemhttp_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgidem/idempotency/idemhttp"
)

// A writing is what a handler does to its ResponseWriter, and what both the
// first client and the replay then get.
type writing struct {
	name   string
	handle http.HandlerFunc
	status int
	body   string
	header map[string]string
}

var writings = []writing{
	{"nothing at all", func(http.ResponseWriter, *http.Request) {}, 200, "", nil},
	{"a body without a status", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "hello")
	}, 200, "hello", map[string]string{"Content-Type": "text/plain; charset=utf-8", "Content-Length": "5"}},
	{"a status twice", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(201)
		w.WriteHeader(500)
		io.WriteString(w, "a")
	}, 201, "a", nil},
	{"a status after the body", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "a")
		w.WriteHeader(500)
	}, 200, "a", nil},
	{"a header after the status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Early", "1")
		w.WriteHeader(201)
		w.Header().Set("X-Early", "2")
		w.Header().Set("X-Late", "1")
	}, 201, "", map[string]string{"X-Early": "1", "X-Late": ""}},
	{"informational responses", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(100)
		w.WriteHeader(103)
		w.WriteHeader(201)
	}, 201, "", map[string]string{"Link": "</a.css>; rel=preload"}},
	{"a body after 204", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(204)
		if _, err := io.WriteString(w, "a"); !errors.Is(err, http.ErrBodyNotAllowed) {
			panic(fmt.Sprint("wrote a body, ", err))
		}
	}, 204, "", map[string]string{"Content-Length": ""}},
	{"304", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Etag", `"1"`)
		w.WriteHeader(304)
		if _, err := w.Write([]byte("a")); !errors.Is(err, http.ErrBodyNotAllowed) {
			panic(fmt.Sprint("wrote a body, ", err))
		}
	}, 304, "", map[string]string{"Etag": `"1"`}},
	{"flushes", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "a")
		w.(http.Flusher).Flush()
		io.WriteString(w, "b")
		if err := http.NewResponseController(w).Flush(); err != nil {
			panic(err)
		}
		w.WriteHeader(500)
	}, 200, "ab", map[string]string{"Content-Length": "2"}},
	{"a flush first", func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush()
		w.WriteHeader(500)
	}, 200, "", nil},
	{"deadlines", func(w http.ResponseWriter, _ *http.Request) {
		c := http.NewResponseController(w)
		if err := errors.Join(c.SetWriteDeadline(time.Now().Add(time.Minute)), c.SetReadDeadline(time.Time{})); err != nil {
			panic(err)
		}
		io.WriteString(w, "a")
	}, 200, "a", nil},
	{"its Content-Length", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "2")
		io.WriteString(w, "ab")
		if _, err := io.WriteString(w, "c"); !errors.Is(err, http.ErrContentLength) {
			panic(fmt.Sprint("wrote more, ", err))
		}
	}, 200, "ab", map[string]string{"Content-Length": "2"}},
	{"a Content-Length of 0", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "0")
		if _, err := io.WriteString(w, "a"); !errors.Is(err, http.ErrContentLength) {
			panic(fmt.Sprint("wrote a body, ", err))
		}
	}, 200, "", map[string]string{"Content-Length": "0"}},
	{"a Content-Length that is none", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "-1")
		io.WriteString(w, "a")
	}, 200, "a", map[string]string{"Content-Length": "1"}},
	{"304 with the Content-Length of what it leaves out", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "5")
		w.WriteHeader(304)
	}, 304, "", nil},
	{"a Transfer-Encoding", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Transfer-Encoding", "chunked")
		io.WriteString(w, "a")
	}, 200, "a", map[string]string{"Content-Length": "1"}},
	{"no Content-Type, on purpose", func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = nil
		io.WriteString(w, "<html>")
	}, 200, "<html>", map[string]string{"Content-Type": ""}},
	{"HTML", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "<html>")
	}, 200, "<html>", map[string]string{"Content-Type": "text/html; charset=utf-8"}},
	{"compressed bytes", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "br")
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte("\x00\xff\xfe<>&\u2028"))
	}, 200, "\x00\xff\xfe<>&\u2028", map[string]string{"Content-Encoding": "br"}},
	{"compressed bytes of no type", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "br")
		io.WriteString(w, "<html>")
	}, 200, "<html>", map[string]string{"Content-Encoding": "br", "Content-Type": ""}},
	{"a header that is not UTF-8", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Name", "Andr\xe9")
	}, 200, "", map[string]string{"X-Name": "Andr\xe9"}},
	{"a large body", func(w http.ResponseWriter, _ *http.Request) {
		for range 100 {
			w.Write([]byte(strings.Repeat("0123456789", 100)))
		}
	}, 200, strings.Repeat("0123456789", 10_000), nil},
	{"a file", func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "a.json", time.Unix(0, 0), strings.NewReader(`{"a": 1}`))
	}, 200, `{"a": 1}`, map[string]string{"Content-Type": "application/json"}},
}

func TestWhatAHandlerWritesIsWhatBothClientsGet(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for _, test := range writings {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{}, test.handle)
			for _, replayed := range []bool{false, true} {
				got := b.post(server, "k")
				got.is(t, test.status, test.body, replayed)
				for name, want := range test.header {
					if got.Header.Get(name) != want {
						t.Errorf("replayed %v: %s is %q, want %q", replayed, name, got.Header.Get(name), want)
					}
				}
			}
			b.ran(1)
			b.effects(1)
		})
	}
}

func TestTrailersAreSentAndReplayed(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := httptest.NewUnstartedServer(b.middleware(idemhttp.Config{}).Handler(b.charging(
				func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Trailer", "Checksum, Never-Set")
					w.Header().Add("Trailer", "Another")
					io.WriteString(w, "a")
					w.Header().Set("Checksum", "1")
					w.Header().Set("Another", "2")
					w.Header().Set(http.TrailerPrefix+"Unannounced", "3")
				})))
			server.EnableHTTP2 = proto == "HTTP/2.0"
			server.StartTLS()
			t.Cleanup(server.Close)
			for _, replayed := range []bool{false, true} {
				got := b.post(server, "k")
				got.is(t, 200, "a", replayed)
				if g := fmt.Sprint(got.Trailer); g != "map[Another:[2] Checksum:[1] Unannounced:[3]]" || got.Proto != proto {
					t.Errorf("replayed %v: %s, trailers %s", replayed, got.Proto, g)
				}
				if got.Header.Get("Checksum") != "" {
					t.Errorf("replayed %v: the trailer is in the header", replayed)
				}
			}
			b.ran(1)
		})
	}
}

func TestOwnFieldsOfTheMiddlewareAreNotReplayed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Idempotent-Body-Omitted", "true")
		io.WriteString(w, "a")
	})
	b.post(server, "k")
	if got := b.post(server, "k"); got.body != "a" || got.Header.Get("Idempotent-Body-Omitted") != "" {
		t.Errorf("got %q, %v", got.body, got.Header)
	}
}

func TestWhatCannotBeRecordedFailsAndKeepsNothing(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for name, handle := range map[string]http.HandlerFunc{
		"event stream": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			if _, err := io.WriteString(w, "data: 1\n\n"); err == nil {
				panic("the event was taken")
			}
			if err := http.NewResponseController(w).Flush(); err == nil {
				panic("the event was flushed")
			}
		},
		"upgrade": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Upgrade", "websocket")
			w.WriteHeader(http.StatusSwitchingProtocols)
		},
		"body shorter than declared": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "a")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{}, handle)
			b.post(server, "k").isProblem(t, 500, "unrecordable")
			b.effects(0)
			b.ran(1)
			if !strings.Contains(b.reports(), "idemhttp: ") {
				t.Errorf("reported %s", b.reports())
			}
		})
	}
}

func TestConnectionCannotBeTakenOver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		_, _, viaController := c.Hijack()
		_, _, viaInterface := w.(http.Hijacker).Hijack()
		for _, err := range []error{viaController, viaInterface, c.EnableFullDuplex()} {
			if !errors.Is(err, http.ErrNotSupported) {
				t.Errorf("got %v", err)
			}
		}
		if _, ok := w.(interface{ Unwrap() http.ResponseWriter }); ok {
			t.Error("there is a way around")
		}
		created(w, r)
	})
	b.post(server, "k").is(t, 201, `{"id": 1}`, false)
}

func TestInvalidStatusPanicsAsInNetHTTP(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(0)
	})
	if got, err := b.try(server, "POST", "/", "", withKey("k")); err == nil {
		t.Errorf("got %d", got.StatusCode)
	}
	b.effects(0)
}

func TestFirstResponseNeverSaysThatItIsAReplay(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Idempotent-Replayed", "true") // of a server behind
		created(w, r)
	})
	b.post(server, "k").is(t, 201, `{"id": 1}`, false)
	b.post(server, "k").is(t, 201, `{"id": 1}`, true)
	protected := b.middleware(idemhttp.Config{}).Handler(b.charging(created))
	server = b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Idempotent-Replayed", "true") // of a server in front
		protected.ServeHTTP(w, r)
	}))
	b.post(server, "l").is(t, 201, `{"id": 1}`, false)
	b.post(server, "l").is(t, 201, `{"id": 1}`, true)
}

func TestReplayLeavesOutWhatBelongsToOneExchange(t *testing.T) {
	t.Parallel()
	b := setup(t)
	replayed := strings.Fields(`
		Location Content-Location Etag Last-Modified Expires Cache-Control Content-Language Content-Disposition
		Retry-After Vary Link Allow Deprecation Sunset Strict-Transport-Security Access-Control-Allow-Origin
		Content-Security-Policy Refresh Signature Signature-Input
		X-Charge X-Request Idempotency-Key Surrogate-Key X-Partition-Key License-Key Token-Type X-Token-Expires X-Session-Expires
		Page-Token Next-Page-Token X-Next-Page-Token X-Nextpagetoken Next-Token X-Amz-Next-Token X-Nexttoken Continuation-Token
		X-Continuation-Token X-Ms-Continuation-Token X-Continuationtoken X-Ms-Continuation Pagination-Token X-Pagination-Token X-Paginationtoken
		X-Cursor X-Cursor-Token Sync-Token X-Sync-Token X-Synctoken Delta-Token X-Deltatoken Skip-Token X-Skiptoken
		X-Consistency-Token X-Version-Token X-Sequence-Token Lock-Token
		X_next_page_token X-Cookies-Accepted X-Authors X-Secretary`)
	left := strings.Fields(`
		Keep-Alive Proxy-Connection Upgrade Te
		Age Via Cache-Status X-Cache X-Cache-Hits X-Varnish Proxy-Status X-Served-By
		Cookie Set-Cookie Set-Cookie2 X-Set-Cookie X-Cookies Clear-Site-Data Set-Login
		Secure-Session-Registration Secure-Session-Challenge Sec-Session-Registration Sec-Session-Challenge Secure-Session-Skipped
		Www-Authenticate Optional-Www-Authenticate Authentication-Info Authentication-Control Proxy-Authenticate Proxy-Authentication-Info
		X-Auth-Challenge X-Github-Otp
		Authorization X-Authorization Proxy-Authorization Bearer X-Bearer Auth X-Auth Dpop
		X-Auth-Token X-Access-Token X-Refresh-Token X-Id-Token X-Session-Token X-Session-Id X-Subject-Token X-Amz-Security-Token
		Token Access-Token Refresh-Token Id-Token Auth-Token Session-Token Session-Id X-Token Accesstoken Access_token X-Tokens
		X-Jwt Jwt X-Jwt-Payload X-Jwt-Assertion X-Jws X-Jwe X-Vault-Token Private-Token X-Auth-Request-Access-Token
		X-Forwarded-Access-Token Cf-Access-Jwt-Assertion X-Goog-Iap-Jwt-Assertion X-Amzn-Oidc-Data X-Amzn-Oidc-Accesstoken
		X-Ms-Token-Aad-Id-Token X-Ms-Token-Aad-Expires-On X-Gitlab-Token X-Shopify-Access-Token X-Next-Page-Access-Token Sec-Private-State-Token
		X-Firebase-Appcheck X-Saml-Response Samlresponse Token-Secret
		X-Secret X-Client-Secret X-Password X-Passwd X-Passphrase X-Passcode X-Amz-Credential X-Credentials
		Api-Key X-Api-Key Apikey X-Access-Key X-Accesskey X-Secret-Key X-Secretkey X-Private-Key X-Privatekey X-Auth-Key X-Session-Key
		X-Signing-Key X-Encryption-Key
		Session X-Session Sessionid X-Sessionid Mcp-Session-Id Session_id Jsessionid Phpsessid
		Replay-Nonce Dpop-Nonce X-Nonce Nonce Csrf-Token X-Csrf-Token X-Csrftoken X-Xsrf-Token Xsrf-Token X-Csrf Csrf X_csrf Xsrf Anti-Csrf
		Ratelimit Ratelimit-Policy Ratelimit-Remaining X-Ratelimit-Remaining X-Rate-Limit-Reset
		Traceparent Tracestate Traceresponse Baggage B3 X-B3-Traceid X-Trace-Id Trace-Id Uber-Trace-Id Uberctx-User Sentry-Trace
		X-Datadog-Trace-Id X-Ot-Span-Context Grpc-Trace-Bin X-Cloud-Trace-Context X-Amzn-Trace-Id Request-Id X-Request-Id
		X-Correlation-Id Correlation-Id Request-Context X-Amzn-Requestid X-Amz-Request-Id X-Amz-Id-2 X-Amz-Cf-Id X-Amz-Cf-Pop
		X-Amz-Apigw-Id X-Ms-Request-Id X-Azure-Ref X-Github-Request-Id X-Vercel-Id X-Fastly-Request-Id Fly-Request-Id
		Cf-Ray Cf-Cache-Status X-Ray-Id
		Server-Timing X-Runtime X-Response-Time X-Envoy-Upstream-Service-Time
		Sec-Websocket-Accept Sec-Websocket-Protocol`)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, _ *http.Request) {
		for _, name := range slices.Concat(replayed, left) {
			w.Header().Add(name, "secret-1")
			w.Header().Add(name, "secret-2")
		}
	})
	first := b.post(server, "k")
	replay := b.post(server, "k")
	replay.is(t, 200, "", true)
	for _, name := range slices.Concat(replayed, left) {
		if got := fmt.Sprint(first.Header[name]); got != "[secret-1 secret-2]" {
			t.Errorf("the first client got %s: %s", name, got)
		}
		want := "[]"
		if slices.Contains(replayed, name) {
			want = "[secret-1 secret-2]"
		}
		if got := fmt.Sprint(replay.Header[name]); got != want {
			t.Errorf("the replay has %s: %s", name, got)
		}
	}
	// Every entry of the table is in this test's own lists.
	for _, pattern := range b.middleware(idemhttp.Config{}).Policy().NotReplayed {
		list := left
		pattern, excepted := strings.CutPrefix(strings.ToLower(pattern), "!")
		if excepted {
			list = replayed
		}
		if !slices.ContainsFunc(list, func(name string) bool { matched, _ := path.Match(pattern, strings.ToLower(name)); return matched }) && pattern != "date" {
			t.Errorf("%s is left out, or replayed, without a test", pattern)
		}
	}
}

func TestDateOfAReplayIsItsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const long = "Mon, 02 Jan 2006 15:04:05 GMT"
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", long)
	})
	if got := b.post(server, "k").Header.Get("Date"); got != long {
		t.Errorf("the first client got %s", got)
	}
	got, err := http.ParseTime(b.post(server, "k").Header.Get("Date"))
	if err != nil || time.Since(got) > time.Minute {
		t.Errorf("the replay has %s, %v", got, err)
	}
}

func TestConnectionAndWhatItNamesAreNotReplayed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close, X-Hop")
		w.Header().Set("X-Hop", "1")
	})
	if got := b.post(server, "k"); !got.Close || got.Header.Get("X-Hop") != "1" {
		t.Errorf("the first client got %v", got.Header)
	}
	if got := b.post(server, "k"); got.Close || got.Header.Get("X-Hop") != "" {
		t.Errorf("the replay has %v", got.Header)
	}
}

func TestListOfReplayedHeadersCanBeChanged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{
		KeepHeaders: []string{"set-cookie", "X-B3-SpanId", "Connection", "*-card-token"},
		DropHeaders: []string{"x-debug-*", "ETag", "*-balance", "*iban*", "Next-Page-Token"},
	}, func(w http.ResponseWriter, _ *http.Request) {
		for _, name := range []string{"Set-Cookie", "X-B3-Spanid", "X-B3-Traceid", "X-Debug-Sql", "Etag", "X-Kept", "X-Card-Token", "X-Token", "New-Balance", "Balance", "Balance-Due", "X-Iban-Hash", "Next-Page-Token", "Sync-Token"} {
			w.Header().Set(name, "1")
		}
		w.Header().Set("Connection", "close")
	})
	b.post(server, "k")
	got := b.post(server, "k")
	got.is(t, 200, "", true)
	for name, want := range map[string]bool{
		"Set-Cookie": true, "X-B3-Spanid": true, "X-B3-Traceid": false, "X-Debug-Sql": false, "Etag": false, "X-Kept": true,
		"X-Card-Token": true, "X-Token": false, "New-Balance": false, "Balance": true, "Balance-Due": true, "X-Iban-Hash": false, "Next-Page-Token": false, "Sync-Token": true,
	} {
		if (got.Header.Get(name) != "") != want {
			t.Errorf("%s: %q", name, got.Header.Get(name))
		}
	}
	if got.Close {
		t.Error("Connection was replayed")
	}
}

func TestWhatIsDroppedIsNotInTheTable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Set-Cookie", "session=secret")
	})
	b.post(server, "k")
	var stored string
	if err := b.pool.QueryRow(t.Context(), "select convert_from(result, 'UTF8') from idempotency_keys").Scan(&stored); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(stored, "secret") {
		t.Errorf("stored: %s", stored)
	}
}

func TestHeadersOfOuterMiddlewareAreOfEachExchange(t *testing.T) {
	t.Parallel()
	b := setup(t)
	n := 0
	inner := b.middleware(idemhttp.Config{}).Handler(b.charging(func(w http.ResponseWriter, r *http.Request) {
		if w.Header().Get("Outer") == "" {
			t.Error("the handler does not see what the outer middleware has set")
		}
		w.Header().Del("Deleted")
		w.Header().Set("Replaced", "by the handler")
		w.Header().Add("Vary", "Accept")
		created(w, r)
	}))
	server := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n++
		for _, name := range []string{"Outer", "Deleted", "Replaced"} {
			w.Header().Set(name, fmt.Sprint(n))
		}
		w.Header().Set("Vary", fmt.Sprint("Origin ", n))
		inner.ServeHTTP(w, r)
	}))
	for i, want := range []string{"1  by the handler [Origin 1 Accept]", "2  by the handler [Origin 2 Accept]"} {
		h := b.post(server, "k").Header
		if got := fmt.Sprintf("%s %s %s %v", h.Get("Outer"), h.Get("Deleted"), h.Get("Replaced"), h["Vary"]); got != want {
			t.Errorf("exchange %d has %s, want %s", i+1, got, want)
		}
	}
}

func TestKeepAliveConnectionSurvivesReplays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, created)
	conn := dial(t, server, "")
	r := bufio.NewReader(conn)
	for i := range 5 {
		io.WriteString(conn, "POST /charges HTTP/1.1\r\nHost: x\r\nAccount: a\r\nIdempotency-Key: k\r\nContent-Length: 2\r\n\r\n{}")
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(i, err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != `{"id": 1}` {
			t.Errorf("%d: %q", i, body)
		}
	}
	b.ran(1)
}
