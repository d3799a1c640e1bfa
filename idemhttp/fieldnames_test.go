package idemhttp_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/pgidem/idempotency/idemhttp"
)

// What net/http does with fields that cannot be sent is not written down, so the
// same handler is asked without the Middleware.
func TestFieldsThatCannotBeSentAreWhatNetHTTPMakesOfThem(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	set := func(name string, values ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header()["X-Before"] = []string{"1"}
			w.Header()[name] = values
			w.WriteHeader(201)
			io.WriteString(w, "{}")
		}
	}
	trailer := func(name string, values ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-Sum, "+name)
			io.WriteString(w, "{}")
			w.Header().Set("X-Sum", "1")
			w.Header()[name] = values
		}
	}
	for name, handle := range map[string]http.HandlerFunc{
		"a space in the name":          set("X Y", "1"),
		"no name":                      set("", "1"),
		"a colon in the name":          set("X:Y", "1"),
		"a colon before the name":      set(":status", "500"),
		"a newline in the name":        set("X\r\nY", "1"),
		"a NUL in the name":            set("X\x00Y", "1"),
		"a name that is no UTF-8":      set("X\xffY", "1"),
		"a name that is half a rune":   set("X\xc3", "1"),
		"a name of umlauts":            set("Xä", "1"),
		"a name in lower case":         set("x-y", "1"),
		"a name of a token":            set("X!#$%&'*+-.^_`|~9", "1"),
		"a name of quotes":             set(`X"Y"`, "1"),
		"a newline in the value":       set("X-Y", "1\r\nSet-Cookie: a"),
		"a newline first":              set("X-Y", "\n1"),
		"a newline at the end":         set("X-Y", "1\n"),
		"a carriage return":            set("X-Y", "1\r2"),
		"a NUL in the value":           set("X-Y", "1\x002"),
		"a value that is no UTF-8":     set("X-Y", "1\xff2"),
		"a DEL in the value":           set("X-Y", "1\x7f2"),
		"spaces around the value":      set("X-Y", " 1\t"),
		"a good value and a bad one":   set("X-Y", "1", "2\n3"),
		"an empty value":               set("X-Y", ""),
		"no values":                    set("X-Y"),
		"a Location of two lines":      set("Location", "/a\r\n/b"),
		"a Content-Type of two lines":  set("Content-Type", "text/plain\r\nX: y"),
		"a Trailer of a bad name":      trailer("X Z", "1"),
		"a Trailer without a name":     trailer("", "1"),
		"a Trailer that is no UTF-8":   trailer("X\xffZ", "1"),
		"a Trailer that is no trailer": trailer("If-Match", "1"),
		"a Trailer of a newline":       trailer("X-Z", "1\r\n2"),
		"a marked trailer of a bad name": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "{}")
			w.Header()[http.TrailerPrefix+"X Z"] = []string{"1"}
			w.Header()[http.TrailerPrefix] = []string{"1"}
			w.Header()[http.TrailerPrefix+"X\xff"] = []string{"1"}
		},
	} {
		for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
			if marked := strings.HasPrefix(name, "a marked"); marked && proto == "HTTP/2.0" {
				continue // the response of net/http itself never ends
			}
			t.Run(name+", "+proto, func(t *testing.T) {
				t.Parallel()
				b := shared.sub(t)
				serve := func(h http.Handler) *httptest.Server {
					server := httptest.NewUnstartedServer(h)
					server.Config.ErrorLog = discardLog
					server.EnableHTTP2 = proto == "HTTP/2.0"
					server.StartTLS()
					t.Cleanup(server.Close)
					return server
				}
				seen := func(server *httptest.Server) (string, answer) {
					got, err := b.try(server, "POST", "/", "", withKey("k"))
					if err != nil {
						return "no response that a client takes", got
					}
					return got.Status + dump(got.Header) + dump(got.Trailer) + got.body, got
				}
				want, _ := seen(serve(handle))
				server := serve(b.middleware(idemhttp.Config{}).Handler(handle))
				first, _ := seen(server)
				replay, _ := seen(server)
				if first != want {
					t.Errorf("the first client got %q, and without the Middleware %q", first, want)
				}
				if replay != want {
					t.Errorf("the replay is %q, and without the Middleware %q", replay, want)
				}
				if got := b.reports(); got != "[]" {
					t.Errorf("reported %s", got)
				}
			})
		}
	}
}

func TestTrailerThatNoClientTakesIsLeftOut(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for _, name := range []string{"Content-Length", "Transfer-Encoding", "Trailer", http.TrailerPrefix + "Content-Length", http.TrailerPrefix + "X Z", http.TrailerPrefix} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := httptest.NewUnstartedServer(b.middleware(idemhttp.Config{}).Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Trailer", "X-Sum, "+name)
				io.WriteString(w, "{}")
				w.Header().Set("X-Sum", "1")
				w.Header()[name] = []string{"chunked"}
			})))
			server.EnableHTTP2 = true // where net/http never ends a response with an invalid trailer
			server.StartTLS()
			t.Cleanup(server.Close)
			for _, url := range []*httptest.Server{server, b.serve(server.Config.Handler)} {
				for range 2 {
					got := b.post(url, "k")
					if got.body != "{}" || len(got.Trailer) != 1 || got.Trailer.Get("X-Sum") != "1" {
						t.Errorf("got %q, trailers %v", got.body, got.Trailer)
					}
				}
			}
		})
	}
}

func TestInvalidFieldOfOuterMiddlewareDoesNotFailTheRequest(t *testing.T) {
	t.Parallel()
	b := setup(t)
	inner := b.middleware(idemhttp.Config{}).Handler(b.charging(func(w http.ResponseWriter, r *http.Request) {
		clear(w.Header())
		created(w, r)
	}))
	server := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["X\xff"] = []string{"1"}
		inner.ServeHTTP(w, r)
	}))
	b.post(server, "k").is(t, 201, `{"id": 1}`, false)
	b.post(server, "k").is(t, 201, `{"id": 1}`, true)
}

var ofTheExchange = regexp.MustCompile(`(?m)^(Date|Idempotent-Replayed|Content-Length|Trailer): .*\r\n`)

// dump is a header as it is on the wire, without what differs in each exchange.
func dump(h http.Header) string {
	var b = new(writer)
	h.Write(b)
	return ofTheExchange.ReplaceAllString("\r\n"+b.text, "")
}

type writer struct{ text string }

func (w *writer) Write(p []byte) (int, error) { w.text += string(p); return len(p), nil }
