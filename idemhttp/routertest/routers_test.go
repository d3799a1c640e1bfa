package routertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/gorilla/mux"
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

// charge is the business: it answers with the customer of the path, refuses the
// customer "nobody" after it has written, and meets a conflict the first time
// for the customer "busy".
func charge(ctx context.Context, customer string) (int, string) {
	tx := idemhttp.Tx(ctx)
	if tx == nil {
		return http.StatusInternalServerError, "no transaction"
	}
	var n int
	err := tx.QueryRow(ctx, `
		with charge as (insert into charges values ($1) returning customer)
		select count(*) + 1 from charges where customer = $1`, customer).Scan(&n)
	if err == nil && customer == "busy" {
		_, err = tx.Exec(ctx, "insert into flaky values (1)")
	}
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
			status, text := charge(r.Context(), r.PathValue("customer"))
			w.WriteHeader(status)
			io.WriteString(w, text)
		}))
		mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "home") })
		return mux
	},
	"mux, as a whole": func(idem *idemhttp.Middleware) http.Handler {
		mux := http.NewServeMux()
		mux.HandleFunc("POST /customers/{customer}/charges", func(w http.ResponseWriter, r *http.Request) {
			status, text := charge(r.Context(), r.PathValue("customer"))
			w.WriteHeader(status)
			io.WriteString(w, text)
		})
		mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "home") })
		return idem.Handler(mux)
	},
	"chi, as a whole": func(idem *idemhttp.Middleware) http.Handler {
		r := chi.NewRouter()
		r.Use(middleware.RequestID, middleware.Logger, middleware.Recoverer)
		r.Route("/customers", func(r chi.Router) {
			r.Mount("/{customer}", chi.NewRouter().Group(func(r chi.Router) { r.Post("/charges", chiCharge) }))
		})
		r.Get("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "home") })
		return idem.Handler(r)
	},
	"chi, With": func(idem *idemhttp.Middleware) http.Handler {
		r := chi.NewRouter()
		r.Route("/customers/{customer}", func(r chi.Router) {
			r.With(idem.Handler).Post("/charges", chiCharge)
		})
		r.Get("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "home") })
		return r
	},
	"gorilla, as a whole": func(idem *idemhttp.Middleware) http.Handler {
		r := mux.NewRouter()
		r.PathPrefix("/customers").Subrouter().HandleFunc("/{customer}/charges", gorillaCharge).Methods("POST")
		r.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "home") })
		return idem.Handler(r)
	},
	"gorilla, Use": func(idem *idemhttp.Middleware) http.Handler {
		r := mux.NewRouter()
		r.Use(idem.Handler)
		r.PathPrefix("/customers").Subrouter().HandleFunc("/{customer}/charges", gorillaCharge).Methods("POST")
		r.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "home") })
		return r
	},
	"huma, as a whole": func(idem *idemhttp.Middleware) http.Handler {
		routes := http.NewServeMux()
		huma.Register(humago.New(routes, huma.DefaultConfig("x", "1")), huma.Operation{Method: "POST", Path: "/customers/{customer}/charges"}, humaCharge)
		routes.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "home") })
		return idem.Handler(routes)
	},
	"gin, as a whole": func(idem *idemhttp.Middleware) http.Handler {
		e := gin.New()
		e.Use(gin.Recovery())
		e.POST("/customers/:customer/charges", func(c *gin.Context) {
			status, text := charge(c.Request.Context(), c.Param("customer"))
			c.String(status, text)
		})
		e.GET("/", func(c *gin.Context) { c.String(200, "home") })
		return idem.Handler(e)
	},
	"gin, per route": func(idem *idemhttp.Middleware) http.Handler {
		e := gin.New()
		e.Use(func(c *gin.Context) { c.Set("outer", "kept") })
		e.POST("/customers/:customer/charges", ginOnce(e, idem, func(c *gin.Context) {
			status, text := charge(c.Request.Context(), c.Param("customer"))
			if c.GetString("outer") == "" {
				status, text = 500, "what outer middleware has set is not there"
			}
			c.String(status, text)
		}))
		e.GET("/", func(c *gin.Context) { c.String(200, "home") })
		return e
	},
	"gin, WrapH": func(idem *idemhttp.Middleware) http.Handler {
		e := gin.New()
		e.POST("/customers/:customer/charges", func(c *gin.Context) {
			gin.WrapH(idem.Atomic(func(w http.ResponseWriter, r *http.Request, _ pgx.Tx) {
				status, text := charge(r.Context(), c.Param("customer"))
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
		e.POST("/customers/:customer/charges", echoCharge, echoOnce(idem))
		e.GET("/", func(c echo.Context) error { return c.String(200, "home") })
		return e
	},
	"echo, Use": func(idem *idemhttp.Middleware) http.Handler {
		e := echo.New()
		e.Use(echoOnce(idem))
		e.POST("/customers/:customer/charges", echoCharge)
		e.GET("/", func(c echo.Context) error { return c.String(200, "home") })
		return e
	},
}

func chiCharge(w http.ResponseWriter, r *http.Request) {
	status, text := charge(r.Context(), chi.URLParam(r, "customer"))
	w.WriteHeader(status)
	io.WriteString(w, text)
}

// echoCharge returns its failures, as handlers of echo do.
func echoCharge(c echo.Context) error {
	status, text := charge(c.Request().Context(), c.Param("customer"))
	if status >= 400 {
		return echo.NewHTTPError(status, text)
	}
	return c.String(status, text)
}

func gorillaCharge(w http.ResponseWriter, r *http.Request) {
	status, text := charge(r.Context(), mux.Vars(r)["customer"])
	w.WriteHeader(status)
	io.WriteString(w, text)
}

type humaInput struct {
	Customer string `path:"customer"`
}

type humaOutput struct {
	Status      int
	ContentType string `header:"Content-Type"`
	Body        []byte
}

func humaCharge(ctx context.Context, in *humaInput) (*humaOutput, error) {
	status, text := charge(ctx, in.Customer)
	if status >= 400 {
		return nil, huma.NewError(status, text)
	}
	return &humaOutput{Status: status, ContentType: "text/plain", Body: []byte(text)}, nil
}

type bundle struct {
	testing.TB
	pool *pgxpool.Pool
	idem *idemhttp.Middleware

	mu       sync.Mutex
	reported []string
}

func setup(t testing.TB) *bundle {
	t.Helper()
	b := &bundle{TB: t, pool: pgtest.New(t)}
	if _, err := b.pool.Exec(t.Context(), `
		create table charges (customer text not null);
		create sequence tries;
		create function conflict_once() returns bool language plpgsql as $$ begin
			if nextval('tries') = 1 then raise exception 'x' using errcode = '40001'; end if; return true; end $$;
		create table flaky (n int check (conflict_once()))`); err != nil {
		t.Fatal(err)
	}
	b.idem = b.middleware(idemhttp.Config{})
	return b
}

// middleware is New with the Scope and the Report of the tests.
func (b *bundle) middleware(cfg idemhttp.Config) *idemhttp.Middleware {
	b.Helper()
	cfg.Scope = account
	cfg.Report = func(_ *http.Request, err error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.reported = append(b.reported, err.Error())
	}
	idem, err := idemhttp.New(idempotency.New(b.pool), cfg)
	if err != nil {
		b.Fatal(err)
	}
	return idem
}

// reports returns what was reported, as one text.
func (b *bundle) reports() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.reported, "; ")
}

func (b *bundle) serve(h http.Handler) *httptest.Server {
	server := httptest.NewServer(h)
	b.Cleanup(server.Close)
	return server
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
			server := b.serve(router(b.idem))
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
			if got := b.ask(server, "POST", "/nothing/here", "4"); !strings.HasPrefix(got, "40") {
				t.Errorf("a path that is not there: %s", got)
			}
		})
	}
}

func TestEveryRouterRunsASecondTime(t *testing.T) {
	t.Parallel()
	for name, router := range routers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			server := b.serve(router(b.idem))
			for _, want := range []string{"201 charge 1 of busy", "201 charge 1 of busy true"} {
				if got := b.ask(server, "POST", "/customers/busy/charges", "1"); got != want {
					t.Errorf("got %s, want %s", got, want)
				}
			}
			b.charges(1)
			if b.reports() != "" {
				t.Errorf("reported %s", b.reports())
			}
			var tries int
			if err := b.pool.QueryRow(t.Context(), "select last_value from tries").Scan(&tries); err != nil || tries != 2 {
				t.Errorf("the handler has run %d times, %v: the test shows nothing", tries, err)
			}
		})
	}
}

// What cannot be run a second time must not be taken for a response.
func TestRouterThatCannotRunASecondTimeFailsAndTheRetryExecutes(t *testing.T) {
	t.Parallel()
	for name, router := range map[string]func(*idemhttp.Middleware) http.Handler{
		"gin, Next": func(idem *idemhttp.Middleware) http.Handler {
			e := gin.New()
			e.Use(func(c *gin.Context) {
				outer := c.Writer
				idem.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					c.Writer, c.Request = ginWriter{outer, w}, r
					c.Next()
				})).ServeHTTP(outer, c.Request)
			})
			e.POST("/customers/:customer/charges", func(c *gin.Context) {
				status, text := charge(c.Request.Context(), c.Param("customer"))
				c.String(status, text)
			})
			return e
		},
		"chi, Use around mounted routers": func(idem *idemhttp.Middleware) http.Handler {
			r := chi.NewRouter()
			r.Use(idem.Handler)
			r.Mount("/customers", chi.NewRouter().Group(func(r chi.Router) { r.Post("/{customer}/charges", chiCharge) }))
			return r
		},
		"chi, Use around mounted routers, and an audit inside": func(idem *idemhttp.Middleware) http.Handler {
			r := chi.NewRouter()
			r.Use(idem.Handler, func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = idemhttp.Tx(r.Context()).Exec(r.Context(), "select 1")
					next.ServeHTTP(w, r)
				})
			})
			r.Mount("/customers", chi.NewRouter().Group(func(r chi.Router) { r.Post("/{customer}/charges", chiCharge) }))
			return r
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			server := b.serve(router(b.idem))
			if got := b.ask(server, "POST", "/customers/busy/charges", "1"); !strings.HasPrefix(got, "500 ") || !strings.Contains(b.reports(), "another run") {
				t.Errorf("got %s, reported %s", got, b.reports())
			}
			b.charges(0)
			for _, want := range []string{"201 charge 1 of busy", "201 charge 1 of busy true"} {
				if got := b.ask(server, "POST", "/customers/busy/charges", "1"); got != want {
					t.Errorf("got %s, want %s", got, want)
				}
			}
			b.charges(1)
		})
	}
}

// A ginWriter lets a gin handler write to another ResponseWriter.
type ginWriter struct {
	gin.ResponseWriter
	w http.ResponseWriter
}

func (g ginWriter) Header() http.Header         { return g.w.Header() }
func (g ginWriter) Write(p []byte) (int, error) { return g.w.Write(p) }
func (g ginWriter) WriteHeader(status int)      { g.w.WriteHeader(status) }

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
