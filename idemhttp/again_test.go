package idemhttp_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/pgidem/idempotency/idemhttp"
)

const conflict = `do $$ begin raise exception 'x' using errcode = '40001'; end $$`

// flaky charges, fails the first time for a conflict, and answers.
func (b *bundle) flaky(w http.ResponseWriter, r *http.Request) {
	tx := idemhttp.Tx(r.Context())
	b.charge(r.Context(), tx)
	if b.runs.Load() == 1 {
		if _, err := tx.Exec(r.Context(), conflict); err == nil {
			b.Error("no conflict")
		}
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	created(w, r)
}

func TestRunThatIsNotWholeFailsAndTheRetryExecutes(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	notFound := http.NotFoundHandler().ServeHTTP
	audit := func(w http.ResponseWriter, r *http.Request) bool {
		_, err := idemhttp.Tx(r.Context()).Exec(r.Context(), "select 1")
		return err == nil
	}
	for name, again := range map[string]http.HandlerFunc{ // what a used-up router does
		"nothing":                 func(http.ResponseWriter, *http.Request) {},
		"404":                     notFound,
		"a page for everything":   func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>") },
		"nothing, but audits":     func(w http.ResponseWriter, r *http.Request) { audit(w, r) },
		"404, but audits":         func(w http.ResponseWriter, r *http.Request) { audit(w, r); notFound(w, r) },
		"405, but audits":         func(w http.ResponseWriter, r *http.Request) { audit(w, r); w.WriteHeader(405) },
		"a 503 of its own making": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) },
	} {
		t.Run("the second run does "+name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			runs := 0
			server := b.serve(b.middleware(idemhttp.Config{}).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if runs++; runs == 2 {
					again(w, r)
					return
				}
				b.flaky(w, r)
			})))
			b.post(server, "k").isProblem(t, 500, "failed")
			b.effects(0)
			if !strings.Contains(b.reports(), "another run") {
				t.Errorf("reported %s", b.reports())
			}
			b.post(server, "k").is(t, 201, `{"id": 1}`, false)
			b.post(server, "k").is(t, 201, `{"id": 1}`, true)
			b.effects(1)
		})
	}
}

func TestRunThatIsNotWholeFailsAlsoWhereNothingUsesTheTransaction(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]http.HandlerFunc{
		"nothing":     func(http.ResponseWriter, *http.Request) {},
		"404":         http.NotFoundHandler().ServeHTTP,
		"without end": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(201) },
	} {
		t.Run("the second run does "+name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			runs := 0
			server := b.serve(b.middleware(idemhttp.Config{}).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if runs++; runs == 2 {
					again(w, r)
					return
				}
				if runs == 1 { // the connection is lost: Do runs the handler again
					_, err := b.pool.Exec(r.Context(), `select pg_terminate_backend(pid) from pg_stat_activity
						where datname = current_database() and pid <> pg_backend_pid() and state = 'idle in transaction'`)
					if err != nil {
						t.Error(err)
					}
				}
				created(w, r)
			})))
			b.post(server, "k").isProblem(t, 500, "failed")
			b.post(server, "k").is(t, 201, `{"id": 1}`, false)
			b.post(server, "k").is(t, 201, `{"id": 1}`, true)
		})
	}
}

func TestSecondRunMayComeToAnotherEnd(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for name, end := range map[string]struct {
		handler http.HandlerFunc
		status  int
		body    string
	}{
		"a refusal":                {status(422), 422, "status 422"},
		"no body":                  {status(204), 204, ""},
		"a 404 as in the first":    {status(404), 404, "status 404"},
		"nothing, as in the first": {func(http.ResponseWriter, *http.Request) {}, 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
				var err error
				if b.runs.Load() == 1 {
					_, err = idemhttp.Tx(r.Context()).Exec(r.Context(), conflict)
				}
				if err != nil && !strings.Contains(name, "the first") {
					w.WriteHeader(500)
					return
				}
				end.handler(w, r)
			})
			b.post(server, "k").is(t, end.status, end.body, false)
			b.post(server, "k").is(t, end.status, end.body, true)
			b.ran(2)
			b.effects(1)
		})
	}
}

func TestSecondRunThatTheTimeLimitEndsIsNoFault(t *testing.T) {
	t.Parallel()
	b := setup(t)
	runs := 0
	server := b.serve(limited(500*time.Millisecond, b.middleware(idemhttp.Config{}).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if runs++; runs == 2 {
			<-r.Context().Done()
			return
		}
		b.flaky(w, r)
	}))))
	b.post(server, "k").isProblem(t, 503, "unavailable")
	b.post(server, "k").is(t, 201, `{"id": 1}`, false)
	b.effects(1)
}

func TestHandlerThatAnAdaptorRunsLaterIsReported(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := b.middleware(idemhttp.Config{}).Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	r := httptest.NewRequest("POST", "/", strings.NewReader("{}")) // no server
	r.Header.Set("Idempotency-Key", "k")
	r.Header.Set("Account", b.account)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 500 || !strings.Contains(b.reports(), "adaptor") {
		t.Errorf("got %d, reported %s", w.Code, b.reports())
	}
}

func TestHandlerThatWorksNeedsNoServer(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for name, handler := range map[string]func(*bundle) http.HandlerFunc{
		"writes": func(*bundle) http.HandlerFunc { return status(204) },
		"uses its transaction": func(b *bundle) http.HandlerFunc {
			return b.charging(func(http.ResponseWriter, *http.Request) {}).ServeHTTP
		},
	} {
		b := shared.sub(t)
		r := httptest.NewRequest("POST", "/", strings.NewReader("{}"))
		r.Header.Set("Idempotency-Key", name[:1])
		r.Header.Set("Account", b.account)
		w := httptest.NewRecorder()
		b.middleware(idemhttp.Config{}).Handler(handler(b)).ServeHTTP(w, r)
		if w.Code >= 300 {
			t.Errorf("a handler that %s: %d, reported %s", name, w.Code, b.reports())
		}
	}
}
