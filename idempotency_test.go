package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) {
	if os.Getenv(workerEnv) != "" {
		os.Exit(work())
	}
	pgtest.TableKind = tableKind
	pgtest.Main(m)
	dropExamples()
}

// dropExamples removes what the examples leave in the database of DATABASE_URL.
func dropExamples() {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return // they have not run either
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "drop schema if exists idempotency_examples cascade"); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// A bundle is what a test starts with: a database of its own with the package's
// table and one business table, a Store on it, and a key.
type bundle struct {
	testing.TB
	pool  *pgxpool.Pool
	store *idempotency.Store
	key   idempotency.Key
}

// setup makes a bundle. The health of its connections is checked when the test
// ends.
func setup(t testing.TB, cfg idempotency.Config, opts ...pgtest.Option) *bundle {
	t.Helper()
	b := &bundle{TB: t, pool: pgtest.New(t, withIsolation(opts)...), key: idempotency.Key{Scope: "customer-1", ID: "key-1"}}
	b.exec(`create table charges (id bigint generated always as identity, key text not null, amount int not null)`)
	b.store = b.storeOn(b.pool, cfg)
	return b
}

// anotherPool is one more on the test's database.
func (b *bundle) anotherPool(opts ...pgtest.Option) *pgxpool.Pool {
	b.Helper()
	return pgtest.Pool(b, b.pool, withIsolation(opts)...)
}

// isolation is the default isolation level of all connections, so that the same
// tests show the promise on each level: make test-isolation.
var isolation = os.Getenv("IDEMPOTENCY_TEST_ISOLATION")

func withIsolation(opts []pgtest.Option) []pgtest.Option {
	if isolation == "" {
		return opts
	}
	return append([]pgtest.Option{param("default_transaction_isolation", isolation)}, opts...)
}

// address makes a pool connect to another place than the server's, without
// encryption.
func address(host string, port uint16) pgtest.Option {
	return func(cfg *pgxpool.Config) {
		cfg.ConnConfig.Host, cfg.ConnConfig.Port = host, port
		cfg.ConnConfig.TLSConfig, cfg.ConnConfig.Fallbacks = nil, nil
	}
}

// param sets a parameter of the server for a pool's sessions.
func param(name, value string) pgtest.Option {
	return func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams[name] = value }
}

func (b *bundle) storeOn(pool *pgxpool.Pool, cfg idempotency.Config) *idempotency.Store {
	b.Helper()
	store, err := idempotency.NewWithConfig(pool, cfg)
	if err != nil {
		b.Fatal(err)
	}
	return store
}

func (b *bundle) exec(sql string, args ...any) {
	b.Helper()
	for {
		_, err := b.pool.Exec(context.Background(), sql, args...)
		if err == nil {
			return
		}
		if sqlState(err) != "40001" {
			b.Fatalf("%s: %v", sql, err)
		}
	}
}

func sqlState(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return ""
}

// long chooses between the size of a test in make test and in make test-long.
func long[T any](short, long T) T {
	if os.Getenv("IDEMPOTENCY_TEST_LONG") != "" {
		return long
	}
	return short
}

func query[T any](b *bundle, sql string, args ...any) T {
	b.Helper()
	rows, err := b.pool.Query(context.Background(), sql, args...)
	if err != nil {
		b.Fatalf("%s: %v", sql, err)
	}
	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		b.Fatalf("%s: %v", sql, err)
	}
	return value
}

// charge is the business function of most tests: one row, and its amount as the
// result.
func charge(id string, amount int) func(context.Context, pgx.Tx) (int, error) {
	return func(ctx context.Context, tx pgx.Tx) (int, error) {
		_, err := tx.Exec(ctx, "insert into charges (key, amount) values ($1, $2)", id, amount)
		return amount, err
	}
}

func (b *bundle) do(fn func(context.Context, pgx.Tx) (int, error)) (int, bool, error) {
	return idempotency.Do(context.Background(), b.store, b.key, fn)
}

// executes calls Do and expects it to run the function.
func (b *bundle) executes(amount int) {
	b.Helper()
	got, replayed, err := b.do(charge(b.key.ID, amount))
	if got != amount || replayed || err != nil {
		b.Fatalf("Do = %v, replayed %v, %v; want an execution with %v", got, replayed, err, amount)
	}
}

// replays calls Do and expects the recorded amount.
func (b *bundle) replays(amount int) {
	b.Helper()
	got, replayed, err := b.do(func(context.Context, pgx.Tx) (int, error) {
		b.Error("the function of a replay was run")
		return 0, nil
	})
	if got != amount || !replayed || err != nil {
		b.Fatalf("Do = %v, replayed %v, %v; want a replay of %v", got, replayed, err, amount)
	}
}

// effects checks that the charges of the key are n, and that there is a record
// if and only if there is a charge.
func (b *bundle) effects(n int) {
	b.Helper()
	if got := query[int](b, "select count(*) from charges where key = $1", b.key.ID); got != n {
		b.Errorf("%d charges for the key, want %d", got, n)
	}
	if got := query[int](b, "select count(*) from idempotency_keys where id = $1 and scope = $2", b.key.ID, b.key.Scope); got != min(n, 1) {
		b.Errorf("%d records for the key, want %d", got, min(n, 1))
	}
}

func (b *bundle) wantErr(err, want error) {
	b.Helper()
	if !errors.Is(err, want) {
		b.Fatalf("got error %v, want %v", err, want)
	}
}

// eventually waits for a condition that the server reaches by itself.
func (b *bundle) eventually(what string, condition func() bool) {
	b.Helper()
	for end := time.Now().Add(20 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("not so after 20 s: %s", what)
		}
	}
}

// blocker is a function that says when it has begun and goes on when told.
type blocker struct {
	begun chan struct{}
	goOn  chan error
}

func newBlocker() *blocker {
	return &blocker{begun: make(chan struct{}, 100), goOn: make(chan error)}
}

func (k *blocker) charge(id string, amount int) func(context.Context, pgx.Tx) (int, error) {
	return func(ctx context.Context, tx pgx.Tx) (int, error) {
		got, err := charge(id, amount)(ctx, tx)
		k.begun <- struct{}{}
		return got, errors.Join(err, <-k.goOn)
	}
}

type outcome struct {
	value    int
	replayed bool
	err      error
}

// start calls Do on a goroutine.
func (b *bundle) start(ctx context.Context, store *idempotency.Store, fn func(context.Context, pgx.Tx) (int, error)) <-chan outcome {
	ended := make(chan outcome, 1)
	go func() {
		value, replayed, err := idempotency.Do(ctx, store, b.key, fn)
		ended <- outcome{value, replayed, err}
	}()
	return ended
}

func TestCommittedIsReplayedFromAnyStoreAndPool(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(42)
	b.replays(42)

	b.store = b.storeOn(b.pool, idempotency.Config{})
	b.replays(42)

	b.store = b.storeOn(b.anotherPool(), idempotency.Config{})
	b.replays(42)
	b.effects(1)
}

func TestFirstCallReturnsWhatTheReplayWillReturn(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	type receipt struct {
		Amount int
		secret string
	}
	first, _, err := idempotency.Do(t.Context(), b.store, b.key, func(context.Context, pgx.Tx) (receipt, error) {
		return receipt{Amount: 1, secret: "is not stored"}, nil
	})
	if err != nil || first.secret != "" || first.Amount != 1 {
		t.Errorf("first call: %+v, %v; want the value as JSON keeps it", first, err)
	}
}

func TestSameKeyFromInsideTheFunctionFailsAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{Wait: time.Hour})
	other := b.key
	other.ID = "key-2"
	_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		_, _, err := idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 2))
		b.wantErr(err, idempotency.ErrInProgress)
		_, _, err = idempotency.DoTx(ctx, b.store, tx, b.key, charge(b.key.ID, 2))
		b.wantErr(err, idempotency.ErrInProgress)
		_, _, err = idempotency.DoTx(ctx, b.store, tx, other, func(ctx context.Context, tx pgx.Tx) (int, error) {
			_, _, err := idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 2))
			b.wantErr(err, idempotency.ErrInProgress)
			return 3, nil
		})
		return 1, err
	})
	if err != nil {
		t.Fatal(err)
	}
	b.replays(1)
	b.key = other
	b.replays(3)
}

func TestObserveTellsHowEachOperationWent(t *testing.T) {
	t.Parallel()
	var events []idempotency.Event
	b := setup(t, idempotency.Config{
		Wait: -1,
		Observe: func(_ context.Context, e idempotency.Event) {
			if e.Duration <= 0 {
				t.Errorf("%+v has no duration", e)
			}
			e.Duration, e.Waited = 0, 0
			events = append(events, e)
		},
	})
	failure := errors.New("no")
	ctx := t.Context()
	b.executes(1)
	b.replays(1)
	b.do(func(context.Context, pgx.Tx) (int, error) { return 0, nil })
	b.key.Fingerprint[0] = 1
	b.do(charge(b.key.ID, 1))
	b.key.ID = "key-2"
	b.do(func(context.Context, pgx.Tx) (int, error) { return 0, failure })
	func() {
		defer func() { recover() }()
		b.do(func(context.Context, pgx.Tx) (int, error) { panic("boom") })
	}()
	b.store.Get(ctx, b.key)
	b.key.ID = "key-1"
	for range b.store.All(ctx, b.key.Scope) {
	}
	b.store.Delete(ctx, b.key)
	b.store.Purge(ctx)

	want := []string{
		"Do executed runs=1 deleted=0 <nil>",
		"Do replayed runs=0 deleted=0 <nil>",
		"Do replayed runs=0 deleted=0 <nil>",
		"Do key_reused runs=0 deleted=0 " + idempotency.ErrKeyReused.Error(),
		"Do failed runs=1 deleted=0 no",
		"Do failed runs=1 deleted=0 idempotency: the function panicked or ended its goroutine",
		"Get not_found runs=0 deleted=0 " + idempotency.ErrNotFound.Error(),
		"All done runs=0 deleted=0 <nil>",
		"Delete done runs=0 deleted=1 <nil>",
		"Purge done runs=0 deleted=0 <nil>",
	}
	var got []string
	for _, e := range events {
		got = append(got, fmt.Sprintf("%s %s runs=%d deleted=%d %v", e.Operation, e.Outcome, e.Runs, e.Deleted, e.Err))
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestTransactionBeginsAndCommitsByTheQueriesOfTheConfig(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{TxOptions: pgx.TxOptions{BeginQuery: "START  TRANSACTION\nisolation level serializable;\n", CommitQuery: "End"}})
	value, _, err := idempotency.Do(t.Context(), b.store, b.key, func(ctx context.Context, tx pgx.Tx) (level string, err error) {
		err = tx.QueryRow(ctx, "select current_setting('transaction_isolation')").Scan(&level)
		return level, err
	})
	if value != "serializable" || err != nil {
		t.Errorf("%q, %v", value, err)
	}
}

func TestConfigErrorsNameTheField(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for field, cfg := range map[string]idempotency.Config{
		"Config.Schema":               {Schema: "a\x00b"},
		"Config.Retention":            {Retention: -time.Second},
		"Config.MaxIdle":              {MaxIdle: time.Microsecond},
		"Config.MaxResult":            {MaxResult: -1},
		"Config.TxOptions.AccessMode": {TxOptions: pgx.TxOptions{AccessMode: pgx.ReadOnly}},
	} {
		if _, err := idempotency.NewWithConfig(b.pool, cfg); err == nil || !strings.Contains(err.Error(), field+" ") {
			t.Errorf("%s: got %v", field, err)
		}
	}
	for _, query := range []string{"begin; set local role app", "set local role app", "select 1", ";begin", " ;"} {
		_, err := idempotency.NewWithConfig(b.pool, idempotency.Config{TxOptions: pgx.TxOptions{BeginQuery: query}})
		if refused := strings.TrimSpace(query) != ";"; (err != nil) != refused || refused && !strings.Contains(err.Error(), "Config.TxOptions.BeginQuery ") {
			t.Errorf("BeginQuery %q: %v", query, err)
		}
	}
	for _, query := range []string{"commit; begin", "rollback", "select 1", "prepare transaction 'x'"} {
		_, err := idempotency.NewWithConfig(b.pool, idempotency.Config{TxOptions: pgx.TxOptions{CommitQuery: query}})
		if err == nil || !strings.Contains(err.Error(), "Config.TxOptions.CommitQuery ") {
			t.Errorf("CommitQuery %q: %v", query, err)
		}
	}
	if _, err := idempotency.NewWithConfig(nil, idempotency.Config{}); err == nil {
		t.Error("a nil pool was accepted")
	}
}
