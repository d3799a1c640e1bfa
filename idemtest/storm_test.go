package idemtest_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemtest"
	"github.com/pgidem/idempotency/internal/pgtest"
)

const insert = `insert into charges (request) values ($1) returning n`

// A start is Program.Start.
type start = func(*pgxpool.Pool, *idempotency.Store) idemtest.Call

// program counts the charges with the id.
func program(s start) idemtest.Program {
	return idemtest.Program{Start: s, Effects: func(ctx context.Context, pool *pgxpool.Pool, id string) (n int, err error) {
		err = pool.QueryRow(ctx, `select count(*) from charges where request = $1`, id).Scan(&n)
		return n, err
	}}
}

// storm runs a Storm on a program and returns its report.
func storm(t *testing.T, s start, opts ...pgtest.Option) string {
	t.Helper()
	return stormOf(t, program(s), opts...)
}

func stormOf(t *testing.T, p idemtest.Program, opts ...pgtest.Option) string {
	t.Helper()
	pool := testDatabase(t, opts...)
	report := record(t, func(t testing.TB) { idemtest.Storm(t, pool, 8, p) })
	if n := schemas(t, pool); n != 0 {
		t.Errorf("%d schemas are left", n)
	}
	return report
}

func keyOf(id string) idempotency.Key { return idempotency.Key{Scope: "shop", ID: id} }

// charge is a correct function.
func charge(id string) func(context.Context, pgx.Tx) (int, error) {
	return func(ctx context.Context, tx pgx.Tx) (n int, err error) {
		err = tx.QueryRow(ctx, insert, id).Scan(&n)
		return n, err
	}
}

func correct(_ *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
	return func(ctx context.Context, id string) (any, bool, error) {
		return idempotency.Do(ctx, store, keyOf(id), charge(id))
	}
}

func TestCorrectFunctionPassesTheStorm(t *testing.T) {
	t.Parallel()
	wantNone(t, storm(t, correct))
}

func TestCorrectFunctionPassesTheStormInEveryQueryMode(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			wantNone(t, storm(t, correct, func(cfg *pgxpool.Config) { cfg.ConnConfig.DefaultQueryExecMode = mode }))
		})
	}
}

func TestCorrectFunctionOnAPoolOfOnePassesTheStorm(t *testing.T) {
	t.Parallel()
	wantNone(t, storm(t, correct, pgtest.MaxConns(1)))
}

func TestCorrectFunctionWithAStoreOfItsOwnPassesTheStorm(t *testing.T) {
	t.Parallel()
	wantNone(t, storm(t, func(pool *pgxpool.Pool, _ *idempotency.Store) idemtest.Call {
		return correct(pool, idempotency.New(pool))
	}))
}

func TestCorrectFunctionInATransactionOfItsOwnPassesTheStorm(t *testing.T) {
	t.Parallel()
	wantNone(t, storm(t, func(pool *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (n any, replayed bool, err error) {
			err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				n, replayed, err = idempotency.DoTx(ctx, store, tx, keyOf(id), charge(id))
				return err
			})
			return n, replayed, err
		}
	}))
}

// A request that charges, and sends a receipt under a key of its own.
func TestCorrectFunctionWithTwoKeysForOneRequestPassesTheStorm(t *testing.T) {
	t.Parallel()
	wantNone(t, storm(t, func(_ *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (any, bool, error) {
			return idempotency.Do(ctx, store, keyOf(id), func(ctx context.Context, tx pgx.Tx) (int, error) {
				receipt := idempotency.Key{Scope: "receipts", ID: id}
				if _, _, err := idempotency.DoTx(ctx, store, tx, receipt, func(context.Context, pgx.Tx) (bool, error) { return true, nil }); err != nil {
					return 0, err
				}
				return charge(id)(ctx, tx)
			})
		}
	}))
}

func TestCorrectFunctionWhoseFirstRequestMakesOneMoreKeyPassesTheStorm(t *testing.T) {
	t.Parallel()
	wantNone(t, storm(t, func(_ *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (any, bool, error) {
			if _, _, err := idempotency.Do(ctx, store, keyOf("the shop is open"), func(context.Context, pgx.Tx) (bool, error) { return true, nil }); err != nil {
				return nil, false, err
			}
			return idempotency.Do(ctx, store, keyOf(id), charge(id))
		}
	}))
}

// The unique constraint hides from Effects that the second key differs.
func TestReportsASecondKeyThatDiffersFromCallToCall(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	report := storm(t, func(_ *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (any, bool, error) {
			other := fmt.Sprint(id, " again ", calls.Add(1))
			if _, _, err := idempotency.Do(ctx, store, keyOf(other), func(context.Context, pgx.Tx) (bool, error) { return true, nil }); err != nil {
				return nil, false, err
			}
			return idempotency.Do(ctx, store, keyOf(id), charge(id))
		}
	})
	want(t, report, "wrong number of keys", "1 to 2 keys", "3 keys", "differs from call to call")
}

func TestEachRoundIsPreparedBeforeItsCalls(t *testing.T) {
	t.Parallel()
	prepared := make(map[string]int)
	p := program(func(pool *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (any, bool, error) {
			return idempotency.Do(ctx, store, keyOf(id), func(ctx context.Context, tx pgx.Tx) (int, error) {
				var customer int
				if err := tx.QueryRow(ctx, "select n from charges where request = $1 for update", "customer of "+id).Scan(&customer); err != nil {
					return 0, err
				}
				return charge(id)(ctx, tx)
			})
		}
	})
	p.Prepare = func(ctx context.Context, pool *pgxpool.Pool, id string) error {
		prepared[id]++
		_, err := pool.Exec(ctx, "insert into charges (request) values ($1)", "customer of "+id)
		return err
	}
	wantNone(t, stormOf(t, p))
	if len(prepared) != 6 {
		t.Errorf("%d rounds were prepared, want 6", len(prepared))
	}
	for id, n := range prepared {
		if n != 1 {
			t.Errorf("%s was prepared %d times", id, n)
		}
	}
	p.Prepare = func(context.Context, *pgxpool.Pool, string) error { return errors.New("no such customer") }
	want(t, stormOf(t, p), "Program.Prepare: no such customer")
}

func TestReportsAValueOfWhichJSONLosesAPart(t *testing.T) {
	t.Parallel()
	type receipt struct {
		ID   int
		Paid struct{ cents int }
	}
	report := storm(t, func(_ *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (any, bool, error) {
			return idempotency.Do(ctx, store, keyOf(id), func(ctx context.Context, tx pgx.Tx) (r receipt, err error) {
				r.Paid.cents = 1000
				r.ID, err = charge(id)(ctx, tx)
				return r, err
			})
		}
	})
	want(t, report, "calls failed", "receipt.Paid", "another type, or methods for JSON")
}

func TestCorrectHandlerPassesTheStorm(t *testing.T) {
	t.Parallel()
	wantNone(t, storm(t, func(_ *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return idemtest.HTTP(handler(func(w http.ResponseWriter, r *http.Request, id string) error {
			n, replayed, err := idempotency.Do(r.Context(), store, keyOf(id), charge(id))
			w.Header().Set("Idempotent-Replayed", fmt.Sprint(replayed))
			if err == nil {
				fmt.Fprint(w, "charge ", n)
			}
			return err
		}), post)
	}))
}

func handler(serve func(w http.ResponseWriter, r *http.Request, id string) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := serve(w, r, r.Header.Get("Idempotency-Key")); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
}

func post(id string) *http.Request {
	r := httptest.NewRequest("POST", "/charges", strings.NewReader("10 EUR"))
	r.Header.Set("Idempotency-Key", id)
	return r
}

func TestReportsAFunctionThatWritesThroughThePool(t *testing.T) {
	t.Parallel()
	report := storm(t, func(pool *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (any, bool, error) {
			return idempotency.Do(ctx, store, keyOf(id), func(ctx context.Context, tx pgx.Tx) (n int, err error) {
				err = pool.QueryRow(ctx, insert, id).Scan(&n) // the mistake
				return n, err
			})
		}
	})
	want(t, report, "idemtest/storm_test.go:", "a connection of the pool inside the function of a Do", "use tx.Exec",
		"most likely: the other report, on the line of the statement")
}

// The guard does not see this one: the context is another.
func TestReportsAnEffectThatCommitsByItself(t *testing.T) {
	t.Parallel()
	report := storm(t, func(pool *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (any, bool, error) {
			return idempotency.Do(ctx, store, keyOf(id), func(_ context.Context, tx pgx.Tx) (string, error) {
				_, err := pool.Exec(ctx, `insert into charges (request) values ($1)`, id)
				return "charged", err
			})
		}
	})
	want(t, report, "the connection cut before COMMIT arrives", "wrong number of effects", "expected:    1 effect",
		"found:       2 effects, and 1 key", "most likely: the effect and the key do not commit together")
}

func TestReportsAnEffectBeforeDo(t *testing.T) {
	t.Parallel()
	report := storm(t, func(pool *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (any, bool, error) {
			if _, err := pool.Exec(ctx, `insert into charges (request) values ($1)`, id); err != nil {
				return nil, false, err
			}
			return idempotency.Do(ctx, store, keyOf(id), func(context.Context, pgx.Tx) (string, error) { return "charged", nil })
		}
	})
	want(t, report, "one call, and the same again", "found:       2 effects, and 1 key",
		"most likely: the effect is not made in the transaction of the function")
}

// It passes every test that is not parallel.
func TestReportsAHandlerThatStoresItsKeyInASecondTransaction(t *testing.T) {
	t.Parallel()
	handlerOf := func(pool *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return idemtest.HTTP(handler(func(w http.ResponseWriter, r *http.Request, id string) error {
			ctx := r.Context()
			if _, err := store.Get(ctx, keyOf(id)); !errors.Is(err, idempotency.ErrNotFound) {
				fmt.Fprint(w, "charged")
				return err
			}
			time.Sleep(20 * time.Millisecond) // so slow that duplicates meet
			err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				_, err := charge(id)(ctx, tx)
				return err
			})
			if err != nil {
				return err
			}
			_, _, err = idempotency.Do(ctx, store, keyOf(id), func(context.Context, pgx.Tx) (bool, error) { return true, nil })
			fmt.Fprint(w, "charged")
			return err
		}), post)
	}
	p := program(handlerOf)
	p.Unmarked = true
	report := stormOf(t, p)
	want(t, report, "8 parallel duplicates", "wrong number of effects", "effects, and 1 key", "in a transaction of its own")
}

// It serializes the duplicates, so that only a lost connection shows the mistake.
func TestReportsASecondTransactionThatALostConnectionParts(t *testing.T) {
	t.Parallel()
	one := make(chan struct{}, 1)
	p := program(func(pool *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (any, bool, error) {
			one <- struct{}{}
			defer func() { <-one }()
			if _, err := store.Get(ctx, keyOf(id)); !errors.Is(err, idempotency.ErrNotFound) {
				return "charged", true, err
			}
			err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				_, err := charge(id)(ctx, tx)
				return err
			})
			if err != nil {
				return nil, false, err
			}
			return idempotency.Do(ctx, store, keyOf(id), func(context.Context, pgx.Tx) (string, error) { return "charged", nil })
		}
	})
	report := stormOf(t, p)
	want(t, report, "the connection cut before the answer to COMMIT 1 of 2 arrives", "found:       2 effects, and 1 key",
		"the key in another, and the connection was lost in between")
}

func TestReportsDifferentAnswersToDuplicates(t *testing.T) {
	t.Parallel()
	report := storm(t, func(_ *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return idemtest.HTTP(handler(func(w http.ResponseWriter, r *http.Request, id string) error {
			n, replayed, err := idempotency.Do(r.Context(), store, keyOf(id), charge(id))
			w.Header().Set("Idempotent-Replayed", fmt.Sprint(replayed))
			if replayed {
				w.WriteHeader(http.StatusConflict)
				fmt.Fprint(w, "duplicate")
				return err
			}
			fmt.Fprint(w, "charge ", n)
			return err
		}), post)
	})
	want(t, report, "different answers", "expected:    the same answer to every call", "1 x {Status:200", "1 x {Status:409", "Body:duplicate", "build all of it from the value that Do returns")
}

func TestReportsAKeyThatDiffersFromCallToCall(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	report := storm(t, func(_ *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (any, bool, error) {
			return idempotency.Do(ctx, store, keyOf(fmt.Sprint(id, calls.Add(1))), charge(id))
		}
	})
	want(t, report, "found:       2 effects, and 2 keys", "the duplicates do not have the same key")
}

func TestReportsAFingerprintThatDiffersFromCallToCall(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	report := storm(t, func(_ *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (any, bool, error) {
			key := keyOf(id)
			key.Fingerprint = idempotency.FingerprintOf(fmt.Append(nil, calls.Add(1)))
			return idempotency.Do(ctx, store, key, charge(id))
		}
	})
	want(t, report, "calls failed", "the Fingerprint covers something that differs")
}

func TestReportsAProgramWithoutKeys(t *testing.T) {
	t.Parallel()
	report := storm(t, func(pool *pgxpool.Pool, _ *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (n any, _ bool, err error) {
			err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				n, err = charge(id)(ctx, tx)
				return err
			})
			return n, false, err
		}
	})
	want(t, report, "found:       2 effects, and 0 keys", "does not call Do or DoTx")
}

func TestReportsAFunctionWithoutItsEffect(t *testing.T) {
	t.Parallel()
	report := storm(t, func(_ *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (any, bool, error) {
			return idempotency.Do(ctx, store, keyOf(id), func(context.Context, pgx.Tx) (string, error) { return "charged", nil })
		}
	})
	want(t, report, "found:       0 effects, and 1 key", "2 x charged")
}

func TestReportsAProgramThatIgnoresAFailedCommit(t *testing.T) {
	t.Parallel()
	report := storm(t, func(pool *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (any, bool, error) {
			tx, err := pool.Begin(ctx)
			if err != nil {
				return nil, false, err
			}
			defer tx.Rollback(ctx)
			_, replayed, err := idempotency.DoTx(ctx, store, tx, keyOf(id), charge(id))
			if err != nil {
				return nil, false, err
			}
			tx.Commit(ctx) // the mistake
			return "charged", replayed, nil
		}
	})
	want(t, report, "before COMMIT arrives", "found:       2 of 8", "an error of COMMIT is ignored")
}

func TestReportsALeakedConnection(t *testing.T) {
	t.Parallel()
	report := storm(t, func(pool *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (any, bool, error) {
			if _, err := pool.Acquire(ctx); err != nil { // the mistake
				return nil, false, err
			}
			return idempotency.Do(ctx, store, keyOf(id), charge(id))
		}
	})
	want(t, report, "connections leaked", "found:       2 connections of the pool still acquired", "a pool.Acquire without Release")
}

func TestReportsATransactionLeftOpen(t *testing.T) {
	t.Parallel()
	report := storm(t, func(pool *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (n any, replayed bool, err error) {
			tx, err := pool.Begin(ctx) // the mistake: a replay returns without its end
			if err != nil {
				return nil, false, err
			}
			n, replayed, err = idempotency.DoTx(ctx, store, tx, keyOf(id), charge(id))
			if err == nil && !replayed {
				err = tx.Commit(ctx)
			}
			return n, replayed, err
		}
	})
	want(t, report, "transactions left open", "last statement: rollback to savepoint", "use pgx.BeginFunc", "connections leaked")
}

func TestReportsCallsThatDoNotReturn(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	defer close(hang)
	p := program(func(_ *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (any, bool, error) {
			<-hang
			return nil, false, nil
		}
	})
	p.Timeout = time.Millisecond
	want(t, stormOf(t, p), "calls do not return", "found:       1 call did not")
}

func TestReportsAProgramOnAnotherPool(t *testing.T) {
	t.Parallel()
	pool := testDatabase(t)
	report := record(t, func(t testing.TB) {
		store := idemtest.New(t, pool, idempotency.Config{})
		idemtest.Storm(t, pool, 8, program(func(*pgxpool.Pool, *idempotency.Store) idemtest.Call { return correct(pool, store) }))
	})
	want(t, report, "wrong number of keys", "its Store is not on the pool that Start gives it")
}

func TestReportsACallThatPanics(t *testing.T) {
	t.Parallel()
	report := storm(t, func(*pgxpool.Pool, *idempotency.Store) idemtest.Call {
		return func(context.Context, string) (any, bool, error) { panic("oh no") }
	})
	want(t, report, "calls failed", "the call panicked at idemtest/storm_test.go:", ": oh no")
}

func TestReportsAnswersThatDoNotSayWhichIsAReplay(t *testing.T) {
	t.Parallel()
	p := program(func(_ *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
		return func(ctx context.Context, id string) (any, bool, error) {
			n, _, err := idempotency.Do(ctx, store, keyOf(id), charge(id))
			return n, false, err
		}
	})
	want(t, stormOf(t, p), "wrong number of first answers", "found:       2 of 2", "set Program.Unmarked")
	p.Unmarked = true
	wantNone(t, stormOf(t, p))
}

func TestRefusesAProgramThatIsNotWhole(t *testing.T) {
	t.Parallel()
	pool := testDatabase(t)
	whole := program(correct)
	for reason, try := range map[string]func(testing.TB){
		"pool is nil":            func(t testing.TB) { idemtest.Storm(t, nil, 2, whole) },
		"n is 1":                 func(t testing.TB) { idemtest.Storm(t, pool, 1, whole) },
		"Program.Start is nil":   func(t testing.TB) { idemtest.Storm(t, pool, 2, idemtest.Program{Effects: whole.Effects}) },
		"Program.Effects is nil": func(t testing.TB) { idemtest.Storm(t, pool, 2, idemtest.Program{Start: correct}) },
		"Program.Config.Schema is": func(t testing.TB) {
			idemtest.Storm(t, pool, 2, idemtest.Program{Start: correct, Effects: whole.Effects, Config: idempotency.Config{Schema: "mine"}})
		},
	} {
		want(t, record(t, try), reason)
	}
}
