package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
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

// Each new one costs round trips, and a process of the server.
func TestConnectionOutlivesAStatementThatFails(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b = b.inPool(t, idempotency.Config{}, pgtest.MaxConns(1))
	const pid = "select pg_backend_pid()"
	before := query[int](b, pid)
	_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		_, err := tx.Exec(ctx, "select nothing")
		return 0, err
	})
	if after := query[int](b, pid); sqlState(err) != "42703" || after != before {
		t.Errorf("process %d, and before %d; %v", after, before, err)
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
	receive(b, gone)
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
	value, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		runs++
		return charge(b.key.ID, 1)(ctx, tx)
	})
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.ConstraintName != "one_charge" {
		t.Errorf("got %v", err)
	}
	if value != 0 {
		t.Errorf("the value of what was undone is %d", value)
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
	b := setup(t, idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) {
		if e.InDoubt != "" { // the server has said that the transaction is still open
			t.Errorf("%+v", e)
		}
	}})
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

// Two functions lock the same two rows in opposite orders. PostgreSQL ends one
// of them, and that call runs again.
func TestDeadlockOfTwoFunctionsIsRunAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("create table accounts (id int primary key, balance int not null)")
	b.exec("insert into accounts values (1, 0), (2, 0)")
	var locked, calls sync.WaitGroup // each has the first of its rows
	var deadlocks atomic.Int64
	locked.Add(2)
	for i, rows := range [][]int{{1, 2}, {2, 1}} {
		key := idempotency.Key{Scope: "transfer", ID: b.key.ID + string(rune('a'+i))}
		calls.Go(func() {
			runs := 0
			_, replayed, err := idempotency.Do(context.Background(), b.store, key, func(ctx context.Context, tx pgx.Tx) (int, error) {
				runs++
				for n, row := range rows {
					if _, err := tx.Exec(ctx, "update accounts set balance = balance + 1 where id = $1", row); err != nil {
						if sqlState(err) == "40P01" {
							deadlocks.Add(1)
						}
						return 0, err
					}
					if n == 0 && runs == 1 {
						locked.Done()
						locked.Wait()
					}
				}
				return runs, nil
			})
			if replayed || err != nil {
				t.Errorf("%v: replayed %v, %v", rows, replayed, err)
			}
		})
	}
	calls.Wait()
	if deadlocks.Load() == 0 {
		t.Error("there was no deadlock, so this shows nothing")
	}
	if sum := query[int](b, "select sum(balance)::int from accounts"); sum != 4 {
		t.Errorf("the balances add up to %d, want 4", sum)
	}
}

// A new connection costs the server far more than the rest of an answer: clients
// that cancel in a loop must not make it connect in a loop.
func TestContextThatEndsBeforeTheAnswerOfAStatementOfOursKeepsTheConnection(t *testing.T) {
	t.Parallel()
	claim, read := claimText, "select fingerprint"
	for name, c := range map[string]struct {
		statement string
		recorded  bool
		call      func(context.Context, *bundle, pgx.Tx) error
		want      error
	}{
		"Do of a new key": {claim, false, func(ctx context.Context, b *bundle, _ pgx.Tx) error {
			_, _, err := idempotency.Do(ctx, b.store, b.key, func(context.Context, pgx.Tx) (int, error) {
				b.Error("the function was run")
				return 1, nil
			})
			return err
		}, context.Canceled},
		"Do that replays": {claim, true, func(ctx context.Context, b *bundle, _ pgx.Tx) error {
			b.unknown()
			_, _, err := idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 1))
			return err
		}, nil},
		"Do of a known key": {claimReadText, true, func(ctx context.Context, b *bundle, _ pgx.Tx) error {
			_, _, err := idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 1))
			return err
		}, nil},
		"Do that replays what this process has recorded": {read, true, func(ctx context.Context, b *bundle, _ pgx.Tx) error {
			_, _, err := idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 1))
			return err
		}, nil},
		"DoTx of a new key": {claim, false, func(ctx context.Context, b *bundle, tx pgx.Tx) error {
			_, _, err := idempotency.DoTx(ctx, b.store, tx, b.key, func(context.Context, pgx.Tx) (int, error) {
				b.Error("the function was run")
				return 1, nil
			})
			return err
		}, context.Canceled},
		"DoTx that replays": {claim, true, func(ctx context.Context, b *bundle, tx pgx.Tx) error {
			_, _, err := idempotency.DoTx(ctx, b.store, tx, b.key, charge(b.key.ID, 1))
			return err
		}, nil},
		"Get": {read, true, func(ctx context.Context, b *bundle, _ pgx.Tx) error {
			_, err := b.store.Get(ctx, b.key)
			return err
		}, nil},
		"All": {read, true, func(ctx context.Context, b *bundle, _ pgx.Tx) error {
			for _, err := range b.store.All(ctx, b.key.Scope) {
				return err
			}
			return idempotency.ErrNotFound
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			if c.recorded {
				b.executes(1)
			}
			store, proxy := b.through(idempotency.Config{}, pgtest.MaxConns(2)) // one is DoTx's
			b.store = store
			tx, err := idempotency.PoolOf(store).Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(t.Context())
			if err := idempotency.PoolOf(store).Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
			for range 10 {
				proxy.SetRule(nil)
				b.store = b.storeOn(idempotency.PoolOf(store), idempotency.Config{}) // which knows no key
				if strings.Contains(name, "this process") {
					b.replays(1)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				asked := bound(c.statement)
				proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
					if asked(m) {
						cancel()
						time.Sleep(5 * time.Millisecond) // pgx has noticed
					}
					return pgproxy.Pass
				})
				err := c.call(ctx, b, tx)
				if ctx.Err() == nil {
					t.Fatal("the statement was not seen")
				}
				b.wantErr(err, c.want)
			}
			proxy.SetRule(nil)
			time.Sleep(2 * idempotency.ClaimGrace) // the deadlines have passed
			if _, err := tx.Exec(t.Context(), "select 1"); err != nil {
				t.Errorf("the caller's transaction is not usable: %v", err)
			}
			if n := idempotency.PoolOf(store).Stat().NewConnsCount(); n != 2 {
				t.Errorf("%d connections were made, want 2", n)
			}
			if !c.recorded {
				b.effects(0)
				b.executes(1)
			}
		})
	}
}

// A lock on the table can last for hours.
func TestContextThatEndsWhileAStatementOfOursHangsIsHonoured(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(context.Context, *bundle, pgx.Tx) error{
		"Do": func(ctx context.Context, b *bundle, _ pgx.Tx) error {
			_, _, err := idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 1))
			return err
		},
		"DoTx": func(ctx context.Context, b *bundle, tx pgx.Tx) error {
			_, _, err := idempotency.DoTx(ctx, b.store, tx, b.key, charge(b.key.ID, 1))
			return err
		},
		"Get": func(ctx context.Context, b *bundle, _ pgx.Tx) error {
			_, err := b.store.Get(ctx, b.key)
			return err
		},
	} {
		for _, want := range []error{context.Canceled, context.DeadlineExceeded} {
			t.Run(name+", "+want.Error(), func(t *testing.T) {
				t.Parallel()
				b := setup(t, idempotency.Config{})
				lock := b.begin(pgx.TxOptions{})
				if _, err := lock.Exec(t.Context(), "lock table idempotency_keys"); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				if want == context.DeadlineExceeded {
					ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
				} else {
					time.AfterFunc(50*time.Millisecond, cancel)
				}
				defer cancel()
				ended := make(chan error, 1)
				tx := b.begin(pgx.TxOptions{})
				go func() { ended <- call(ctx, b, tx) }()
				select {
				case err := <-ended:
					b.wantErr(err, want)
				case <-time.After(10 * time.Second):
					t.Error("the call still waits")
				}
				if err := lock.Rollback(context.Background()); err != nil {
					t.Fatal(err)
				}
				b.effects(0)
				b.executes(1)
			})
		}
	}
}

// The end of the context can be noticed when the connection has gone to somebody else.
func TestGraceThatBeginsTooLateLeavesTheConnectionAlone(t *testing.T) {
	t.Parallel()
	wire, far := net.Pipe()
	idempotency.EndedGrace(wire)()
	time.Sleep(2 * idempotency.ClaimGrace)
	go far.Write([]byte("x"))
	if _, err := wire.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

// Not parallel: it counts goroutines.
func TestGraceLeavesNoGoroutineBehind(t *testing.T) {
	b := setup(t, idempotency.Config{})
	b.executes(1)
	before := runtime.NumGoroutine()
	for i := range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		if i%2 == 0 {
			cancel()
		}
		_, _, _ = idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 1))
		cancel()
	}
	b.eventually("the goroutines are gone", func() bool { return runtime.NumGoroutine() <= before+2 })
}

// mistakes are statements of a trigger of somebody else's, by the SQLSTATE that they
// raise.
var mistakes = map[string]string{
	"42703": "new.updated_at = now();",
	"42P01": "perform * from tenants;",
	"3F000": "create table nowhere.idempotency_keys ();",
	"42P10": "insert into tags values ('x') on conflict (name) do nothing;",
	"25006": "raise 'read only' using errcode = '25006';",
	"0A000": "raise 'no such thing as idempotency_keys' using errcode = '0A000';",
	"42501": "raise 'idempotency_keys is forbidden' using errcode = '42501';",
	"22023": "raise 'invalid value for parameter' using errcode = '22023';",
}

// doTxAlone is the error of a DoTx in a transaction that is rolled back.
func (b *bundle) doTxAlone(fn func(context.Context, pgx.Tx) (int, error)) error {
	b.Helper()
	tx := b.begin(pgx.TxOptions{})
	defer tx.Rollback(context.Background())
	return b.doTx(tx, fn).err
}

func TestNoRemedyForTheMistakeOfATrigger(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("create table tags (name text)")
	for code, statement := range mistakes {
		for _, event := range []string{"insert", "update", "delete"} {
			b.trigger(event, statement)
			runs := 0
			_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
				runs++
				return charge(b.key.ID, 1)(ctx, tx)
			})
			switch {
			case event != "delete":
				b.noRemedy(event+" of Do", err, code)
				b.noRemedy(event+" of DoTx", b.doTxAlone(charge(b.key.ID, 1)), code)
			case err != nil:
				t.Errorf("%s: %v", code, err)
			default:
				b.noRemedy("Delete", b.store.Delete(t.Context(), b.key), code)
				b.exec("update idempotency_keys set expires_at = now(), purge_after = now()")
				_, err := b.store.Purge(t.Context())
				b.noRemedy("Purge", err, code)
			}
			if want := map[string]int{"insert": 0, "update": 1, "delete": 1}[event]; runs != want {
				t.Errorf("%s at %s: %d runs, want %d", code, event, runs, want)
			}
			b.exec("drop trigger somebodys on idempotency_keys; truncate idempotency_keys, charges")
		}
	}
}

func TestNoRemedyForTheMistakeOfAHookOfThePool(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for code, statement := range map[string]string{
		"42P01": "select from tenants",
		"42703": "select tenant from idempotency_keys",
		"25006": "do $$ begin raise 'read only' using errcode = '25006'; end $$",
		"42501": "do $$ begin raise 'idempotency_keys' using errcode = '42501'; end $$",
	} {
		pool := b.anotherPool(func(cfg *pgxpool.Config) {
			cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
				_, err := conn.Exec(ctx, statement)
				return err
			}
		})
		store := b.storeOn(pool, idempotency.Config{})
		_, _, err := idempotency.Do(t.Context(), store, b.key, charge(b.key.ID, 1))
		b.noRemedy("Do", err, code)
		_, err = store.Get(t.Context(), b.key)
		b.noRemedy("Get", err, code)
		_, err = store.Purge(t.Context())
		b.noRemedy("Purge", err, code)
		b.noRemedy("Delete", store.Delete(t.Context(), b.key), code)
	}
	b.effects(0)
}

// The message names the table of the policy, and the server's context is empty.
func TestNoRemedyForWhatAPolicyMayNotRead(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	role := b.plainRole()
	b.exec("grant select, insert, update, delete on idempotency_keys, charges to " + role)
	b.exec("create table tenants (scope text)")
	b.exec("alter table idempotency_keys enable row level security")
	b.exec("create policy tenants on idempotency_keys using (scope in (select scope from tenants))")
	store := b.storeOn(b.anotherPool(param("role", role)), idempotency.Config{})
	_, _, err := idempotency.Do(t.Context(), store, b.key, charge(b.key.ID, 1))
	b.noRemedy("Do", err, "42501")
	_, err = store.Get(t.Context(), b.key)
	b.noRemedy("Get", err, "42501")
}

// The function is not run again to find out which role it has left.
func TestNoRemedyForWhatATriggerMayNotRead(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	role := b.plainRole()
	b.exec("grant select, insert, update, delete on idempotency_keys, charges to " + role)
	b.exec("create table tenants (scope text)")
	b.trigger("update", "perform * from tenants;")
	store, runs := b.storeOn(b.anotherPool(param("role", role)), idempotency.Config{}), 0
	_, _, err := idempotency.Do(t.Context(), store, b.key, func(ctx context.Context, tx pgx.Tx) (int, error) {
		runs++
		return charge(b.key.ID, 1)(ctx, tx)
	})
	b.noRemedy("Do", err, "42501")
	if runs != 1 {
		t.Errorf("%d runs", runs)
	}
}

func TestFunctionThatMakesItsTransactionReadOnlyIsToldSo(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	runs := 0
	readOnly := func(ctx context.Context, tx pgx.Tx) (int, error) {
		runs++
		if _, err := charge(b.key.ID, 1)(ctx, tx); err != nil {
			return 0, err
		}
		_, err := tx.Exec(ctx, "set transaction read only")
		return 1, err
	}
	_, _, err := b.do(readOnly)
	for _, err := range []error{err, b.doTxAlone(readOnly)} {
		if sqlState(err) != "25006" || !strings.Contains(err.Error(), "the function has made its transaction read-only") || strings.Contains(err.Error(), "the primary") {
			t.Errorf("got %v", err)
		}
	}
	if runs != 2 {
		t.Errorf("%d runs", runs)
	}
	b.effects(0)
}

func TestRemedyIsGivenAlsoWhereTheServerShowsParameters(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	role := b.plainRole()
	store := b.storeOn(b.anotherPool(param("role", role), param("log_parameter_max_length_on_error", "-1")), idempotency.Config{})
	_, _, err := idempotency.Do(t.Context(), store, b.key, charge(b.key.ID, 1))
	if err == nil || !strings.Contains(err.Error(), "the role needs") {
		t.Errorf("got %v", err)
	}
}

func TestPurgeEveryOutlivesTheMistakesOfOthers(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var failures atomic.Int64
	store := b.storeOn(b.pool, idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) {
		if e.Err != nil && !errors.Is(e.Err, context.Canceled) {
			failures.Add(1)
		}
	}})
	b.exec("create table tags (name text)")
	for _, code := range []string{"42P01", "3F000", "42703", "42501", "42P10"} {
		b.expiredRows(1)
		b.trigger("delete", mistakes[code])
		failures.Store(0)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- store.PurgeEvery(ctx, time.Millisecond) }()
		b.eventually("the loop goes on after "+code, func() bool {
			select {
			case err := <-ended:
				t.Fatalf("%s ended the loop: %v", code, err)
			default:
			}
			return failures.Load() >= 2
		})
		cancel()
		b.wantErr(receive(b, ended), context.Canceled)
		b.exec("drop trigger somebodys on idempotency_keys; truncate idempotency_keys")
	}
	role := b.plainRole()
	b.exec("grant select, insert on idempotency_keys to " + role)
	store = b.storeOn(b.anotherPool(param("role", role)), idempotency.Config{})
	if err := store.PurgeEvery(t.Context(), time.Hour); err == nil || !strings.Contains(err.Error(), "the role needs") {
		t.Errorf("without the grant: %v", err)
	}
}

// A trigger that raises a code of contention by itself says nothing about the key.
func TestTriggerThatRaisesACodeOfContentionIsNotTakenForAnotherCall(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for _, code := range []string{"40001", "40P01", "55P03"} {
		b.trigger("insert", "raise 'busy' using errcode = '"+code+"';")
		start := time.Now()
		_, _, err := b.do(charge(b.key.ID, 1))
		if sqlState(err) != code || errors.Is(err, idempotency.ErrInProgress) || time.Since(start) > 8*time.Second {
			t.Errorf("%s: %v after %v", code, err, time.Since(start))
		}
		b.exec("drop trigger somebodys on idempotency_keys")
	}
	b.executes(1)
}

// refuses calls every operation and expects an error with each of the words,
// and no execution.
func (b *bundle) refuses(words ...string) {
	b.Helper()
	never := func(context.Context, pgx.Tx) (int, error) {
		b.Error("the function was run")
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, _, doErr := idempotency.Do(ctx, b.store, b.key, never)
	_, getErr := b.store.Get(ctx, b.key)
	_, purgeErr := b.store.Purge(ctx)
	for name, err := range map[string]error{"Do": doErr, "Get": getErr, "Purge": purgeErr} {
		for _, word := range words {
			if err == nil || !strings.Contains(err.Error(), word) {
				b.Errorf("%s: %v\ndoes not say %q", name, err, word)
			}
		}
	}
	if ctx.Err() != nil {
		b.Error("the refusal took more than 5 s")
	}
}

func TestMissingTableIsAnErrorThatSaysWhatToRun(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("drop table idempotency_keys")
	b.refuses("migrations.Up", `"idempotency migrate up"`)
	tx := b.begin(pgx.TxOptions{})
	got := b.doTx(tx, charge(b.key.ID, 1))
	if got.err == nil || !strings.Contains(got.err.Error(), "migrations.Up") {
		t.Errorf("DoTx: %v", got.err)
	}
	b.usable(tx)
}

func TestMissingSchemaIsAnErrorThatSaysWhatToRun(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.store = b.storeOn(b.pool, idempotency.Config{Schema: "nowhere"})
	b.refuses("migrations.Up")
}

func TestTableOfAnotherVersionIsAnErrorThatSaysWhatToRun(t *testing.T) {
	inOnePiece(t)
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("alter table idempotency_keys drop constraint idempotency_keys_pkey, drop column expires_at")
	b.refuses("migrations.Up")
}

func TestSchemaOfAnyNameIsUsed(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for _, schema := range []string{"plain", "My-Schema", `it's "odd"`} {
		name := pgx.Identifier{schema}.Sanitize()
		b.exec("create schema " + name)
		b.exec("create table " + name + ".idempotency_keys (like idempotency_keys including all)")
		b.store = b.storeOn(b.pool, idempotency.Config{Schema: schema})
		b.executes(1)
		b.replays(1)
		if err := b.store.Delete(t.Context(), b.key); err != nil {
			t.Error(err)
		}
	}
}

func TestReadOnlyServerIsRefusedWithAClearError(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.store = b.storeOn(b.anotherPool(param("default_transaction_read_only", "on")), idempotency.Config{})
	_, _, err := b.do(charge(b.key.ID, 1))
	if err == nil || !strings.Contains(err.Error(), "connect to the primary") {
		t.Errorf("got %v", err)
	}
	b.effects(0)
}

// plainRole makes a role without any privilege, whose name needs no quotes.
func (b *bundle) plainRole() (name string) {
	b.Helper()
	name = "role_" + b.pool.Config().ConnConfig.Database
	b.exec("create role " + name)
	b.Cleanup(func() { b.exec("drop owned by " + name + "; drop role " + name) })
	return name
}

func TestMissingPrivilegeIsNamed(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	role := b.plainRole()
	b.store = b.storeOn(b.anotherPool(param("role", role)), idempotency.Config{})
	_, _, err := b.do(charge(b.key.ID, 1))
	if err == nil || !strings.Contains(err.Error(), "the role needs") {
		t.Errorf("got %v", err)
	}
	b.exec("grant select, insert, update, delete on idempotency_keys, charges to " + role)
	b.executes(1)
	b.replays(1)
	if err := b.store.Delete(t.Context(), b.key); err != nil {
		t.Errorf("Delete: %v", err)
	}
}

func TestUnreachableServerIsAnErrorAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.store = b.storeOn(b.anotherPool(address("127.0.0.1", 1)), idempotency.Config{})
	b.refuses("127.0.0.1:1")
	var connectErr *pgconn.ConnectError
	if _, _, err := b.do(charge(b.key.ID, 1)); !errors.As(err, &connectErr) {
		t.Errorf("got %v", err)
	}
}

func TestExhaustedPoolIsAnErrorAtTheCallersDeadline(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	pool := b.anotherPool(pgtest.MaxConns(1))
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b.store = b.storeOn(pool, idempotency.Config{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, _, err = idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 1))
	b.wantErr(err, context.DeadlineExceeded)
	if !strings.Contains(err.Error(), "acquire a connection: all connections of the pool are in use (MaxConns is 1)") {
		t.Errorf("got %v", err)
	}
	conn.Release()
	b.executes(1)
}

func TestFunctionThatWaitsForThePoolItHasUsedUpIsToldSo(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	pool := b.anotherPool(pgtest.MaxConns(1))
	b.store = b.storeOn(pool, idempotency.Config{})
	const says = "all connections of the pool are in use (MaxConns is 1)"
	for name, c := range map[string]struct {
		said bool
		fn   func(context.Context, pgx.Tx) error
	}{
		"through the pool": {true, func(ctx context.Context, _ pgx.Tx) error {
			_, err := pool.Exec(ctx, "select 1")
			return err
		}},
		"through its tx": {false, func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "select pg_sleep(10)")
			return err
		}},
	} {
		_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
			ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			defer cancel()
			return 0, c.fn(ctx, tx)
		})
		b.wantErr(err, context.DeadlineExceeded)
		if strings.Contains(err.Error(), says) != c.said {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := b.do(func(context.Context, pgx.Tx) (int, error) { return 0, errNoAnswer }); err != errNoAnswer {
		t.Errorf("an error that is no deadline: %v", err)
	}
	b.store = b.storeOn(b.pool, idempotency.Config{}) // of eight, of which one is in use
	_, _, err := b.do(func(ctx context.Context, _ pgx.Tx) (int, error) {
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		<-ctx.Done()
		return 0, ctx.Err()
	})
	if err != context.DeadlineExceeded {
		t.Errorf("a deadline of something else: %v", err)
	}
}

func TestTableThatIsLockedAwayIsNamedBehindErrInProgress(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	b.store = b.storeOn(b.anotherPool(param("lock_timeout", "20ms")), idempotency.Config{Wait: 100 * time.Millisecond})
	tx := b.begin(pgx.TxOptions{})
	if _, err := tx.Exec(t.Context(), "lock table idempotency_keys in access exclusive mode"); err != nil {
		t.Fatal(err)
	}
	_, _, err := b.do(charge(b.key.ID, 2))
	b.wantErr(err, idempotency.ErrInProgress)
	if sqlState(err) != "55P03" {
		t.Errorf("got %v", err)
	}
}

// What a call does after an error hangs on these predicates. One that holds for too much runs
// an operation twice, or answers for one that did not happen.
func TestErrorsMeanNoMoreThanTheyProve(t *testing.T) {
	t.Parallel()
	state := func(code string, also ...func(*pgconn.PgError)) error {
		e := &pgconn.PgError{Code: code, SeverityUnlocalized: "ERROR"}
		for _, f := range also {
			f(e)
		}
		return fmt.Errorf("a step: %w", e)
	}
	severity := func(s string) func(*pgconn.PgError) {
		return func(e *pgconn.PgError) { e.SeverityUnlocalized = s }
	}
	from := func(routine string) func(*pgconn.PgError) {
		return func(e *pgconn.PgError) { e.Routine = routine }
	}
	within := func(e *pgconn.PgError) { e.Where = `PL/pgSQL function f() line 1 at SQL statement` }
	network := &net.OpError{Op: "read", Err: errors.New("connection reset by peer")}
	_, unreachable := pgconn.Connect(t.Context(), "postgres://127.0.0.1:1/?sslmode=disable")
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.New("the function's own"), ""},
		{state("40001"), "conflicted lostClaim provesAbort"},
		{state("40P01"), "conflicted lostClaim provesAbort"},
		{state("40001", from("exec_stmt_raise")), "conflicted provesAbort"}, // a trigger's own words say nothing of the key
		{state("40000"), ""},
		{state("40002"), ""}, // of class 40, and not proof of an abort by another transaction
		{state("40003"), ""}, // statement completion unknown
		{state("55P03"), ""}, // "nowait"
		{state("55P03", from("ProcessInterrupts")), "lostClaim"},
		{state("55P03", from("exec_stmt_raise")), ""},
		{state("57014", from("ProcessInterrupts")), ""}, // a statement_timeout would end the next claim, too
		{state("23505"), "provesAbort"},
		{state("23503"), "provesAbort"},
		{state("22P02"), ""},
		{state("57P01", severity("FATAL")), "lostConnection"}, // it can follow a COMMIT that took effect
		{state("57P01"), ""},
		{state("XX000", severity("PANIC")), "lostConnection"},
		{state("57P02", severity("WARNING")), ""},
		{state("25P03", severity("FATAL")), "endedForItsTime"},
		{state("25P04", severity("FATAL")), "endedForItsTime"},
		{state("25P02"), ""},
		{state("0A000", from("RevalidateCachedQuery")), "stalePlan"},
		{state("0A000", from("RevalidateCachedQuery"), within), ""}, // of a statement in a trigger: it would fail again
		{state("0A000", from("transformStmt")), ""},
		{state("42501", from("ExecWithCheckOptions")), "refusedByPolicy"},
		{state("42501", from("aclcheck_error")), ""},
		{remedied(state("42703", func(e *pgconn.PgError) { e.Position = 1 })), "misconfigured"},
		{remedied(state("25006")), ""}, // a failover ends it
		{pgx.ErrTxCommitRollback, "provesAbort"},
		{network, "lostConnection"},
		{fmt.Errorf("read: %w", io.EOF), "lostConnection"},
		{fmt.Errorf("read: %w", io.ErrUnexpectedEOF), "lostConnection"},
		{pgconn.ErrConnClosed, "lostConnection"},
		{unreachable, ""}, // it was never there
		{context.Canceled, ""},
		{context.DeadlineExceeded, ""},
		{errors.Join(network, context.Canceled), ""}, // pgx closes a connection whose context ends
		{errors.Join(network, context.DeadlineExceeded), ""},
		{errors.New("ERROR: idempotency: the operation has gone on elsewhere"), "saysElsewhere"},
	} {
		if got := strings.Join(idempotency.Says(c.err), " "); got != c.want {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
}
