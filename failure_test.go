package idempotency_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
)

func TestFailureLeavesNothingAndTheNextCallRuns(t *testing.T) {
	t.Parallel()
	failure := errors.New("no")
	for name, fail := range map[string]func(context.Context, pgx.Tx) (int, error){
		"an error":                func(context.Context, pgx.Tx) (int, error) { return 1, failure },
		"the function's deadline": sleepPast,
		"a broken statement": func(ctx context.Context, tx pgx.Tx) (int, error) {
			_, err := tx.Exec(ctx, "select nothing")
			return 0, err
		},
		"a value that JSON lacks": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			var err error
			if fail == nil {
				_, _, err = idempotency.Do(t.Context(), b.store, b.key, func(ctx context.Context, tx pgx.Tx) (chan int, error) {
					_, err := charge(b.key.ID, 1)(ctx, tx)
					return make(chan int), err
				})
				b.wantErr(err, idempotency.ErrUndecodable)
			} else {
				var got, runs int
				got, _, err = b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
					runs++
					if _, err := charge(b.key.ID, 1)(ctx, tx); err != nil {
						return 0, err
					}
					return fail(ctx, tx)
				})
				if got != 0 || runs != 1 {
					t.Errorf("value %d beside an error, after %d runs", got, runs)
				}
			}
			if err == nil {
				t.Fatal("no error")
			}
			b.effects(0)
			b.executes(7)
			b.effects(1)
		})
	}
}

func sleepPast(ctx context.Context, tx pgx.Tx) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Millisecond)
	defer cancel()
	_, err := tx.Exec(ctx, "select pg_sleep(10)")
	return 0, err
}

func TestFunctionsErrorComesBackUnchanged(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	failure := errors.New("no")
	if _, _, err := b.do(func(context.Context, pgx.Tx) (int, error) { return 0, failure }); err != failure {
		t.Errorf("got %v", err)
	}
}

func TestPanicIsRaisedAgainAndTheNextCallRuns(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	func() {
		defer func() {
			if got := recover(); got != "boom" {
				t.Errorf("recovered %v", got)
			}
		}()
		b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
			charge(b.key.ID, 1)(ctx, tx)
			panic("boom")
		})
	}()
	b.effects(0)
	b.executes(7)
}

func TestGoexitLeavesNothingAndTheNextCallRuns(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
			charge(b.key.ID, 1)(ctx, tx)
			runtime.Goexit()
			return 0, nil
		})
	}()
	<-gone
	b.effects(0)
	b.executes(7)
}

func TestCancelledInsideTheFunctionLeavesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	_, _, err := idempotency.Do(ctx, b.store, b.key, func(ctx context.Context, tx pgx.Tx) (int, error) {
		charge(b.key.ID, 1)(ctx, tx)
		time.AfterFunc(20*time.Millisecond, cancel)
		_, err := tx.Exec(ctx, "select pg_sleep(10)")
		return 0, err
	})
	b.wantErr(err, context.Canceled)
	b.executes(7)
	b.effects(1)
}

func TestNilErrorIsRecordedWhateverTheContextSays(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	got, replayed, err := idempotency.Do(ctx, b.store, b.key, func(ctx context.Context, tx pgx.Tx) (int, error) {
		defer cancel()
		return charge(b.key.ID, 5)(ctx, tx)
	})
	if got != 5 || replayed || err != nil {
		t.Errorf("Do = %v, %v, %v", got, replayed, err)
	}
	b.replays(5)
	b.effects(1)
}

func TestEndedContextRunsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 1))
	b.wantErr(err, context.Canceled)
	b.effects(0)
}

func TestRefusalIsAResultAndASavepointUndoesItsWrites(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	declined := func(ctx context.Context, tx pgx.Tx) (string, error) {
		refusal := errors.New("declined")
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			if _, err := charge(b.key.ID, 1)(ctx, tx); err != nil {
				return err
			}
			return refusal
		})
		if errors.Is(err, refusal) {
			return "declined", nil
		}
		return "paid", err
	}
	for i := range 2 {
		got, replayed, err := idempotency.Do(t.Context(), b.store, b.key, declined)
		if got != "declined" || replayed != (i == 1) || err != nil {
			t.Errorf("call %d: %q, %v, %v", i, got, replayed, err)
		}
	}
	if n := query[int](b, "select count(*) from charges"); n != 0 {
		t.Errorf("%d charges of a declined card", n)
	}
}

func TestUsersOwnUniqueViolationReachesTheCaller(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("create unique index one_charge on charges (amount)")
	b.executes(1)
	b.key.ID = "key-2"
	_, _, err := b.do(charge(b.key.ID, 1))
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.ConstraintName != "one_charge" {
		t.Errorf("got %v", err)
	}
	b.effects(0)
}

func TestDeferredConstraintThatFailsAtCommitReachesTheCaller(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("alter table charges add constraint one_charge unique (amount) deferrable initially deferred")
	b.executes(1)
	b.key.ID = "key-2"
	runs := 0
	_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		runs++
		return charge(b.key.ID, 1)(ctx, tx)
	})
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.ConstraintName != "one_charge" {
		t.Errorf("got %v", err)
	}
	if runs != 1 {
		t.Errorf("%d runs", runs)
	}
	b.effects(0)
}

// An ERROR of any other class at COMMIT proves nothing by itself; Do asks, and
// then gives it to the caller.
func TestDeferredTriggerThatFailsAtCommitReachesTheCaller(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec(`create function refuse() returns trigger language plpgsql as $$ begin raise exception 'over the limit'; end $$`)
	b.exec(`create constraint trigger refuse after insert on charges deferrable initially deferred for each row execute function refuse()`)
	runs := 0
	_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		runs++
		return charge(b.key.ID, 1)(ctx, tx)
	})
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Message != "over the limit" {
		t.Errorf("got %v", err)
	}
	if runs != 1 {
		t.Errorf("%d runs", runs)
	}
	b.effects(0)
}

func TestSwallowedSQLErrorIsNotACommit(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		charge(b.key.ID, 1)(ctx, tx)
		tx.Exec(ctx, "select nothing")
		return 1, nil
	})
	b.wantErr(err, pgx.ErrTxCommitRollback)
	b.effects(0)
	b.executes(7)
}

func TestRowsLeftOpenAreAnError(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		charge(b.key.ID, 1)(ctx, tx)
		_, err := tx.Query(ctx, "select generate_series(1, 10)")
		return 1, err
	})
	if err == nil || !strings.Contains(err.Error(), "close its rows") {
		t.Errorf("got %v", err)
	}
	b.eventually("the key is free", func() bool {
		return query[int](b, "select count(*) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())") == 0
	})
	b.effects(0)
	b.executes(7)
}

func TestCommitAndRollbackInsideTheFunctionAreRefusedWithoutEffect(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		defer tx.Rollback(ctx)
		if err := tx.Commit(ctx); err == nil || !strings.Contains(err.Error(), "the caller of DoTx") {
			t.Errorf("Commit: %v", err)
		}
		if err := tx.Rollback(ctx); err == nil {
			t.Error("Rollback was not refused")
		}
		return charge(b.key.ID, 1)(ctx, tx)
	})
	if err != nil {
		t.Fatal(err)
	}
	b.replays(1)
	b.effects(1)
}

func TestCommitSentAsSQLNeverLeadsToASecondExecution(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		charge(b.key.ID, 1)(ctx, tx)
		_, err := tx.Exec(ctx, "commit")
		return 1, err
	})
	b.wantErr(err, idempotency.ErrOutcomeUnknown)
	_, _, err = b.do(charge(b.key.ID, 1))
	b.wantErr(err, idempotency.ErrAbandoned)
	if !strings.Contains(err.Error(), "free the key with Store.Delete") || !strings.Contains(err.Error(), "calling again does not help") {
		t.Error(err)
	}
	_, err = b.store.Get(t.Context(), b.key)
	b.wantErr(err, idempotency.ErrAbandoned)
	b.effects(1)
	if err := b.store.Delete(t.Context(), b.key); err != nil {
		t.Fatal(err)
	}
	b.executes(2)
}

func TestTransactionIsUselessOnceTheFunctionHasReturned(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var kept, nested pgx.Tx
	_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		kept = tx
		var err error
		nested, err = tx.Begin(ctx)
		return 1, err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tx := range []pgx.Tx{kept, nested} {
		_, err := tx.Exec(t.Context(), "select 1")
		b.wantErr(err, pgx.ErrTxClosed)
		_, err = tx.Query(t.Context(), "select 1")
		b.wantErr(err, pgx.ErrTxClosed)
		b.wantErr(tx.QueryRow(t.Context(), "select 1").Scan(), pgx.ErrTxClosed)
		b.wantErr(tx.SendBatch(t.Context(), &pgx.Batch{}).Close(), pgx.ErrTxClosed)
		_, err = tx.CopyFrom(t.Context(), nil, nil, nil)
		b.wantErr(err, pgx.ErrTxClosed)
		_, err = tx.Prepare(t.Context(), "", "")
		b.wantErr(err, pgx.ErrTxClosed)
		_, err = tx.Begin(t.Context())
		b.wantErr(err, pgx.ErrTxClosed)
		b.wantErr(tx.Commit(t.Context()), pgx.ErrTxClosed)
		b.wantErr(tx.Rollback(t.Context()), pgx.ErrTxClosed)
	}
}

func TestOwnRowRemovedByTheFunctionIsAnErrorAndLeavesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		charge(b.key.ID, 1)(ctx, tx)
		_, err := tx.Exec(ctx, "delete from idempotency_keys")
		return 1, err
	})
	if err == nil || !strings.Contains(err.Error(), "row of its own key") {
		t.Errorf("got %v", err)
	}
	b.effects(0)
	b.executes(7)
}

func TestErrorAtCommitIsNotTakenForOneOfOurOwnStatements(t *testing.T) {
	t.Parallel()
	for name, statement := range map[string]string{
		"22012": "perform 1 / 0;",
		"42P01": "perform * from missing;",
		"42501": "raise 'forbidden' using errcode = '42501';",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			b.exec("create function refuse() returns trigger language plpgsql as $$ begin " + statement + " return null; end $$")
			b.exec("create constraint trigger refuse after insert on charges deferrable initially deferred for each row execute function refuse()")
			_, _, err := b.do(charge(b.key.ID, 1))
			if sqlState(err) != name || strings.Contains(err.Error(), "idempotency") {
				t.Errorf("got %v", err)
			}
			b.effects(0)
		})
	}
}

// A slow function will be as slow the next time.
func TestFunctionThatPostgreSQLEndsForItsTimeIsNotRunAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	idle := b.storeOn(b.pool, idempotency.Config{MaxIdle: 100 * time.Millisecond})
	stores := map[string]*idempotency.Store{"25P03": idle}
	if query[int](b, "select current_setting('server_version_num')::int") >= 17_00_00 {
		// Before 17 there is no such parameter.
		stores["25P04"] = b.store
	}
	for code, store := range stores {
		runs := 0
		_, _, err := idempotency.Do(t.Context(), store, idempotency.Key{Scope: "s", ID: code}, func(ctx context.Context, tx pgx.Tx) (int, error) {
			runs++
			if code == "25P04" {
				if _, err := tx.Exec(ctx, "set local transaction_timeout = '200ms'"); err != nil {
					return 0, err
				}
				_, err := tx.Exec(ctx, "select pg_sleep(10)")
				return 0, err
			}
			time.Sleep(300 * time.Millisecond)
			return charge("slow", 1)(ctx, tx)
		})
		if !b.endedWith(err, code) || runs != 1 {
			t.Errorf("%s: %d runs, %v", code, runs, err)
		}
	}
	b.effects(0)
}

// endedWith reports whether err is PostgreSQL's word that it has ended the session. On
// a Unix socket the next statement fails before that word can be read.
func (b *bundle) endedWith(err error, code string) bool {
	if strings.HasPrefix(b.pool.Config().ConnConfig.Host, "/") && errors.Is(err, syscall.EPIPE) {
		return true
	}
	return sqlState(err) == code
}

// A function that is silent after its last statement hears nothing of its end:
// only the record does.
func TestFunctionThatIsSilentTooLongAtItsEndIsNotRunAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{MaxIdle: 100 * time.Millisecond})
	runs := 0
	_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		runs++
		n, err := charge(b.key.ID, 1)(ctx, tx)
		time.Sleep(300 * time.Millisecond)
		return n, err
	})
	if !b.endedWith(err, "25P03") || runs != 1 {
		t.Errorf("%d runs, %v", runs, err)
	}
	b.effects(0)
	b.executes(1)
}

// On a Unix socket the write fails before PostgreSQL's error can be read.
func TestFunctionThatPostgreSQLEndsWithoutAWordIsNotRunAgain(t *testing.T) {
	t.Parallel()
	for name, last := range map[string]time.Duration{"before a statement": 300 * time.Millisecond, "before its end": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			store, proxy := b.through(idempotency.Config{MaxIdle: 200 * time.Millisecond})
			proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
				if m.FromServer && m.Type == 'E' {
					return pgproxy.Drop
				}
				return pgproxy.Pass
			})
			runs := 0
			_, _, err := idempotency.Do(t.Context(), store, b.key, func(ctx context.Context, tx pgx.Tx) (int, error) {
				runs++
				time.Sleep(last)
				n, err := charge(b.key.ID, 1)(ctx, tx)
				time.Sleep(300*time.Millisecond - last)
				return n, err
			})
			if err == nil || runs != 1 {
				t.Errorf("%d runs, %v", runs, err)
			}
			b.effects(0)
		})
	}
}
