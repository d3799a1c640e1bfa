package idemhttp_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemhttp"
)

var discardLog = log.New(io.Discard, "", 0)

// created is the response of most tests.
func created(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Location", "/charges/1")
	w.WriteHeader(http.StatusCreated)
	fmt.Fprint(w, `{"id": 1}`)
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		if code != http.StatusNoContent && code != http.StatusNotModified {
			fmt.Fprintf(w, "status %d", code)
		}
	}
}

func TestRetryGetsTheResponseOfTheFirst(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for _, code := range []int{200, 201, 202, 204, 206, 301, 302, 303, 304, 400, 402, 404, 405, 410, 413, 414, 415, 422, 424, 451} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{}, status(code))
			server.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			want := fmt.Sprintf("status %d", code)
			if code == 204 || code == 304 {
				want = ""
			}
			b.post(server, "k").is(t, code, want, false)
			b.post(server, "k").is(t, code, want, true)
			b.post(server, "k").is(t, code, want, true)
			b.ran(1)
			b.effects(1)
		})
	}
}

func TestResponseThatIsNotFinalIsSentAndNothingIsKept(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for _, code := range []int{307, 308, 401, 403, 406, 407, 408, 409, 411, 412, 416, 417, 421, 423, 425, 426, 428, 429, 431, 500, 501, 502, 503, 504, 599} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{}, status(code))
			server.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			want := fmt.Sprintf("status %d", code)
			b.post(server, "k").is(t, code, want, false)
			b.effects(0)
			b.post(server, "k").is(t, code, want, false)
			b.ran(2)
			b.effects(0)
		})
	}
}

func TestHookDecidesWhatIsFinal(t *testing.T) {
	t.Parallel()
	b := setup(t)
	only := func(code int, _, _ http.Header) bool { return code == 500 || code == 200 }
	server := b.serve(b.middleware(idemhttp.Config{Record: only}).Handler(b.charging(
		func(w http.ResponseWriter, r *http.Request) {
			var code int
			fmt.Sscan(r.URL.Query().Get("status"), &code)
			status(code)(w, r)
		})))
	ask := func(code int, replayed bool) {
		t.Helper()
		b.do(server, "POST", fmt.Sprintf("/?status=%d", code), "", withKey(fmt.Sprint(code))).
			is(t, code, fmt.Sprintf("status %d", code), replayed)
	}
	ask(500, false)
	ask(500, true)
	b.effects(1)
	ask(404, false)
	ask(404, false)
	b.effects(1)
}

func TestParallelDuplicatesExecuteOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	one := b.protected(idemhttp.Config{}, created)
	b.store = b.storeOn(b.pool, idempotency.Config{}) // as another process has it
	two := b.protected(idemhttp.Config{}, created)
	var wg sync.WaitGroup
	for range 20 {
		for _, server := range []string{one.URL, two.URL} {
			wg.Go(func() {
				req, _ := http.NewRequest("POST", server+"/charges", strings.NewReader("{}"))
				req.Header.Set("Account", b.account)
				req.Header.Set("Idempotency-Key", "k")
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 201 || string(body) != `{"id": 1}` {
					t.Errorf("got %d %q", resp.StatusCode, body)
				}
			})
		}
	}
	wg.Wait()
	b.ran(1)
	b.effects(1)
}

func TestKeysOfTwoScopesAreTwoKeys(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "of ", r.Header.Get("Account"))
	})
	for _, replayed := range []bool{false, true} {
		for _, account := range []string{"a", "b"} {
			b.do(server, "POST", "/", "", func(r *http.Request) {
				withKey("k")(r)
				r.Header.Set("Account", account)
			}).is(t, 200, "of "+account, replayed)
		}
	}
	b.effects(2)
}

func TestWithoutAScopeThereIsNoMiddleware(t *testing.T) {
	t.Parallel()
	pool, err := pgxpool.New(t.Context(), "host=127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := idemhttp.New(idempotency.New(pool), idemhttp.Config{}); err == nil || !strings.Contains(err.Error(), "Config.Scope") {
		t.Errorf("got %v", err)
	}
}

func TestRequestOfNobodyIsRefused(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for _, test := range []struct {
		scope  string
		err    error
		status int
		name   string
	}{
		{"", nil, 403, "no-scope"},
		{"", errors.New("no such tenant"), 500, "failed"},
		{strings.Repeat("a", 256), nil, 400, "scope-invalid"},
		{"a\x00b", nil, 400, "scope-invalid"},
		{"a\xff", nil, 400, "scope-invalid"},
	} {
		b := shared.sub(t)
		server := b.protected(idemhttp.Config{Scope: func(*http.Request) (string, error) { return test.scope, test.err }}, created)
		b.post(server, "k").isProblem(t, test.status, test.name)
		if (b.reports() != "[]") != (test.err != nil) || strings.Contains(b.reports(), "tenant") != (test.err != nil) {
			t.Errorf("reported %s", b.reports())
		}
		b.ran(0)
	}
}

func TestOtherRequestWithTheKeyIs422(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, created)
	b.post(server, "k").is(t, 201, `{"id": 1}`, false)
	b.do(server, "POST", "/charges", `{"amount": 11}`, withKey("k")).isProblem(t, 422, "key-reused")
	b.post(server, "k").is(t, 201, `{"id": 1}`, true)
	b.ran(1)
}

func TestDuplicateInFlightIs409AfterWait(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.store = b.storeOn(b.pool, idempotency.Config{Wait: -1})
	running, finish := make(chan bool), make(chan bool)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
		running <- true
		<-finish
		created(w, r)
	})
	first := make(chan answer)
	go func() { first <- b.post(server, "k") }()
	<-running
	b.post(server, "k").isProblem(t, 409, "in-progress")
	finish <- true
	a := <-first
	a.is(t, 201, `{"id": 1}`, false)
	b.post(server, "k").is(t, 201, `{"id": 1}`, true)
	b.ran(1)
}

func TestUnreachableStoreIs503AndTheHandlerIsNotRun(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // nobody listens at its address now
	pool, err := pgxpool.New(t.Context(), "sslmode=disable user=nobody host=127.0.0.1 port="+l.Addr().String()[len("127.0.0.1:"):])
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	b.store = b.storeOn(pool, idempotency.Config{})
	server := b.protected(idemhttp.Config{}, created)
	b.post(server, "k").isProblem(t, 503, "unavailable")
	b.ran(0)
	if !strings.Contains(b.reports(), "connect") {
		t.Errorf("reported %s", b.reports())
	}
}

func TestStoreWithoutItsTableIs503AndTheHandlerIsNotRun(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.store = b.storeOn(b.pool, idempotency.Config{Schema: "elsewhere"})
	server := b.protected(idemhttp.Config{}, created)
	b.post(server, "k").isProblem(t, 503, "unavailable")
	b.ran(0)
	if !strings.Contains(b.reports(), "migrations.Up") {
		t.Errorf("reported %s", b.reports())
	}
}

func TestRecordOfAnotherKindIsNeverASecondExecutionAndNotTheClientsFault(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for name, fingerprint := range map[string]idempotency.Fingerprint{"the same": {}, "another": {1}} {
		t.Run("with "+name+" fingerprint", func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			same := func(*http.Request, []byte) idempotency.Fingerprint { return idempotency.Fingerprint{} }
			server := b.protected(idemhttp.Config{Fingerprint: same}, created)
			_, _, err := idempotency.Do(t.Context(), b.store, idempotency.Key{Scope: b.account, ID: "k", Fingerprint: fingerprint},
				func(context.Context, pgx.Tx) (map[string]int, error) { return map[string]int{"id": 1}, nil })
			if err != nil {
				t.Fatal(err)
			}
			b.post(server, "k").isProblem(t, 500, "stuck")
			b.ran(0)
			if b.reports() == "[]" {
				t.Error("nothing was reported")
			}
		})
	}
}

func TestMiddlewareInsideAnotherPassesThrough(t *testing.T) {
	t.Parallel()
	b := setup(t)
	inner := b.middleware(idemhttp.Config{}).Atomic(func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
		if tx == nil {
			t.Error("no transaction")
		}
		created(w, r)
	})
	server := b.protected(idemhttp.Config{}, inner.ServeHTTP)
	b.post(server, "k").is(t, 201, `{"id": 1}`, false)
	b.post(server, "k").is(t, 201, `{"id": 1}`, true)
	b.ran(1)
	b.effects(1)
}

func TestUnknownOutcomeIs503AndNeverASecondExecution(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
		// The transaction is gone, and nobody can say what became of the key.
		if _, err := idemhttp.Tx(r.Context()).Exec(r.Context(), "commit"); err != nil {
			t.Error(err)
		}
		created(w, r)
	})
	b.post(server, "k").isProblem(t, 503, "outcome-unknown")
	for range 2 {
		b.post(server, "k").isProblem(t, 500, "stuck")
	}
	b.ran(1)
	b.effects(1)
}

func TestCommitThatFailsIsNeverASuccess(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if _, err := b.pool.Exec(t.Context(), `alter table charges add unique (amount) deferrable initially deferred`); err != nil {
		t.Fatal(err)
	}
	server := b.protected(idemhttp.Config{}, created)
	b.post(server, "k1").is(t, 201, `{"id": 1}`, false)
	b.post(server, "k2").isProblem(t, 500, "failed")
	b.effects(1)
	if !strings.Contains(b.reports(), "23505") {
		t.Errorf("reported %s", b.reports())
	}
}

func TestSuccessAfterAFailedStatementIsAnError(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
		_, _ = idemhttp.Tx(r.Context()).Exec(r.Context(), "select 1/0")
		created(w, r)
	})
	b.post(server, "k").isProblem(t, 500, "failed")
	b.effects(0)
	if !strings.Contains(b.reports(), "22012") {
		t.Errorf("reported %s", b.reports())
	}
}

// failsOnce is a handler whose transaction fails the first time, in one of the
// ways that a transaction is used; it answers as handlers do.
func failsOnce(b *bundle, code int, use func(ctx context.Context, tx pgx.Tx, sql string) error, sql string) http.Handler {
	return b.charging(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || string(body) != `{"amount": 10}` {
			b.Errorf("run %d read %q, %v", b.runs.Load(), body, err)
		}
		if r.Header.Get("Mark") != "" || w.Header().Get("Mark") != "" {
			b.Error("a run found what an earlier one left")
		}
		r.Header.Set("Mark", "1")
		w.Header().Set("Mark", "1")
		if b.runs.Load() == 1 {
			if err := use(r.Context(), idemhttp.Tx(r.Context()), sql); err == nil {
				b.Error("the statement did not fail")
			}
			w.WriteHeader(code)
			return
		}
		created(w, r)
	})
}

func TestHandlerRunsAgainAfterAConflict(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	_, err := shared.pool.Exec(t.Context(), `
		create function conflict() returns bool language plpgsql as
			$$ begin raise exception 'x' using errcode = '40001'; end $$;
		create table conflicting (n int check (conflict()))`)
	if err != nil {
		t.Fatal(err)
	}
	uses := map[string]func(context.Context, pgx.Tx, string) error{
		"Exec": func(ctx context.Context, tx pgx.Tx, sql string) error {
			_, err := tx.Exec(ctx, sql)
			return err
		},
		"Query": func(ctx context.Context, tx pgx.Tx, sql string) error {
			rows, _ := tx.Query(ctx, sql)
			_, err := pgx.CollectRows(rows, pgx.RowTo[int])
			return err
		},
		"Query and Close": func(ctx context.Context, tx pgx.Tx, sql string) error {
			rows, _ := tx.Query(ctx, sql)
			rows.Close()
			return errors.New("unread")
		},
		"QueryRow": func(ctx context.Context, tx pgx.Tx, sql string) error {
			return tx.QueryRow(ctx, sql).Scan(new(int))
		},
		"SendBatch": func(ctx context.Context, tx pgx.Tx, sql string) error {
			var batch pgx.Batch
			batch.Queue(sql)
			return tx.SendBatch(ctx, &batch).Close()
		},
		"SendBatch, Exec": func(ctx context.Context, tx pgx.Tx, sql string) error {
			var batch pgx.Batch
			batch.Queue(sql)
			results := tx.SendBatch(ctx, &batch)
			defer results.Close()
			_, err := results.Exec()
			return err
		},
		"CopyFrom": func(ctx context.Context, tx pgx.Tx, _ string) error {
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"conflicting"}, []string{"n"}, pgx.CopyFromRows([][]any{{int32(1)}}))
			return err
		},
		"savepoint": func(ctx context.Context, tx pgx.Tx, sql string) error {
			sp, err := tx.Begin(ctx)
			if err != nil {
				return err
			}
			_, err = sp.Exec(ctx, sql)
			return err
		},
	}
	for name, use := range uses {
		for _, code := range []int{500, 409, 400} {
			t.Run(fmt.Sprintf("%s, answered with %d", name, code), func(t *testing.T) {
				t.Parallel()
				b := shared.sub(t)
				server := b.serve(b.middleware(idemhttp.Config{}).Handler(failsOnce(b, code, use, `select 1 where conflict()`)))
				b.post(server, "k").is(t, 201, `{"id": 1}`, false)
				b.ran(2)
				b.effects(1)
				b.post(server, "k").is(t, 201, `{"id": 1}`, true)
			})
		}
	}
}

func TestHandlerRunsAgainAfterALostConnection(t *testing.T) {
	t.Parallel()
	b := setup(t)
	use := func(ctx context.Context, tx pgx.Tx, sql string) error {
		_, err := tx.Exec(ctx, sql)
		return err
	}
	server := b.serve(b.middleware(idemhttp.Config{}).Handler(failsOnce(b, 500, use, `select pg_terminate_backend(pg_backend_pid())`)))
	b.post(server, "k").is(t, 201, `{"id": 1}`, false)
	b.ran(2)
	b.effects(1)
}

func TestConflictThatNeverEndsIsTheHandlersOwnResponse(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
		_, _ = idemhttp.Tx(r.Context()).Exec(r.Context(), `do $$ begin raise exception 'x' using errcode = '40001'; end $$`)
		status(503)(w, r)
	})
	b.post(server, "k").is(t, 503, "status 503", false)
	b.ran(10)
	b.effects(0)
}

func TestErrorOfTheHandlersOwnIsNotRunAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
		_, _ = idemhttp.Tx(r.Context()).Exec(r.Context(), "select 1/0")
		status(500)(w, r)
	})
	b.post(server, "k").is(t, 500, "status 500", false)
	b.ran(1)
	b.effects(0)
}

func TestHandlerCannotEndTheTransaction(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
		tx := idemhttp.Tx(r.Context())
		if tx.Commit(r.Context()) == nil || tx.Rollback(r.Context()) == nil {
			t.Error("the transaction was ended")
		}
		status(500)(w, r)
	})
	b.post(server, "k").is(t, 500, "status 500", false)
	b.effects(0)
}

func TestHandlersSavepointIsItsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
		tx := idemhttp.Tx(r.Context())
		for _, err := range []error{nil, errors.New("declined")} {
			_ = pgx.BeginFunc(r.Context(), tx, func(tx pgx.Tx) error {
				b.charge(r.Context(), tx)
				return err
			})
		}
		status(402)(w, r)
	})
	b.post(server, "k").is(t, 402, "status 402", false)
	b.effects(2) // the handler's own and the released savepoint's
}

func TestPanicLeavesNothingAndReachesTheServer(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for _, reason := range []any{http.ErrAbortHandler, "oops"} {
		t.Run(fmt.Sprint(reason), func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
				created(w, r)
				if b.runs.Load() == 1 {
					panic(reason)
				}
			})
			got, err := b.try(server, "POST", "/charges", `{"amount": 10}`, withKey("k"))
			if err == nil {
				t.Errorf("got %d %q, want a connection that ended", got.StatusCode, got.body)
			}
			b.effects(0)
			b.post(server, "k").is(t, 201, `{"id": 1}`, false)
			b.effects(1)
		})
	}
}

func TestClientThatDisconnectsRollsBack(t *testing.T) {
	t.Parallel()
	for _, writes := range []string{"nothing", "a success"} {
		t.Run("the handler then writes "+writes, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			running, ended := make(chan bool), make(chan bool)
			server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
				if b.runs.Load() > 1 {
					created(w, r)
					return
				}
				defer close(ended)
				close(running)
				<-r.Context().Done()
				if writes != "nothing" {
					created(w, r)
				}
			})
			disconnectOnce(b, server.URL, running)
			<-ended
			b.post(server, "k").is(t, 201, `{"id": 1}`, false)
			b.ran(2)
			b.effects(1)
			if b.reports() != "[]" {
				t.Errorf("reported %s", b.reports())
			}
		})
	}
}

func TestHandlerFinishesForAClientThatDisconnects(t *testing.T) {
	t.Parallel()
	b := setup(t)
	running, gone := make(chan bool), make(chan bool)
	server := b.protected(idemhttp.Config{FinishDisconnected: true}, func(w http.ResponseWriter, r *http.Request) {
		close(running)
		<-gone
		select {
		case <-r.Context().Done():
			t.Error("the handler's context ended")
		case <-time.After(100 * time.Millisecond): // the server notices within this
		}
		created(w, r)
	})
	disconnectOnce(b, server.URL, running)
	close(gone)
	b.post(server, "k").is(t, 201, `{"id": 1}`, true)
	b.ran(1)
	b.effects(1)
}

func TestDuplicateThatDisconnectsStopsWaitingAlsoWhenHandlersFinish(t *testing.T) {
	t.Parallel()
	b := setup(t)
	running, finish := make(chan bool), make(chan bool)
	ended := make(chan bool, 2)
	m := b.middleware(idemhttp.Config{FinishDisconnected: true}).Handler(b.charging(func(w http.ResponseWriter, r *http.Request) {
		close(running)
		<-finish
		created(w, r)
	}))
	server := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { ended <- true }()
		m.ServeHTTP(w, r)
	}))
	first := make(chan answer)
	go func() { first <- b.post(server, "k") }()
	<-running
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := b.try(server, "POST", "/charges", `{"amount": 10}`, func(r *http.Request) {
		withKey("k")(r)
		*r = *r.WithContext(ctx)
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	select {
	case <-ended: // of the duplicate, while the first is running
	case <-time.After(5 * time.Second): // the Store's Wait is 10 s
		t.Error("the duplicate still waits")
	}
	close(finish)
	a := <-first
	a.is(t, 201, `{"id": 1}`, false)
	b.ran(1)
}

// limited ends the context of a request after a while, as outer middleware does.
func limited(limit time.Duration, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeoutCause(r.Context(), limit, errors.New("too slow"))
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func TestHandlerBeyondItsTimeLimitIsEndedWith503(t *testing.T) {
	t.Parallel()
	for _, finish := range []bool{false, true} {
		t.Run(fmt.Sprint("finishing ", finish), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			m := b.middleware(idemhttp.Config{FinishDisconnected: finish})
			server := b.serve(limited(500*time.Millisecond, m.Handler(b.charging(func(_ http.ResponseWriter, r *http.Request) {
				select {
				case <-r.Context().Done():
				case <-time.After(10 * time.Second):
					t.Error("the handler has no time limit")
				}
			}))))
			if got := b.post(server, "k"); got.StatusCode != 503 || got.Header.Get("Retry-After") == "" {
				t.Errorf("got %d %s", got.StatusCode, got.body)
			}
			b.effects(0)
		})
	}
}

// disconnectOnce sends a request and leaves while it is running.
func disconnectOnce(b *bundle, url string, running <-chan bool) {
	b.Helper()
	ctx, leave := context.WithCancel(b.Context())
	req, _ := http.NewRequestWithContext(ctx, "POST", url+"/charges", strings.NewReader(`{"amount": 10}`))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Account", b.account)
	withKey("k")(req)
	go func() {
		<-running
		leave()
	}()
	if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
		resp.Body.Close()
		b.Errorf("got %d", resp.StatusCode)
	}
}

func TestOtherMethodsCanBeIncluded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{Methods: []string{"PUT", "DELETE"}}, created)
	for _, method := range []string{"PUT", "DELETE"} {
		b.do(server, method, "/", "", withKey(method)).is(t, 201, `{"id": 1}`, false)
		b.do(server, method, "/", "", withKey(method)).is(t, 201, `{"id": 1}`, true)
	}
	b.effects(2)
	if _, err := idemhttp.New(b.store, idemhttp.Config{Scope: account, Methods: []string{"GET"}}); err == nil {
		t.Error("GET was included")
	}
}

func TestAtomicIsNeverCalledWithoutATransaction(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.serve(b.middleware(idemhttp.Config{}).Atomic(func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
		b.charge(r.Context(), tx)
		created(w, r)
	}))
	b.post(server, "k").is(t, 201, `{"id": 1}`, false)
	b.post(server, "k").is(t, 201, `{"id": 1}`, true)
	got := b.do(server, "PUT", "/charges", "", withKey("k"))
	got.isProblem(t, 405, "not-protected")
	if got.Header.Get("Allow") != "POST, PATCH" {
		t.Errorf("Allow: %q", got.Header.Get("Allow"))
	}
	b.effects(1)
}

func TestOptionalKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{Optional: true}, created)
	for range 2 {
		b.do(server, "POST", "/charges", "{}", nil).is(t, 201, `{"id": 1}`, false)
	}
	b.effects(2)
	b.post(server, "k").is(t, 201, `{"id": 1}`, false)
	b.post(server, "k").is(t, 201, `{"id": 1}`, true)
	b.effects(3)
	b.post(server, "").isProblem(t, 400, "key-invalid")
}

func TestKeyWhoseRecordGoesBeforeItIsLookedAt(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]int{
		"delete from idempotency_keys":                        201, // it has expired: the key is free
		"alter table idempotency_keys rename to another_name": 503,
	} {
		t.Run(sql, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.store = b.storeOn(b.pool, idempotency.Config{Observe: func(ctx context.Context, e idempotency.Event) {
				if errors.Is(e.Err, idempotency.ErrKeyReused) {
					if _, err := b.pool.Exec(ctx, sql); err != nil {
						t.Error(err)
					}
				}
			}})
			server := b.protected(idemhttp.Config{}, created)
			b.post(server, "k").is(t, 201, `{"id": 1}`, false)
			got := b.do(server, "POST", "/charges", `{"amount": 11}`, withKey("k"))
			if want == 503 {
				got.isProblem(t, 503, "unavailable")
				b.effects(1)
				return
			}
			got.is(t, 201, `{"id": 1}`, false)
			b.effects(2)
		})
	}
}
