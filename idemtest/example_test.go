package idemtest_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemtest"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// The program under test: it charges in the transaction of Do.
func chargeOnce(ctx context.Context, store *idempotency.Store, id string, cents int) (receipt string, replayed bool, err error) {
	key := idempotency.Key{Scope: "shop", ID: id}
	return idempotency.Do(ctx, store, key, func(ctx context.Context, tx pgx.Tx) (receipt string, err error) {
		err = tx.QueryRow(ctx, `insert into charges (request) values ($1) returning 'receipt ' || n`, id).Scan(&receipt)
		return receipt, err
	})
}

func countCharges(ctx context.Context, pool *pgxpool.Pool, id string) (n int, err error) {
	err = pool.QueryRow(ctx, `select count(*) from charges where request = $1`, id).Scan(&n)
	return n, err
}

// asTest runs what stands in a func TestName(t *testing.T) of yours, and prints
// how it ended.
func asTest(test func(t testing.TB)) {
	if failures := play(&recorder{}, test); failures != "" {
		fmt.Println(failures)
		return
	}
	fmt.Println("passed")
}

// openTestDatabase stands for yours: a pool on the test database.
func openTestDatabase(t testing.TB, opts ...pgtest.Option) *pgxpool.Pool {
	return testDatabase(t, opts...)
}

// A function that calls Do, under parallel duplicates and lost connections.
func ExampleStorm() {
	asTest(func(t testing.TB) {
		pool := openTestDatabase(t)
		idemtest.Storm(t, pool, 20, idemtest.Program{
			Start: func(pool *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
				return func(ctx context.Context, id string) (any, bool, error) {
					return chargeOnce(ctx, store, id, 1000)
				}
			},
			Effects: countCharges,
		})
	})
	// Output: passed
}

// What a report looks like: this program writes its charge in a transaction of its
// own, before Do.
func ExampleStorm_report() {
	asTest(func(t testing.TB) {
		pool := openTestDatabase(t)
		idemtest.Storm(t, pool, 20, idemtest.Program{
			Start: func(pool *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
				return func(ctx context.Context, id string) (any, bool, error) {
					if _, err := pool.Exec(ctx, `insert into charges (request) values ($1)`, id); err != nil {
						return nil, false, err
					}
					return idempotency.Do(ctx, store, idempotency.Key{Scope: "shop", ID: id},
						func(context.Context, pgx.Tx) (string, error) { return "charged", nil })
				}
			},
			Effects: countCharges,
		})
	})
	// Output:
	// idemtest: Storm, one call, and the same again:
	// wrong number of effects
	// 	expected:    1 effect
	// 	found:       2 effects, and 1 key in the table of the Store
	// 	most likely: the effect is not made in the transaction of the function: it is written before or after Do, in a transaction of its own or through the pool, and the key is recorded in another one
}

// newMux is the program under test: its answers do not say which is a replay.
func newMux(store *idempotency.Store) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /charges", func(w http.ResponseWriter, r *http.Request) {
		receipt, _, err := chargeOnce(r.Context(), store, strings.Trim(r.Header.Get("Idempotency-Key"), `"`), 1000)
		if err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, receipt)
	})
	return mux
}

// A handler.
func ExampleHTTP() {
	asTest(func(t testing.TB) {
		pool := openTestDatabase(t)
		idemtest.Storm(t, pool, 20, idemtest.Program{
			Start: func(pool *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
				return idemtest.HTTP(newMux(store), func(id string) *http.Request {
					r := httptest.NewRequest("POST", "/charges", strings.NewReader(`{"cents": 1000}`))
					r.Header.Set("Idempotency-Key", id)
					return r
				})
			},
			Effects:  countCharges,
			Unmarked: true,
		})
	})
	// Output: passed
}

// A real server and client, with a Call of your own.
func ExampleHTTP_server() {
	asTest(func(t testing.TB) {
		pool := openTestDatabase(t)
		idemtest.Storm(t, pool, 20, idemtest.Program{
			Start: func(pool *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
				server := httptest.NewServer(newMux(store))
				t.Cleanup(server.Close)
				return func(ctx context.Context, id string) (any, bool, error) {
					r, err := http.NewRequestWithContext(ctx, "POST", server.URL+"/charges", nil)
					if err != nil {
						return nil, false, err
					}
					r.Header.Set("Idempotency-Key", id)
					answer, err := server.Client().Do(r)
					if err != nil {
						return nil, false, err
					}
					defer answer.Body.Close()
					body, err := io.ReadAll(answer.Body)
					return answer.Status + " " + string(body), false, err
				}
			},
			Effects:  countCharges,
			Unmarked: true,
		})
	})
	// Output: passed
}

// A test of your own, on a Store of its own.
func ExampleNew() {
	asTest(func(t testing.TB) {
		pool := openTestDatabase(t)
		store := idemtest.New(t, pool, idempotency.Config{})
		first, _, err := chargeOnce(context.Background(), store, "order-1", 1000)
		if err != nil {
			t.Fatal(err)
		}
		again, replayed, err := chargeOnce(context.Background(), store, "order-1", 1000)
		if again != first || !replayed || err != nil {
			t.Errorf("the retry got %q, %v, %v; want %q", again, replayed, err, first)
		}
	})
	// Output: passed
}

// A statement through the pool instead of tx.
func ExampleGuard() {
	asTest(func(t testing.TB) {
		pool := openTestDatabase(t, func(cfg *pgxpool.Config) { // before pgxpool.NewWithConfig
			idemtest.Guard(t, cfg)
		})
		store := idemtest.New(t, pool, idempotency.Config{})
		key := idempotency.Key{Scope: "shop", ID: "order-1"}
		idempotency.Do(context.Background(), store, key, func(ctx context.Context, tx pgx.Tx) (bool, error) {
			_, err := pool.Exec(ctx, `insert into charges (request) values ('order-1')`)
			return true, err
		})
	})
	// Output:
	// idemtest: idemtest/example_test.go:180: a connection of the pool inside the function of a Do or DoTx
	// 	expected:    every statement of the function of key "order-1" in scope "shop" through its tx
	// 	found:       a connection acquired from the pool with the function's context
	// 	most likely: the statement was sent through the pool: use tx.Exec, tx.Query or tx.Begin, in a procedure those of a step. Through the pool it commits by itself: it stays when the transaction of Do, or of the caller of DoTx, is rolled back, and happens again when the function runs again; and it takes a second connection
}
