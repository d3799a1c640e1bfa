package idemhttp_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/idemhttp"
)

func TestHandlerRunsAgainWhateverFollowsTheConflict(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	if _, err := shared.pool.Exec(t.Context(), `create function raise(code text) returns bool language plpgsql as
			$$ begin raise exception 'x' using errcode = code; end $$`); err != nil {
		t.Fatal(err)
	}
	for name, follows := range map[string]func(_ context.Context, tx, ended pgx.Tx) error{
		"another statement, which PostgreSQL refuses": func(ctx context.Context, tx, _ pgx.Tx) error {
			_, err := tx.Exec(ctx, "select 1")
			return err
		},
		"an error of pgx": func(ctx context.Context, tx, _ pgx.Tx) error {
			return tx.QueryRow(ctx, "select $1::int", "no number").Scan(new(int))
		},
		"a batch": func(ctx context.Context, tx, _ pgx.Tx) error {
			var batch pgx.Batch
			batch.Queue("select 1")
			return tx.SendBatch(ctx, &batch).Close()
		},
		"a savepoint": func(ctx context.Context, tx, _ pgx.Tx) error {
			_, err := tx.Begin(ctx)
			return err
		},
		"a prepared statement": func(ctx context.Context, tx, _ pgx.Tx) error {
			_, err := tx.Prepare(ctx, "", "select 1")
			return err
		},
		"COPY": func(ctx context.Context, tx, _ pgx.Tx) error {
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"charges"}, []string{"amount"}, pgx.CopyFromRows(nil))
			return err
		},
		"a savepoint that has ended": func(ctx context.Context, _, ended pgx.Tx) error {
			_, err := ended.Exec(ctx, "select 1")
			return err
		},
		"the end of a savepoint that has ended": func(ctx context.Context, _, ended pgx.Tx) error {
			return ended.Commit(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
				tx := idemhttp.Tx(r.Context())
				if b.runs.Load() == 1 {
					ended, err := tx.Begin(r.Context())
					if err != nil || ended.Rollback(r.Context()) != nil {
						t.Error("no savepoint")
					}
					if _, err := tx.Exec(r.Context(), "select raise('40001')"); err == nil {
						t.Error("no conflict")
					}
					if err := follows(r.Context(), tx, ended); err == nil {
						t.Error("what followed did not fail")
					}
					w.WriteHeader(500)
					return
				}
				created(w, r)
			})
			b.post(server, "k").is(t, 201, `{"id": 1}`, false)
			b.ran(2)
			b.effects(1)
		})
	}
}

func TestErrorThatIsReportedIsTheCauseAndNotItsEcho(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
		for _, sql := range []string{"select 1/0", "select 1"} {
			_, _ = idemhttp.Tx(r.Context()).Exec(r.Context(), sql)
		}
		created(w, r)
	})
	b.post(server, "k").isProblem(t, 500, "failed")
	if !strings.Contains(b.reports(), "22012") || strings.Contains(b.reports(), "25P02") {
		t.Errorf("reported %s", b.reports())
	}
}

func TestErrorAfterOneThatWasUndoneIsTheOneThatCounts(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for first, second := range map[string]string{"22012": "40001", "23505": "22023"} {
		t.Run(first+" and then "+second, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			raise := func(ctx context.Context, tx pgx.Tx, code string) error {
				_, err := tx.Exec(ctx, fmt.Sprintf(`do $$ begin raise exception 'x' using errcode = '%s'; end $$`, code))
				return err
			}
			server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
				tx := idemhttp.Tx(r.Context())
				if b.runs.Load() == 1 {
					_ = pgx.BeginFunc(r.Context(), tx, func(tx pgx.Tx) error { return raise(r.Context(), tx, first) })
					_ = raise(r.Context(), tx, second)
				}
				created(w, r)
			})
			if second == "40001" {
				b.post(server, "k").is(t, 201, `{"id": 1}`, false)
				b.ran(2)
				return
			}
			b.post(server, "k").isProblem(t, 500, "failed")
			if !strings.Contains(b.reports(), second) {
				t.Errorf("reported %s", b.reports())
			}
		})
	}
}

// What fails at COMMIT is answered by what it is: 503 if it passes.
func TestStatusOfAFailedCommitSaysWhetherItPasses(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for code, want := range map[string]int{
		"40003": 503, "40P01": 503, "53100": 503, "53200": 503, "53300": 503, "53400": 503, "57014": 503, "57P05": 503, "08006": 503,
		"22012": 500, "23503": 500, "23514": 500, "42501": 500, "25006": 500, "54000": 500, "P0001": 500, "XX000": 500,
	} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
				_, err := idemhttp.Tx(r.Context()).Exec(r.Context(), fmt.Sprintf(`do $$ begin raise exception 'x' using errcode = '%s'; end $$`, code))
				if err == nil {
					t.Error("no error")
				}
				created(w, r)
			})
			name := map[int]string{500: "failed", 503: "unavailable"}[want]
			b.post(server, "k").isProblem(t, want, name)
			b.effects(0)
		})
	}
}

func TestWhatAHandlerLeavesBehindHasNoTransaction(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ended, asked := make(chan bool), make(chan bool)
	var errs []error
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
		ctx, tx := context.WithoutCancel(r.Context()), idemhttp.Tx(r.Context())
		rows, err := tx.Query(ctx, "select 1")
		if err != nil {
			t.Error(err)
		}
		rows.Close()
		var queued pgx.Batch
		queued.Queue("select 1")
		batch := tx.SendBatch(ctx, &queued)
		if err := batch.Close(); err != nil {
			t.Error(err)
		}
		sp, err := tx.Begin(ctx)
		if err != nil {
			t.Error(err)
		}
		row := tx.QueryRow(ctx, "select 1")
		if err := row.Scan(new(int)); err != nil {
			t.Error(err)
		}
		go func() {
			defer close(asked)
			<-ended
			_, exec := tx.Exec(ctx, "insert into charges values ('late', 1)")
			_, query := tx.Query(ctx, "select 1")
			_, copied := tx.CopyFrom(ctx, pgx.Identifier{"charges"}, []string{"amount"}, pgx.CopyFromRows(nil))
			_, prepared := tx.Prepare(ctx, "", "select 1")
			_, begun := tx.Begin(ctx)
			_, nested := sp.Exec(ctx, "select 1")
			_, values := rows.Values()
			_, batched := batch.Exec()
			_, batchQuery := batch.Query()
			errs = []error{
				exec, query, copied, prepared, begun, nested, values, batched, batchQuery,
				tx.QueryRow(ctx, "select 1").Scan(new(int)), tx.SendBatch(ctx, &queued).Close(),
				tx.Commit(ctx), tx.Rollback(ctx), sp.Commit(ctx), sp.Rollback(ctx),
				rows.Scan(new(int)), rows.Err(), row.Scan(new(int)), batch.Close(), batch.QueryRow().Scan(new(int)),
			}
			if rows.Next() {
				t.Error("there is a row")
			}
			rows.Close()
		}()
		created(w, r)
	})
	b.post(server, "k").is(t, 201, `{"id": 1}`, false)
	close(ended)
	<-asked
	for i, err := range errs {
		if err == nil || !strings.Contains(err.Error(), pgx.ErrTxClosed.Error()) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// For go test -race: the connection is not used by two at once.
func TestHandlerThatATimeLimitLeavesBehindDoesNotShareTheConnection(t *testing.T) {
	t.Parallel()
	b := setup(t)
	left := make(chan bool, 20)
	server := b.serve(b.middleware(idemhttp.Config{}).Handler(http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { left <- true }()
		ctx, tx := context.WithoutCancel(r.Context()), idemhttp.Tx(r.Context())
		for range 200 {
			_, _ = tx.Exec(ctx, "select 1")
			rows, err := tx.Query(ctx, "select generate_series(1, 3)")
			for err == nil && rows.Next() {
				_ = rows.Scan(new(int))
			}
			rows.Close()
		}
		io.WriteString(w, "in time")
	}), 3*time.Millisecond, "too slow")))
	slow := 0
	for i := range 20 {
		got := b.post(server, fmt.Sprint(i))
		if got.StatusCode == 503 && got.body == "too slow" {
			slow++
		} else if got.StatusCode != 200 || got.body != "in time" {
			t.Errorf("got %d %q", got.StatusCode, got.body)
		}
		<-left
	}
	if slow == 0 {
		t.Error("no handler was left behind: the test shows nothing")
	}
}

func TestTwoStatementsAtOnceAreAnErrorAndNoDeadlock(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, r *http.Request) {
		tx := idemhttp.Tx(r.Context())
		_, err := tx.CopyFrom(r.Context(), pgx.Identifier{"charges"}, []string{"account", "amount"},
			pgx.CopyFromFunc(func() ([]any, error) {
				_, err := tx.Exec(r.Context(), "select 1")
				return nil, err
			}))
		if err == nil || !strings.Contains(err.Error(), "conn busy") {
			t.Errorf("got %v", err)
		}
		w.WriteHeader(500)
	})
	b.post(server, "k")
}
