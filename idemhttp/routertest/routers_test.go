package routertest

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/labstack/echo/v4"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemhttp"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) {
	gin.SetMode(gin.ReleaseMode)
	pgtest.Main(m)
}

func account(*http.Request) (string, error) { return "account-1", nil }

// charge is the business: it answers with the customer of the path, or refuses
// the customer "nobody" after it has written.
func charge(r *http.Request, customer string) (int, string) {
	tx := idemhttp.Tx(r.Context())
	var n int
	err := tx.QueryRow(r.Context(), `
		with charge as (insert into charges values ($1) returning customer)
		select count(*) + 1 from charges where customer = $1`, customer).Scan(&n)
	if err != nil {
		return http.StatusInternalServerError, err.Error()
	}
	if customer == "nobody" {
		return http.StatusServiceUnavailable, "try again"
	}
	return http.StatusCreated, fmt.Sprintf("charge %d of %s", n, customer)
}

// routers are all ways that the documentation names. Each serves
// POST /customers/{customer}/charges, and GET /.
var routers = map[string]func(*idemhttp.Middleware) http.Handler{
	"mux, per route": func(idem *idemhttp.Middleware) http.Handler {
		mux := http.NewServeMux()
		mux.Handle("POST /customers/{customer}/charges", idem.Atomic(func(w http.ResponseWriter, r *http.Request, _ pgx.Tx) {
			status, text := charge(r, r.PathValue("customer"))
			w.WriteHeader(status)
			io.WriteString(w, text)
		}))
		mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "home") })
		return mux
	},
	"mux, as a whole": func(idem *idemhttp.Middleware) http.Handler {
		mux := http.NewServeMux()
		mux.HandleFunc("POST /customers/{customer}/charges", func(w http.ResponseWriter, r *http.Request) {
			status, text := charge(r, r.PathValue("customer"))
			w.WriteHeader(status)
			io.WriteString(w, text)
		})
		mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "home") })
		return idem.Handler(mux)
	},
	"chi, Use": func(idem *idemhttp.Middleware) http.Handler {
		r := chi.NewRouter()
		r.Use(middleware.RequestID, middleware.Logger, middleware.Recoverer, idem.Handler)
		r.Post("/customers/{customer}/charges", chiCharge)
		r.Get("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "home") })
		return r
	},
	"chi, With": func(idem *idemhttp.Middleware) http.Handler {
		r := chi.NewRouter()
		r.Route("/customers/{customer}", func(r chi.Router) {
			r.With(idem.Handler).Post("/charges", chiCharge)
		})
		r.Get("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "home") })
		return r
	},
	"gin, as a whole": func(idem *idemhttp.Middleware) http.Handler {
		e := gin.New()
		e.Use(gin.Recovery())
		e.POST("/customers/:customer/charges", func(c *gin.Context) {
			status, text := charge(c.Request, c.Param("customer"))
			c.String(status, text)
		})
		e.GET("/", func(c *gin.Context) { c.String(200, "home") })
		return idem.Handler(e)
	},
	"gin, per route": func(idem *idemhttp.Middleware) http.Handler {
		e := gin.New()
		e.POST("/customers/:customer/charges", func(c *gin.Context) {
			gin.WrapH(idem.Atomic(func(w http.ResponseWriter, r *http.Request, _ pgx.Tx) {
				status, text := charge(r, c.Param("customer"))
				w.WriteHeader(status)
				io.WriteString(w, text)
			}))(c)
		})
		e.GET("/", func(c *gin.Context) { c.String(200, "home") })
		return e
	},
	"echo, as a whole": func(idem *idemhttp.Middleware) http.Handler {
		e := echo.New()
		e.POST("/customers/:customer/charges", echoCharge)
		e.GET("/", func(c echo.Context) error { return c.String(200, "home") })
		return idem.Handler(e)
	},
	"echo, per route": func(idem *idemhttp.Middleware) http.Handler {
		e := echo.New()
		e.POST("/customers/:customer/charges", echoCharge, echo.WrapMiddleware(idem.Handler), echoErrors)
		e.GET("/", func(c echo.Context) error { return c.String(200, "home") })
		return e
	},
}

func chiCharge(w http.ResponseWriter, r *http.Request) {
	status, text := charge(r, chi.URLParam(r, "customer"))
	w.WriteHeader(status)
	io.WriteString(w, text)
}

// echoCharge returns its failures, as handlers of echo do.
func echoCharge(c echo.Context) error {
	status, text := charge(c.Request(), c.Param("customer"))
	if status >= 400 {
		return echo.NewHTTPError(status, text)
	}
	return c.String(status, text)
}

// echoErrors answers an error inside of the middleware. By itself echo does so
// outside, after an empty 200 of the handler has been committed.
func echoErrors(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if err := next(c); err != nil {
			c.Error(err)
		}
		return nil
	}
}

type bundle struct {
	testing.TB
	pool *pgxpool.Pool
	idem *idemhttp.Middleware
}

func setup(t testing.TB) *bundle {
	t.Helper()
	b := &bundle{TB: t, pool: pgtest.New(t)}
	if _, err := b.pool.Exec(t.Context(), "create table charges (customer text not null)"); err != nil {
		t.Fatal(err)
	}
	idem, err := idemhttp.New(idempotency.New(b.pool), idemhttp.Config{Scope: account})
	if err != nil {
		t.Fatal(err)
	}
	b.idem = idem
	return b
}

// ask sends a request and returns status, body and whether it was replayed.
func (b *bundle) ask(server *httptest.Server, method, path, key string) string {
	b.Helper()
	req, err := http.NewRequest(method, server.URL+path, strings.NewReader("{}"))
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Idempotency-Key", key)
	resp, err := server.Client().Do(req)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(fmt.Sprint(resp.StatusCode, " ", string(body), " ", resp.Header.Get("Idempotent-Replayed")))
}

func (b *bundle) charges(want int) {
	b.Helper()
	var got int
	if err := b.pool.QueryRow(b.Context(), "select count(*) from charges").Scan(&got); err != nil {
		b.Fatal(err)
	}
	if got != want {
		b.Errorf("%d charges, want %d", got, want)
	}
}

func TestEveryRouterExecutesOnceAndReplays(t *testing.T) {
	t.Parallel()
	for name, router := range routers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			server := httptest.NewServer(router(b.idem))
			t.Cleanup(server.Close)
			for _, step := range []struct{ method, path, key, want string }{
				{"POST", "/customers/ada/charges", "1", "201 charge 1 of ada"},
				{"POST", "/customers/ada/charges", "1", "201 charge 1 of ada true"},
				{"POST", "/customers/ada/charges", "2", "201 charge 2 of ada"},
				{"GET", "/", "1", "200 home"},
			} {
				if got := b.ask(server, step.method, step.path, step.key); got != step.want {
					t.Errorf("%s %s: got %s, want %s", step.method, step.path, got, step.want)
				}
			}
			b.charges(2)
			if got := b.ask(server, "POST", "/customers/eve/charges", "1"); !strings.HasPrefix(got, "422 ") {
				t.Errorf("the same key on another path: %s", got)
			}
			for range 2 {
				if got := b.ask(server, "POST", "/customers/nobody/charges", "3"); !strings.HasPrefix(got, "503 ") || !strings.Contains(got, "try again") {
					t.Errorf("a refusal: %s", got)
				}
			}
			b.charges(2)
		})
	}
}

func TestPanicInEveryRouterLeavesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	write := func(r *http.Request) {
		if _, err := idemhttp.Tx(r.Context()).Exec(r.Context(), "insert into charges values ('x')"); err != nil {
			t.Error(err)
		}
	}
	e := gin.New()
	e.Use(gin.CustomRecoveryWithWriter(io.Discard, func(c *gin.Context, _ any) { c.AbortWithStatus(500) }))
	e.POST("/", func(c *gin.Context) { write(c.Request); panic("oops") })
	r := chi.NewRouter()
	r.Use(b.idem.Handler, middleware.Recoverer)
	r.Post("/", func(_ http.ResponseWriter, r *http.Request) { write(r); panic(errors.New("oops")) })
	for name, h := range map[string]http.Handler{"gin": b.idem.Handler(e), "chi": r} {
		server := httptest.NewServer(h)
		for range 2 {
			if got := b.ask(server, "POST", "/", name); got != "500" {
				t.Errorf("%s: got %s", name, got)
			}
		}
		server.Close()
	}
	b.charges(0)
}
