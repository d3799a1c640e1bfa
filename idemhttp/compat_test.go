package idemhttp_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/idemhttp"
)

func TestRedirectThatKeepsTheMethodIsFollowedWithTheKey(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	moved := http.RedirectHandler("/charges/", http.StatusPermanentRedirect)
	for name, server := range map[string]func(*bundle) http.Handler{
		"around the mux": func(b *bundle) http.Handler {
			mux := http.NewServeMux()
			mux.Handle("POST /charges/", b.charging(created))
			mux.Handle("POST /moved", moved)
			return b.middleware(idemhttp.Config{}).Handler(mux)
		},
		"around the route": func(b *bundle) http.Handler {
			mux := http.NewServeMux()
			mux.Handle("POST /charges/", b.middleware(idemhttp.Config{}).Handler(b.charging(created)))
			mux.Handle("POST /moved", moved)
			return mux
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.serve(server(b))
			for key, path := range map[string]string{"a": "/charges", "b": "/moved"} { // the mux redirects the first
				b.do(server, "POST", path, "{}", withKey(key)).is(t, 201, `{"id": 1}`, false)
				b.do(server, "POST", "/charges/", "{}", withKey(key)).is(t, 201, `{"id": 1}`, true)
				// Who begins at the old place again is sent on by the mux, if that
				// is asked first: else it is another request than the recorded one.
				if got := b.do(server, "POST", path, "{}", withKey(key)); name == "around the route" {
					got.is(t, 201, `{"id": 1}`, true)
				} else {
					got.isProblem(t, 422, "key-reused")
				}
			}
			b.effects(2)
		})
	}
}

func TestRetryWithTheRightHeaderFieldExecutes(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for status, field := range map[int]string{406: "Accept", 411: "X-Length", 412: "If-Match", 416: "Range", 417: "X-Expect", 423: "If", 426: "X-Upgrade", 428: "If-Match", 431: "X-Large"} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get(field) != "right" {
					w.WriteHeader(status)
				}
			})
			for _, test := range []struct {
				value  string
				status int
			}{{"wrong", status}, {"right", 200}, {"wrong", 200}} { // what was recorded is final
				got := b.do(server, "PATCH", "/", "{}", func(r *http.Request) {
					withKey("k")(r)
					r.Header.Set(field, test.value)
				})
				if got.StatusCode != test.status {
					t.Errorf("%s: got %d", test.value, got.StatusCode)
				}
			}
			b.effects(1)
		})
	}
}

func TestGRPCIsRefused(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	status := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200); w.Header().Set(name, "14") }
	}
	contentType := func(value string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Type", value) }
	}
	for name, respond := range map[string]http.HandlerFunc{
		"by its type":             contentType("application/grpc"),
		"by its type, spelled":    contentType("Application/GRPC+proto; v=1"),
		"by its malformed type":   contentType("application/grpc;;"),
		"gRPC-Web":                contentType("application/grpc-web+proto"),
		"Connect, streaming":      contentType("application/connect+json"),
		"by its trailer":          status(http.TrailerPrefix + "Grpc-Status"),
		"by its trailer, spelled": status(http.TrailerPrefix + "grpc-status"),
		"by its header":           func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Grpc-Status", "14") },
		"by its announced trailer": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "Grpc-Status")
			w.WriteHeader(200)
			w.Header().Set("Grpc-Status", "0")
		},
		"an event stream of a malformed type": contentType("text/event-stream;;"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{}, respond)
			for range 2 {
				b.post(server, "k").isProblem(t, 500, "unrecordable")
			}
			b.ran(2)
			b.effects(0)
			if !strings.Contains(b.reports(), "idemhttp: ") {
				t.Errorf("reported %s", b.reports())
			}
		})
	}
}

func TestUnaryConnectIsAResponseAsAnyOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/proto")
		io.WriteString(w, "a")
	})
	b.post(server, "k").is(t, 200, "a", false)
	b.post(server, "k").is(t, 200, "a", true)
}

func TestRequestGoesBackAsAHandlerLeavesIt(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for name, wrap := range map[string]func(*bundle, http.Handler) http.Handler{
		"without": func(_ *bundle, h http.Handler) http.Handler { return h },
		"with":    func(b *bundle, h http.Handler) http.Handler { return b.middleware(idemhttp.Config{}).Handler(h) },
		"with, finishing": func(b *bundle, h http.Handler) http.Handler {
			return b.middleware(idemhttp.Config{FinishDisconnected: true}).Handler(h)
		},
	} {
		for _, end := range []string{"writes", "panics"} {
			t.Run(name+" the Middleware, the handler "+end, func(t *testing.T) {
				t.Parallel()
				b := shared.sub(t)
				mux := http.NewServeMux()
				mux.HandleFunc("POST /charges/{id}", func(w http.ResponseWriter, r *http.Request) {
					if tx := idemhttp.Tx(r.Context()); tx != nil {
						if b.charge(r.Context(), tx); b.runs.Load() == 1 { // it is run twice
							_, _ = tx.Exec(r.Context(), conflict)
						}
					}
					r.Header.Add("Seen", "1")
					r.ParseForm()
					r.URL.Path = "/changed"
					if end == "panics" {
						panic("oops")
					}
				})
				inner, body := wrap(b, mux), io.ReadCloser(nil)
				left := ""
				server := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					body = r.Body
					defer func() {
						_ = recover()
						left = fmt.Sprintf("%s %s %v %v %s %d %v %v", r.Pattern, r.PathValue("id"), r.Header["Seen"], r.PostForm, r.URL.Path,
							r.ContentLength, r.Body == body, idemhttp.Tx(r.Context()) == nil)
					}()
					inner.ServeHTTP(w, r)
				}))
				b.do(server, "POST", "/charges/7", "a=1", form)
				if want := "POST /charges/{id} 7 [1] map[a:[1]] /changed 3 true true"; left != want {
					t.Errorf("left %s, want %s", left, want)
				}
			})
		}
	}
}

func TestReplayLeavesTheRequestAsItWas(t *testing.T) {
	t.Parallel()
	b := setup(t)
	inner := b.routed(created)
	var pattern string
	server := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inner.ServeHTTP(w, r)
		pattern = r.Pattern
	}))
	for _, want := range []string{"POST /charges", ""} { // a replay asks no router
		b.post(server, "k")
		if pattern != want {
			t.Errorf("Pattern is %q, want %q", pattern, want)
		}
	}
}

// routed is a mux behind a Middleware.
func (b *bundle) routed(h http.HandlerFunc) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /charges", h)
	return b.middleware(idemhttp.Config{}).Handler(mux)
}

func TestFieldThatWasBegunOutsideIsReplayedAsAdded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	n := 0
	inner := b.middleware(idemhttp.Config{}).Handler(b.charging(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Add("Vary", "Accept")
		h.Add("Vary", "Accept-Language")
		h.Add("Set-Cookie", "a=1") // not replayed, whoever began
		h.Del("X-Powered-By")
		h["X-Shorter"] = h["X-Shorter"][:1]
		h.Add("Trailer", "Checksum")
		w.WriteHeader(200)
		h.Set("Checksum", "1")
	}))
	server := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n++
		h := w.Header()
		if n < 3 {
			h.Set("Vary", fmt.Sprint("Origin-", n))
		}
		h.Set("Set-Cookie", fmt.Sprint("outer=", n))
		h.Set("X-Powered-By", "outer")
		h["X-Shorter"] = []string{fmt.Sprint(n), "2"}
		h.Set("X-Outer-Only", "1")
		h.Set("Trailer", "Outer-Sum")
		inner.ServeHTTP(w, r)
		h.Set("Outer-Sum", fmt.Sprint(n))
	}))
	for i, want := range []string{
		"[Origin-1 Accept Accept-Language] [outer=1 a=1] [] [1] map[Checksum:[1] Outer-Sum:[1]]",
		"[Origin-2 Accept Accept-Language] [outer=2] [] [1] map[Checksum:[1] Outer-Sum:[2]]",
		"[Accept Accept-Language] [outer=3] [] [1] map[Checksum:[1] Outer-Sum:[3]]",
	} {
		got := b.post(server, "k")
		if g := fmt.Sprint(got.Header["Vary"], got.Header["Set-Cookie"], got.Header["X-Powered-By"], got.Header["X-Shorter"], got.Trailer); g != want {
			t.Errorf("exchange %d has %s, want %s", i+1, g, want)
		}
	}
	b.ran(1)
	var stored string
	if err := b.pool.QueryRow(t.Context(), "select convert_from(result, 'UTF8') from idempotency_keys").Scan(&stored); err != nil {
		t.Fatal(err)
	}
	const want = `{"status":200,"header":{"X-Shorter":["1"]},"trailer":{"Checksum":["1"]},"added":{"Vary":["Accept","Accept-Language"]},"deleted":["X-Powered-By"]}`
	if stored != want {
		t.Errorf("stored: %s", stored)
	}
}

func TestClientOfAnotherKindOfServerCanSendABareKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var field string
	m := b.middleware(idemhttp.Config{}).Atomic(func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
		b.charge(r.Context(), tx)
		created(w, r)
	})
	server := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		field = r.Header.Get("Idempotency-Key")
		m.ServeHTTP(w, r)
	}))
	client := &http.Client{Transport: &idemhttp.Transport{Bare: true}}
	t.Cleanup(client.CloseIdleConnections)
	send := func(key string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(t.Context(), "POST", server.URL, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		if key != "" {
			req = req.WithContext(idemhttp.WithKey(req.Context(), key))
		}
		req.Header.Set("Account", b.account)
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		return resp, err
	}
	resp, err := send("")
	if key, _ := idemhttp.Sent(resp, err); err != nil || field != key || len(key) != 36 {
		t.Errorf("sent %q for key %q, %v", field, key, err)
	}
	if resp, err := send("order-42:a/b=@"); err != nil || field != "order-42:a/b=@" || resp.StatusCode != 201 {
		t.Errorf("sent %q, %v", field, err)
	}
	field = ""
	for _, key := range []string{"a b", "a;b", `a"b`, ":a", "=a", "@a", "ä", "a,b", `"a"`, "a\x00"} {
		if _, err := send(key); err == nil || !strings.Contains(err.Error(), "nothing was sent") || field != "" {
			t.Errorf("%q was sent as %q, %v", key, field, err)
		}
	}
	b.effects(2)
}
