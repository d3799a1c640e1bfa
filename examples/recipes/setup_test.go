package recipes

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// workerEnv makes the test binary a consumer, in a process that can be killed.
const workerEnv = "RECIPES_TEST_WORKER"

// consumers are what such a process can be, by the name in workerEnv.
var consumers = map[string]func(context.Context, *fated) error{
	"nats":  consumeNATS,
	"kafka": consumeKafka,
	"river": consumeRiver,
}

func TestMain(m *testing.M) {
	if name := os.Getenv(workerEnv); name != "" {
		fmt.Fprintln(os.Stderr, "worker:", consume(name))
		os.Exit(1) // a worker ends by being killed
	}
	pgtest.Main(m)
}

func consume(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // if nobody kills it
	defer cancel()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	f, err := newFated(pool, os.Getenv("RECIPES_TEST_FATE"))
	if err != nil {
		return err
	}
	return consumers[name](ctx, f)
}

// A fated worker kills its process with SIGKILL, either in the function of the nth message
// ("before n": the effect is written and not committed) or when its Do is about to return
// ("after n": it is committed, and the broker knows nothing of it yet).
type fated struct {
	pool  *pgxpool.Pool
	store *idempotency.Store

	before, after   int64
	written, called atomic.Int64
}

func newFated(pool *pgxpool.Pool, fate string) (*fated, error) {
	f := &fated{pool: pool}
	when, at, _ := strings.Cut(fate, " ")
	n, err := strconv.ParseInt(at, 10, 64)
	switch {
	case fate == "":
	case err != nil:
		return nil, err
	case when == "before":
		f.before = n
	case when == "after":
		f.after = n
	}
	// Observe is called after the COMMIT, and before Do returns.
	f.store, err = idempotency.NewWithConfig(pool, idempotency.Config{Observe: func(context.Context, idempotency.Event) {
		if f.called.Add(1) == f.after {
			die()
		}
	}})
	return f, err
}

// charge is the work of the recipes, and the fate.
func (f *fated) charge(ctx context.Context, tx pgx.Tx, message []byte) (receipt, error) {
	r, err := charge(ctx, tx, message)
	if err == nil && f.written.Add(1) == f.before {
		die()
	}
	return r, err
}

func die() {
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // until the signal is there
}

// start starts a worker.
func start(t *testing.T, pool *pgxpool.Pool, name string, env ...string) *exec.Cmd {
	t.Helper()
	worker := exec.Command(os.Args[0])
	worker.Env = append(os.Environ(), append(env, workerEnv+"="+name, "DATABASE_URL="+pgtest.URL(pool))...)
	worker.Stderr = os.Stderr
	if err := worker.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { worker.Process.Kill() })
	return worker
}

// killed waits for a worker, which must have been killed and not have ended by itself.
func killed(t *testing.T, worker *exec.Cmd) {
	t.Helper()
	worker.Wait()
	if status, ok := worker.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the worker was not killed: %v", worker.ProcessState)
	}
}

// database is a new one, with the tables of this package and of the business.
func database(t testing.TB, opts ...pgtest.Option) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.New(t, opts...)
	execute(t, pool, schema)
	return pool
}

func execute(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// one is the only row and column of a query.
func one[T any](t testing.TB, pool *pgxpool.Pool, sql string, args ...any) (value T) {
	t.Helper()
	if err := pool.QueryRow(context.Background(), sql, args...).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

// wantCharges fails unless there are n charges, for n orders.
func wantCharges(t testing.TB, pool *pgxpool.Pool, n int) {
	t.Helper()
	charges := one[int](t, pool, "select count(*) from charges")
	orders := one[int](t, pool, "select count(distinct order_id) from charges")
	if charges != n || orders != n {
		t.Errorf("%d charges for %d orders, want %d", charges, orders, n)
	}
}

func orderMessage(id string) []byte {
	message, err := json.Marshal(order{ID: id, Cents: 1000})
	if err != nil {
		panic(err)
	}
	return message
}

// impatient does not wait for a call that holds the key.
func impatient(t testing.TB, pool *pgxpool.Pool) *idempotency.Store {
	t.Helper()
	store, err := idempotency.NewWithConfig(pool, idempotency.Config{Wait: -1})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// receive takes one value, or fails when nothing comes for long.
func receive[T any](t testing.TB, from <-chan T, what string) (value T) {
	t.Helper()
	select {
	case value = <-from:
	case <-time.After(time.Minute):
		t.Fatalf("nothing came: %s", what)
	}
	return value
}

func newPool(t testing.TB, config *pgxpool.Config) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// idempotencyDo is a Do without any broker.
func idempotencyDo(ctx context.Context, store *idempotency.Store, id string, work work) (receipt, error) {
	r, _, err := idempotency.Do(ctx, store, idempotency.Key{Scope: "charge", ID: id}, func(ctx context.Context, tx pgx.Tx) (receipt, error) {
		return work(ctx, tx, orderMessage(id))
	})
	return r, err
}
