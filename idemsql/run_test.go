package idemsql_test

import (
	"context"
	"database/sql"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemsql"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestFunctionRunsOnceAndIsReplayed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, _, err := b.do(t.Context(), charge)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if id, replayed, err := b.do(t.Context(), charge); id != first || !replayed || err != nil {
			t.Errorf("%d, replayed %v, %v; want a replay of %d", id, replayed, err, first)
		}
	}
	b.charges(1)
}

func TestFuncServesDoTxToo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for i := range 2 {
		err := pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error {
			_, replayed, err := idempotency.DoTx(t.Context(), b.store, tx, b.key, idemsql.Func(charge))
			if replayed != (i == 1) {
				t.Errorf("call %d: replayed %v", i, replayed)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	b.charges(1)
}

func TestErrorOfTheFunctionComesBackUnchangedAndLeavesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	own := errors.New("declined")
	_, _, err := b.do(t.Context(), func(ctx context.Context, tx *sql.Tx) (int64, error) {
		id, _ := charge(ctx, tx)
		return id, own
	})
	if err != own {
		t.Errorf("got %v", err)
	}
	b.charges(0)
	b.executes(charge)
}

func TestCommitIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, _, err := b.do(t.Context(), func(ctx context.Context, tx *sql.Tx) (int64, error) {
		id, err := charge(ctx, tx)
		if err != nil {
			return 0, err
		}
		return id, tx.Commit()
	})
	if err == nil || !strings.Contains(err.Error(), "returns nil for its writes to be kept") {
		t.Errorf("got %v", err)
	}
	b.charges(0)
	b.records(0)
}

// A function that ignores the refusal has what one with a pgx.Tx has: its nil
// error commits.
func TestIgnoredRefusalOfCommitCommitsWithTheRecord(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.executes(func(ctx context.Context, tx *sql.Tx) (int64, error) {
		id, err := charge(ctx, tx)
		_ = tx.Commit()
		if _, err := charge(ctx, tx); !errors.Is(err, sql.ErrTxDone) {
			t.Errorf("after the refused Commit: %v", err)
		}
		return id, err
	})
	b.charges(1)
}

func TestDeferredRollbackIsHarmlessAndRollbackSaysThatItDidNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.executes(func(ctx context.Context, tx *sql.Tx) (int64, error) {
		defer func() {
			if err := tx.Rollback(); err == nil {
				t.Error("Rollback reported success")
			}
		}()
		return charge(ctx, tx)
	})
	b.charges(1)
}

func TestSqlTxIsDoneAfterTheFunction(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var kept *sql.Tx
	var rows *sql.Rows
	var stmt *sql.Stmt
	b.executes(func(ctx context.Context, tx *sql.Tx) (int64, error) {
		var err, err2 error
		kept = tx
		rows, err = tx.QueryContext(ctx, "select generate_series(1, 10)")
		stmt, err2 = tx.PrepareContext(ctx, "select 1")
		return 1, errors.Join(err, err2)
	})
	_, err := charge(t.Context(), kept)
	b.wantErr(err, sql.ErrTxDone)
	if _, err = stmt.ExecContext(t.Context()); err == nil {
		t.Error("a statement of the function can still be executed")
	}
	b.wantErr(kept.Commit(), sql.ErrTxDone)
	if rows.Next() {
		t.Error("rows of the function can still be read")
	}
	b.charges(0)
}

func TestRowsLeftOpenAreClosed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.executes(func(ctx context.Context, tx *sql.Tx) (int64, error) {
		if _, err := charge(ctx, tx); err != nil {
			return 0, err
		}
		rows, err := tx.QueryContext(ctx, "select generate_series(1, 100000)")
		if err == nil && !rows.Next() {
			err = errors.New("no rows")
		}
		return 1, err
	})
	b.charges(1)
}

func TestErrorInRowsLeftOpenFailsTheCallWithThatError(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, _, err := b.do(t.Context(), func(ctx context.Context, tx *sql.Tx) (int64, error) {
		if _, err := charge(ctx, tx); err != nil {
			return 0, err
		}
		_, err := tx.QueryContext(ctx, "select 1/(5000-g) from generate_series(1, 100000) g")
		return 1, err
	})
	b.wantErr(err, pgx.ErrTxCommitRollback)
	if !strings.Contains(err.Error(), "division by zero") {
		t.Errorf("got %v", err)
	}
	b.charges(0)
	b.records(0)
}

func TestErrorInRowsLeftOpenInASavepointThatIsUndoneIsNone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.executes(func(ctx context.Context, tx *sql.Tx) (int64, error) {
		_, err := tx.ExecContext(ctx, "savepoint s")
		if err != nil {
			return 0, err
		}
		rows, err := tx.QueryContext(ctx, "select 1/(5000-g) from generate_series(1, 100000) g")
		if err != nil {
			return 0, err
		}
		if rows.Close() == nil {
			t.Error("Close has hidden the error")
		}
		if _, err := tx.ExecContext(ctx, "rollback to savepoint s"); err != nil {
			return 0, err
		}
		return charge(ctx, tx)
	})
	b.charges(1)
}

func TestConflictInRowsLeftOpenRunsAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec(`create function conflict(g int) returns int language plpgsql as
		$$ begin if g = 5000 then raise exception using errcode = '40001'; end if; return g; end $$`)
	runs := 0
	b.executes(func(ctx context.Context, tx *sql.Tx) (int64, error) {
		runs++
		if runs == 1 {
			_, err := tx.QueryContext(ctx, "select conflict(g) from generate_series(1, 100000) g")
			return 0, err
		}
		return charge(ctx, tx)
	})
	if runs != 2 {
		t.Errorf("%d runs", runs)
	}
	b.charges(1)
}

func TestSwallowedSQLErrorIsNotACommit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.fails(func(ctx context.Context, tx *sql.Tx) (int64, error) {
		id, err := charge(ctx, tx)
		_, _ = tx.ExecContext(ctx, "select 1/0")
		return id, err
	}, pgx.ErrTxCommitRollback)
}

func TestDeferredConstraintIsTheErrorOfTheCall(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, _, err := b.do(t.Context(), func(ctx context.Context, tx *sql.Tx) (int64, error) {
		result, err := tx.ExecContext(ctx, "insert into charges (account, n) values ('a', 1), ('b', 1)")
		if err != nil {
			return 0, err
		}
		return result.RowsAffected()
	})
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != "23505" {
		t.Errorf("got %v", err)
	}
	b.charges(0)
}

func TestCommitSentAsSQLIsFound(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, _, err := b.do(t.Context(), func(ctx context.Context, tx *sql.Tx) (int64, error) {
		id, err := charge(ctx, tx)
		if err == nil {
			_, err = tx.ExecContext(ctx, "commit")
		}
		return id, err
	})
	b.wantErr(err, idempotency.ErrOutcomeUnknown)
}

func TestCancelledContextDoesNotEndTheSqlTx(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, _, err := b.do(ctx, func(ctx context.Context, tx *sql.Tx) (int64, error) {
		if _, err := charge(ctx, tx); err != nil {
			return 0, err
		}
		cancel()
		time.Sleep(20 * time.Millisecond) // for a goroutine of database/sql, if there were one to end it
		_, err := tx.Exec("insert into charges (account) values ('without a context')")
		if err != nil {
			return 0, err
		}
		return charge(context.WithoutCancel(ctx), tx)
	})
	if err != nil {
		t.Fatal(err)
	}
	b.replays()
	b.charges(3)
}

func TestCancelledInAStatementFailsTheCallAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, _, err := b.do(ctx, func(ctx context.Context, tx *sql.Tx) (int64, error) {
		if _, err := charge(ctx, tx); err != nil {
			return 0, err
		}
		time.AfterFunc(50*time.Millisecond, cancel)
		_, err := tx.ExecContext(ctx, "select pg_sleep(600)")
		return 0, err
	})
	b.wantErr(err, context.Canceled)
	b.charges(0)
	b.executes(charge)
}

// The end of the statement's own context closes the connection. To run again would
// not help.
func TestStatementCancelledInRowsLeftOpenIsNotALostConnection(t *testing.T) {
	t.Parallel()
	b := setup(t)
	runs := 0
	_, _, err := b.do(t.Context(), func(ctx context.Context, tx *sql.Tx) (int64, error) {
		runs++
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		rows, err := tx.QueryContext(ctx, "select case when g > 5000 then pg_sleep(600)::text end from generate_series(1, 100000) g")
		if err != nil {
			return 0, err
		}
		if !rows.Next() {
			t.Error("no rows")
		}
		cancel()
		for rows.Next() {
		}
		return 1, nil // rows.Err() is not looked at
	})
	b.wantErr(err, context.Canceled)
	if runs != 1 {
		t.Errorf("%d runs", runs)
	}
}

type traceKey struct{}

// tracer notes what the contexts of statements carry.
type tracer struct{ seen atomic.Value }

func (tr *tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if data.SQL == "select 'traced'" {
		tr.seen.Store(ctx.Value(traceKey{}))
	}
	return ctx
}

func (*tracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func TestStatementWithoutAContextHasTheValuesOfTheFunctions(t *testing.T) {
	t.Parallel()
	tr := new(tracer)
	b := setup(t, func(cfg *pgxpool.Config) { cfg.ConnConfig.Tracer = tr })
	_, _, err := b.do(context.WithValue(t.Context(), traceKey{}, "the call's"), func(_ context.Context, tx *sql.Tx) (int64, error) {
		_, err := tx.Exec("select 'traced'")
		return 0, err
	})
	if err != nil || tr.seen.Load() != "the call's" {
		t.Errorf("%v, %v", err, tr.seen.Load())
	}
}

func leaveRowsOpen(t *testing.T, ctx context.Context, tx *sql.Tx) {
	t.Helper()
	if _, err := charge(ctx, tx); err != nil {
		t.Error(err)
	}
	if _, err := tx.QueryContext(ctx, "select generate_series(1, 100000)"); err != nil {
		t.Error(err)
	}
}

func TestPanicWithRowsOpenRollsBackAndComesThrough(t *testing.T) {
	t.Parallel()
	b := setup(t)
	func() {
		defer func() {
			if v := recover(); v != "boom" {
				t.Errorf("recovered %v", v)
			}
		}()
		_, _, _ = b.do(t.Context(), func(ctx context.Context, tx *sql.Tx) (int64, error) {
			leaveRowsOpen(t, ctx, tx)
			panic("boom")
		})
	}()
	b.charges(0)
	b.executes(charge)
}

func TestGoexitWithRowsOpenRollsBack(t *testing.T) {
	t.Parallel()
	b := setup(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _, _ = b.do(t.Context(), func(ctx context.Context, tx *sql.Tx) (int64, error) {
			leaveRowsOpen(t, ctx, tx)
			runtime.Goexit()
			return 0, nil
		})
	}()
	<-done
	b.charges(0)
	b.executes(charge)
}

func TestSerializationFailureRunsAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	runs := 0
	b.executes(func(ctx context.Context, tx *sql.Tx) (int64, error) {
		runs++
		id, err := charge(ctx, tx)
		if err == nil && runs == 1 {
			_, err = tx.ExecContext(ctx, "do $$ begin raise exception using errcode = '40001'; end $$")
		}
		return id, err
	})
	if runs != 2 {
		t.Errorf("%d runs", runs)
	}
	b.charges(1)
}

// lose ends the connection of tx from outside.
func (b *bundle) lose(ctx context.Context, tx *sql.Tx) error {
	var pid int
	if err := tx.QueryRowContext(ctx, "select pg_backend_pid()").Scan(&pid); err != nil {
		return err
	}
	b.exec("select pg_terminate_backend($1, 10000)", pid)
	return nil
}

func TestLostConnectionRunsAgain(t *testing.T) {
	for name, statement := range map[string]func(context.Context, *sql.Tx) error{
		"exec":     func(ctx context.Context, tx *sql.Tx) error { _, err := tx.ExecContext(ctx, "select 1"); return err },
		"query":    func(ctx context.Context, tx *sql.Tx) error { _, err := charge(ctx, tx); return err },
		"prepared": func(ctx context.Context, tx *sql.Tx) error { return prepared(ctx, tx) },
		"twice": func(ctx context.Context, tx *sql.Tx) error {
			_, _ = charge(ctx, tx)
			_, err := charge(ctx, tx)
			return err
		},
		"swallowed": func(ctx context.Context, tx *sql.Tx) error { _, _ = charge(ctx, tx); return nil },
		"unnoticed": func(context.Context, *sql.Tx) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			runs := 0
			b.executes(func(ctx context.Context, tx *sql.Tx) (int64, error) {
				runs++
				id, err := charge(ctx, tx)
				if err != nil || runs > 1 {
					return id, err
				}
				if err := b.lose(ctx, tx); err != nil {
					return 0, err
				}
				return id, statement(ctx, tx)
			})
			if runs != 2 {
				t.Errorf("%d runs", runs)
			}
			b.charges(1)
		})
	}
}

func prepared(ctx context.Context, tx *sql.Tx) error {
	stmt, err := tx.PrepareContext(ctx, "insert into charges (account) values ($1)")
	if err != nil {
		return err
	}
	_, err = stmt.ExecContext(ctx, "a")
	return err
}

func TestLostAnswerToCommitIsFoundOut(t *testing.T) {
	t.Parallel()
	b := setup(t)
	pool, proxy := b.through()
	store := idempotency.New(pool)
	var cut atomic.Bool
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if m.FromServer && m.Tag == "COMMIT" && cut.CompareAndSwap(false, true) {
			return pgproxy.Drop
		}
		return pgproxy.Pass
	})
	id, _, err := idempotency.Do(t.Context(), store, b.key, idemsql.Func(charge))
	if id == 0 || err != nil || !cut.Load() {
		t.Errorf("%d, %v, cut %v", id, err, cut.Load())
	}
	b.charges(1)
}

// Both functions have a transaction of their own: no *sql.Tx gets the connection
// of another one.
func TestParallelCallsDoNotMeet(t *testing.T) {
	t.Parallel()
	b := setup(t, pgtest.MaxConns(8))
	errs := make(chan error)
	for i := range 64 {
		go func() {
			key := b.key
			key.ID = string(rune('a' + i))
			id, _, err := idempotency.Do(t.Context(), b.store, key, idemsql.Func(func(ctx context.Context, tx *sql.Tx) (int64, error) {
				var before, after int64
				err := tx.QueryRowContext(ctx, "select txid_current()").Scan(&before)
				if _, chargeErr := charge(ctx, tx); chargeErr != nil {
					return 0, chargeErr
				}
				err = errors.Join(err, tx.QueryRowContext(ctx, "select txid_current()").Scan(&after))
				if before != after {
					err = errors.New("another transaction")
				}
				return before, err
			}))
			if err == nil && id == 0 {
				err = errors.New("no transaction")
			}
			errs <- err
		}()
	}
	for range 64 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	b.charges(64)
}

// A pgx.Tx of the caller's own has no guard of Do.
func TestSqlTxOfRunEndsNoTransaction(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, end := range map[string]func(*sql.Tx) error{
		"Commit":   (*sql.Tx).Commit,
		"Rollback": (*sql.Tx).Rollback,
		"nothing":  func(*sql.Tx) error { return errRollBack },
	} {
		tx, err := b.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		if _, err := idemsql.Run(t.Context(), tx, func(sqlTx *sql.Tx) (int64, error) {
			id, err := charge(t.Context(), sqlTx)
			if end(sqlTx) == nil {
				t.Errorf("%s reported success", name)
			}
			return id, err
		}); err != nil {
			t.Error(err)
		}
		b.charges(0) // it is not committed
		var inside int
		if err := tx.QueryRow(t.Context(), "select count(*) from charges").Scan(&inside); err != nil || inside != 1 {
			t.Errorf("%s: %d charges in the transaction, %v", name, inside, err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
