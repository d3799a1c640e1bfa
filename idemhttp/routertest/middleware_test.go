package routertest

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/adaptor"
	"github.com/gorilla/handlers"
	"github.com/hashicorp/go-retryablehttp"
	"github.com/pgidem/idempotency/idemhttp"
)

// plain is a handler of net/http.
func plain(w http.ResponseWriter, r *http.Request) {
	status, text := charge(r.Context(), "ada")
	w.WriteHeader(status)
	io.WriteString(w, text)
}

// do sends a request that edit has completed, and returns its response, read.
func (b *bundle) do(server *httptest.Server, method, body string, edit func(*http.Request)) (*http.Response, string) {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), method, server.URL, strings.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	edit(req)
	resp, err := server.Client().Do(req)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.Fatal(err)
	}
	return resp, string(text)
}

func TestCompressionOutsideIsOfEachExchangeAndInsideIsRecorded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	text := strings.Repeat("hello ", 500)
	hello := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) })
	for name, h := range map[string]http.Handler{
		"outside": handlers.CompressHandler(b.idem.Handler(hello)),
		"inside":  b.idem.Handler(handlers.CompressHandler(hello)),
	} {
		server := b.serve(h)
		for i, asked := range []string{"gzip", "identity", "gzip"} {
			resp, got := b.do(server, "POST", "", func(r *http.Request) {
				r.Header.Set("Idempotency-Key", name)
				r.Header.Set("Accept-Encoding", asked)
			})
			zipped := resp.Header.Get("Content-Encoding") == "gzip"
			if zipped {
				reader, err := gzip.NewReader(bytes.NewBufferString(got))
				if err != nil {
					t.Fatal(err)
				}
				all, _ := io.ReadAll(reader)
				got = string(all)
			}
			if got != text || (resp.Header.Get("Idempotent-Replayed") == "true") != (i > 0) {
				t.Errorf("%s, %d: got %d bytes, %v", name, i, len(got), resp.Header)
			}
			if want := asked == "gzip" || name == "inside"; zipped != want {
				t.Errorf("%s, asked for %s: compressed %v", name, asked, zipped)
			}
		}
	}
}

func TestCORSOutsideAnswersThePreflightAndExposesTheHeaderFields(t *testing.T) {
	t.Parallel()
	b := setup(t)
	cors := handlers.CORS(
		handlers.AllowedOrigins([]string{"https://shop.example", "https://pos.example"}),
		handlers.AllowedMethods([]string{"POST"}),
		handlers.AllowedHeaders([]string{"Content-Type", "Idempotency-Key"}),
		handlers.ExposedHeaders([]string{"Idempotent-Replayed", "Idempotent-Body-Omitted", "Retry-After", "Location"}))
	for name, h := range map[string]http.Handler{
		"outside": cors(b.idem.Handler(http.HandlerFunc(plain))),
		"inside":  b.idem.Handler(cors(http.HandlerFunc(plain))),
	} {
		server := b.serve(h)
		resp, _ := b.do(server, "OPTIONS", "", func(r *http.Request) {
			r.Header.Set("Origin", "https://shop.example")
			r.Header.Set("Access-Control-Request-Method", "POST")
			r.Header.Set("Access-Control-Request-Headers", "idempotency-key")
		})
		if resp.StatusCode != 200 || resp.Header.Get("Access-Control-Allow-Headers") != "Idempotency-Key" {
			t.Errorf("%s: the preflight got %d, %v", name, resp.StatusCode, resp.Header)
		}
		for _, origin := range []string{"https://shop.example", "https://pos.example"} {
			resp, _ := b.do(server, "POST", "{}", func(r *http.Request) {
				r.Header.Set("Origin", origin)
				r.Header.Set("Idempotency-Key", name)
			})
			want := origin
			if name == "inside" {
				want = "https://shop.example" // as recorded
			}
			if resp.StatusCode != 201 || resp.Header.Get("Access-Control-Allow-Origin") != want ||
				!strings.Contains(resp.Header.Get("Access-Control-Expose-Headers"), "Idempotent-Replayed") {
				t.Errorf("%s: %s got %d, %v", name, origin, resp.StatusCode, resp.Header)
			}
		}
		// A script can read its own errors only if CORS is outside.
		resp, _ = b.do(server, "POST", "{}", func(r *http.Request) { r.Header.Set("Origin", "https://shop.example") })
		if resp.StatusCode != 400 || (resp.Header.Get("Access-Control-Allow-Origin") != "") != (name == "outside") {
			t.Errorf("%s: an error has %v", name, resp.Header)
		}
	}
}

func TestMethodOverrideOutsideIsProtected(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := handlers.HTTPMethodOverrideHandler(b.idem.Handler(http.HandlerFunc(plain)))
	lost := false
	server := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !lost { // it is executed, and its answer gets lost
			lost = true
			h.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		h.ServeHTTP(w, r)
	}))
	req, err := http.NewRequestWithContext(t.Context(), "POST", server.URL, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-HTTP-Method-Override", "DELETE")
	resp, err := (&http.Client{Transport: &idemhttp.Transport{}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 201 || resp.Header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("got %d, %v", resp.StatusCode, resp.Header)
	}
	b.charges(1)
}

func TestFormThatAnOverrideHasReadIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.serve(handlers.HTTPMethodOverrideHandler(b.idem.Handler(http.HandlerFunc(plain))))
	resp, _ := b.do(server, "POST", "amount=10", func(r *http.Request) {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Idempotency-Key", "k")
	})
	if resp.StatusCode != 500 || !strings.Contains(b.reports(), "before the Middleware") {
		t.Errorf("got %d, reported %s", resp.StatusCode, b.reports())
	}
	b.charges(0)
}

func TestTimeoutHandlerOutsideEndsTheTransaction(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ended := make(chan error, 1)
	slow := true
	server := b.serve(http.TimeoutHandler(b.idem.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if slow {
			slow = false
			charge(r.Context(), "ada")
			_, err := idemhttp.Tx(r.Context()).Exec(r.Context(), "select pg_sleep(10)")
			ended <- err
		}
		plain(w, r)
	})), 500*time.Millisecond, "too slow"))
	if got := b.ask(server, "POST", "/", "k"); got != "503 too slow" {
		t.Errorf("got %s", got)
	}
	if err := <-ended; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the statement ended with %v", err)
	}
	if got := b.ask(server, "POST", "/", "k"); got != "201 charge 1 of ada" {
		t.Errorf("the retry got %s", got)
	}
	b.charges(1)
}

func TestRetrierAroundTheTransportNeedsWithKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	idem := b.middleware(idemhttp.Config{FinishDisconnected: true})
	first, done := true, make(chan bool, 1)
	server := b.serve(idem.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		plain(w, r)
		if first {
			first = false
			time.Sleep(600 * time.Millisecond) // longer than the client waits
			done <- true
		}
	})))
	client := retryablehttp.NewClient()
	client.Logger, client.RetryMax, client.RetryWaitMin, client.RetryWaitMax = nil, 10, 100*time.Millisecond, 100*time.Millisecond
	client.HTTPClient = &http.Client{Transport: &idemhttp.Transport{}, Timeout: 300 * time.Millisecond}
	req, err := retryablehttp.NewRequestWithContext(idemhttp.WithKey(t.Context(), idemhttp.NewID()), "POST", server.URL, []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	<-done
	if resp.StatusCode != 201 {
		t.Errorf("got %d", resp.StatusCode)
	}
	b.charges(1)
}

func TestBareKeyIsTakenWhereTheSchemaSaysUUID(t *testing.T) {
	t.Parallel()
	routes := http.NewServeMux()
	huma.Register(humago.New(routes, huma.DefaultConfig("x", "1")), huma.Operation{Method: "POST", Path: "/"},
		func(context.Context, *struct {
			Key string `header:"Idempotency-Key" format:"uuid"`
		}) (*struct{}, error) {
			return nil, nil
		})
	server := httptest.NewServer(routes)
	defer server.Close()
	for bare, want := range map[bool]int{true: 204, false: 422} {
		client := &http.Client{Transport: &idemhttp.Transport{Bare: bare}}
		resp, err := client.Post(server.URL, "text/plain", strings.NewReader(""))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("bare %v: got %d, want %d", bare, resp.StatusCode, want)
		}
		client.CloseIdleConnections()
	}
}

// fiber's adaptor runs the handlers after the Middleware has returned, so that
// it cannot protect them. It says so.
func TestFiberIsNotProtectedAndReported(t *testing.T) {
	t.Parallel()
	b := setup(t)
	app := fiber.New(fiber.Config{DisableStartupMessage: true})
	app.Use(adaptor.HTTPMiddleware(b.idem.Handler))
	app.Post("/", func(c *fiber.Ctx) error { return c.Status(201).SendString("charged") })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- app.Listener(listener) }()
	for i := range 2 {
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+listener.Addr().String(), strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Idempotency-Key", "k")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if n := strings.Count(b.reports(), "adaptor"); n != i+1 {
			t.Errorf("request %d: got %d, reported %s", i, resp.StatusCode, b.reports())
		}
		if resp.Header.Get("Idempotent-Replayed") != "" {
			t.Error("a replay of nothing")
		}
	}
	if err := app.Shutdown(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
