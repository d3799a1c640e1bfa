package idempotency_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
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

// receive waits for what another goroutine sends, or closes. It waits for a minute at most:
// what does not come then is a failure with a line, and not a test binary that hangs.
func receive[T any](t testing.TB, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(time.Minute):
		t.Fatal("what is waited for here has not come within a minute")
		panic("unreachable")
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

func (b *bundle) begin(opts pgx.TxOptions) pgx.Tx {
	b.Helper()
	tx, err := b.pool.BeginTx(context.Background(), opts)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { tx.Rollback(context.Background()) })
	return tx
}

func (b *bundle) doTx(tx pgx.Tx, fn func(context.Context, pgx.Tx) (int, error)) outcome {
	value, replayed, err := idempotency.DoTx(context.Background(), b.store, tx, b.key, fn)
	return outcome{value, replayed, err}
}

func (b *bundle) commit(tx pgx.Tx) {
	b.Helper()
	if err := tx.Commit(context.Background()); err != nil {
		b.Fatal(err)
	}
}

// usable runs a statement of the caller's own in tx.
func (b *bundle) usable(tx pgx.Tx) {
	b.Helper()
	if _, err := tx.Exec(context.Background(), "insert into charges (key, amount) values ('the caller', 0)"); err != nil {
		b.Fatalf("the transaction is not usable: %v", err)
	}
}

// through makes a store whose connections pass a proxy.
func (b *bundle) through(cfg idempotency.Config, opts ...pgtest.Option) (*idempotency.Store, *pgproxy.Proxy) {
	b.Helper()
	server := b.pool.Config().ConnConfig
	network, at := "tcp", fmt.Sprintf("%s:%d", server.Host, server.Port)
	if strings.HasPrefix(server.Host, "/") {
		network, at = "unix", fmt.Sprintf("%s/.s.PGSQL.%d", server.Host, server.Port)
	}
	proxy := pgproxy.New(b, network, at)
	opts = append(opts, address("127.0.0.1", proxy.Port()))
	return b.storeOn(b.anotherPool(opts...), cfg), proxy
}

// roundTrips counts those of op on a warm connection, the ROLLBACK that follows
// a replay in the background left out.
func roundTrips(t *testing.T, proxy *pgproxy.Proxy, op func(i int)) int {
	t.Helper()
	for i := range 3 {
		op(i)
	}
	time.Sleep(50 * time.Millisecond)
	before := proxy.RoundTrips()
	op(3)
	return int(proxy.RoundTrips() - before)
}

func named(name string) pgtest.Option {
	return func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["application_name"] = name }
}

// stays checks that a call is still waiting after a while.
func (b *bundle) stays(call <-chan outcome) {
	b.Helper()
	select {
	case got := <-call:
		b.Fatalf("the duplicate did not wait: %+v", got)
	case <-time.After(60 * time.Millisecond):
	}
}

func (b *bundle) wantOutcome(got, want outcome) {
	b.Helper()
	if got.value != want.value || got.replayed != want.replayed || !errors.Is(got.err, want.err) {
		b.Errorf("got %+v, want %+v", got, want)
	}
}

func (b *bundle) replaysQuietly(amount int) {
	got, replayed, err := b.do(charge(b.key.ID, 99))
	if got != amount || !replayed || err != nil {
		b.Errorf("Do = %v, replayed %v, %v; want a replay of %v", got, replayed, err, amount)
	}
}

// locks takes the key's advisory lock in tx, as a call does.
func (b *bundle) locks(tx pgx.Tx) {
	b.Helper()
	var taken bool
	lock, args := b.store.LockOf(b.key)
	err := tx.QueryRow(b.Context(), lock, args...).Scan(&taken)
	if err != nil || !taken {
		b.Fatalf("the advisory lock: %v, %v", taken, err)
	}
}

// unlocked checks that tx holds no key.
func (b *bundle) unlocked(tx pgx.Tx) {
	b.Helper()
	var locks int
	err := tx.QueryRow(b.Context(), "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()").Scan(&locks)
	if err != nil || locks != 0 {
		b.Errorf("the transaction has %d advisory locks, %v", locks, err)
	}
}

// The tests here are about what the call that leads for a key makes known to the
// calls that wait for it in the same process, and when.

// joined waits until n calls wait at the gate.
func (b *bundle) joined(n int) {
	b.Helper()
	b.eventually("the calls wait at the gate", func() bool { return b.store.Waiting(b.key) == n })
}

func (b *bundle) want(calls []<-chan outcome, want outcome) {
	b.Helper()
	for _, call := range calls {
		b.wantOutcome(receive(b, call), want)
	}
}

// unknown makes the Store forget the key, so that the next call has to claim it.
func (b *bundle) unknown() { b.store.Forget(b.key) }

func (b *bundle) wantKnown(when string, want bool) {
	b.Helper()
	if got := b.store.Knows(b.key); got != want {
		b.Errorf("%s: the key is known: %v, want %v", when, got, want)
	}
}

// A doubt is a call whose COMMIT meets a broken connection.
type doubt struct {
	*bundle
	proxy *pgproxy.Proxy
	event atomic.Pointer[idempotency.Event] // of the first call that ended
	runs  atomic.Int64

	cancels bool
}

func setupDoubt(t *testing.T) *doubt {
	t.Helper()
	d := &doubt{bundle: setup(t, idempotency.Config{})}
	cfg := idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) { d.event.CompareAndSwap(nil, &e) }}
	d.store, d.proxy = d.through(cfg)
	return d
}

// once applies a verdict to the first message that matches. The request to
// cancel, which pgx sends when it gives a connection up, is lost too, unless
// cancels is set.
func (d *doubt) once(matches func(pgproxy.Message) bool, verdict pgproxy.Verdict) (hit <-chan struct{}) {
	reached := make(chan struct{})
	var done atomic.Bool
	d.proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if m.Type == pgproxy.CancelRequest {
			if !d.cancels {
				return pgproxy.Drop
			}
			time.Sleep(time.Second) // until the server is in its COMMIT, also on a busy machine
		}
		if matches(m) && done.CompareAndSwap(false, true) {
			close(reached)
			return verdict
		}
		return pgproxy.Pass
	})
	return reached
}

// The moments of a COMMIT. It is bound last in its batch, before the Sync; in the
// simple protocol, record and COMMIT are one message.
func commitOnItsWay(m pgproxy.Message) bool {
	return m.Type == 'B' && m.SQL == "commit" || commitQuery(m)
}

func commitQuery(m pgproxy.Message) bool { return m.Type == 'Q' && sent("with recorded")(m) }

func commitAnswered(m pgproxy.Message) bool { return m.FromServer && m.Tag == "COMMIT" }

func commitComplete() func(pgproxy.Message) bool {
	var bound atomic.Bool
	return func(m pgproxy.Message) bool {
		if commitOnItsWay(m) {
			bound.Store(true)
		}
		return (m.Type == 'S' || commitQuery(m)) && !m.FromServer && bound.Load()
	}
}

func (d *doubt) charge(ctx context.Context, tx pgx.Tx) (int, error) {
	return charge(d.key.ID, int(d.runs.Add(1)))(ctx, tx)
}

// workerEnv makes the test binary a process that calls Do and prints what it
// got; its value is a job as JSON.
const workerEnv = "IDEMPOTENCY_TEST_WORKER"

type job struct {
	URL      string
	Database string
	Port     uint16 // of a proxy on this machine, or 0
	Key      idempotency.Key
	Amount   int
	Callers  int
	Keys     int // that each caller calls with; 0 is Key alone
	MaxIdle  time.Duration
	Shots    bool     // every second caller sends one statement
	Rides    []string // that each caller takes, from this provider, until it has a receipt, for two minutes at most; the other fields but MaxIdle do not count
	Provider string
	Once     bool   // one attempt
	Hang     string // "": not at all; "client": the function sleeps; "server": its statement does; "briefly": both go on
}

type report struct {
	Value    int
	Replayed bool
	Err      string

	Ride    string
	Receipt receipt
}

func work() int {
	var j job
	if err := json.Unmarshal([]byte(os.Getenv(workerEnv)), &j); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx := context.Background()
	cfg, err := pgxpool.ParseConfig(j.URL)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cfg.ConnConfig.Database = j.Database
	cfg.MaxConns = 4
	opts := withIsolation(nil)
	if j.Port != 0 {
		opts = append(opts, address("127.0.0.1", j.Port))
	}
	for _, opt := range opts {
		opt(cfg)
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer pool.Close()
	store, err := idempotency.NewWithConfig(pool, idempotency.Config{MaxIdle: j.MaxIdle})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for caller := range j.Callers {
		for _, id := range j.Rides {
			wg.Go(func() {
				r := j.ride(ctx, store, id)
				mu.Lock()
				defer mu.Unlock()
				json.NewEncoder(os.Stdout).Encode(r)
			})
		}
		if len(j.Rides) > 0 {
			continue
		}
		for k := range max(j.Keys, 1) {
			wg.Go(func() {
				r := j.call(ctx, store, k, j.Shots && caller%2 == 0)
				mu.Lock()
				defer mu.Unlock()
				json.NewEncoder(os.Stdout).Encode(r)
			})
		}
	}
	wg.Wait()
	return 0
}

func (j job) call(ctx context.Context, store *idempotency.Store, k int, shot bool) report {
	if j.Keys > 0 {
		j.Key.ID = fmt.Sprintf("%s-%d", j.Key.ID, k)
	}
	call := func() (int, bool, error) { return idempotency.Do(ctx, store, j.Key, j.run) }
	if shot {
		call = func() (int, bool, error) { return j.shoot(ctx, store) }
	}
	value, replayed, err := call()
	r := report{Value: value, Replayed: replayed}
	if err != nil {
		r.Err = err.Error()
	}
	return r
}

// shoot is run as one statement.
func (j job) shoot(ctx context.Context, store *idempotency.Store) (int, bool, error) {
	sleep := 0
	if j.Hang == "server" {
		fmt.Println("hanging")
		sleep = 60
	}
	return idempotency.QueryRow[int](ctx, store, j.Key, "insert into charges (key, amount) select $1, $2 + length(pg_sleep($3)::text) returning amount", j.Key.ID, j.Amount, sleep)
}

func (j job) run(ctx context.Context, tx pgx.Tx) (int, error) {
	if _, err := charge(j.Key.ID, j.Amount)(ctx, tx); err != nil {
		return 0, err
	}
	switch j.Hang {
	case "briefly":
		time.Sleep(50 * time.Millisecond)
	case "client":
		fmt.Println("hanging")
		time.Sleep(3 * time.Second)
	case "server":
		fmt.Println("hanging")
		if _, err := tx.Exec(ctx, "select pg_sleep(60)"); err != nil {
			return 0, err
		}
	}
	return j.Amount, nil
}

// A process is a worker under test.
type process struct {
	*bundle
	cmd *exec.Cmd
	out *bufio.Scanner
}

func (b *bundle) spawn(j job) *process {
	b.Helper()
	j.URL, j.Database, j.Key = os.Getenv("DATABASE_URL"), b.pool.Config().ConnConfig.Database, b.key
	task, err := json.Marshal(j)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), workerEnv+"="+string(task))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Kill()
		io.Copy(io.Discard, out)
		cmd.Wait()
	})
	return &process{bundle: b, cmd: cmd, out: bufio.NewScanner(out)}
}

func (p *process) report() report {
	p.Helper()
	var r report
	if !p.out.Scan() {
		p.Fatal("the worker ended without a report")
	}
	if err := json.Unmarshal(p.out.Bytes(), &r); err != nil {
		p.Fatalf("%s: %v", p.out.Text(), err)
	}
	return r
}

// unqualified takes the schema and the quotes out of the name of the table.
var unqualified = strings.NewReplacer(`"public".`, "", `"`, "")

// sent matches the messages that have the text in their SQL.
func sent(text string) func(pgproxy.Message) bool {
	return func(m pgproxy.Message) bool {
		return !m.FromServer && strings.Contains(unqualified.Replace(m.SQL), text)
	}
}

// bound matches a statement that is to be executed, and not only prepared. In the
// simple protocol it is one message with all others of its round trip.
func bound(text string) func(pgproxy.Message) bool {
	matches := sent(text)
	return func(m pgproxy.Message) bool { return (m.Type == 'B' || m.Type == 'Q') && matches(m) }
}

// answered matches the nth answer with a tag.
func answered(tag string, nth int64) func(pgproxy.Message) bool {
	var seen atomic.Int64
	return func(m pgproxy.Message) bool {
		return m.FromServer && m.Tag == tag && seen.Add(1) == nth
	}
}

// signal returns when the process has stopped: on a busy machine, some of its
// threads can run on for a while after SIGSTOP.
func (p *process) signal(signal syscall.Signal) {
	if err := p.cmd.Process.Signal(signal); err != nil {
		p.Error(err)
	}
	if signal == syscall.SIGSTOP {
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(p.cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
			p.Errorf("not stopped: %v, %v", status, err)
		}
	}
}

// noRemedy checks that an error is the server's and gives no advice.
func (b *bundle) noRemedy(what string, err error, code string) {
	b.Helper()
	if sqlState(err) != code {
		b.Errorf("%s: got %v, want SQLSTATE %s", what, err, code)
		return
	}
	for _, advice := range []string{"migrations.Up", "the role needs", "the primary", "policy", "a rule on"} {
		if strings.Contains(err.Error(), advice) {
			b.Errorf("%s: it says %q: %v", what, advice, err)
		}
	}
}

func (b *bundle) trigger(event, statement string) {
	b.Helper()
	b.exec(`create or replace function somebodys() returns trigger language plpgsql as $$ begin ` + statement + ` return coalesce(new, old); end $$`)
	b.exec(`create trigger somebodys before ` + event + ` on idempotency_keys for each row execute function somebodys()`)
}

// The tests here are about functions and sessions that would take a call away from
// the transaction or the table of its claim.

// A way to run a function under the bundle's key.
type way struct {
	name string
	call func(b *bundle, fn func(context.Context, pgx.Tx) (int, error)) outcome
}

// ways are Do and DoTx, each with a new key and with one whose record has expired.
func ways() []way {
	do := func(b *bundle, fn func(context.Context, pgx.Tx) (int, error)) outcome {
		value, replayed, err := b.do(fn)
		return outcome{value, replayed, err}
	}
	doTx := func(b *bundle, fn func(context.Context, pgx.Tx) (int, error)) (got outcome) {
		tx := b.begin(pgx.TxOptions{})
		defer tx.Rollback(context.Background())
		if got = b.doTx(tx, fn); got.err == nil {
			got.err = tx.Commit(context.Background())
		}
		return got
	}
	expired := func(w way) way {
		return way{w.name + ", expired", func(b *bundle, fn func(context.Context, pgx.Tx) (int, error)) outcome {
			b.exec(`insert into public.idempotency_keys (id, scope, purge_after, fingerprint, result, origin, completed_at, expires_at)
				values ($1, $2, now(), 'of before', '0', 'of before', now() - interval '1 hour', now())`, b.key.ID, b.key.Scope)
			return w.call(b, fn)
		}}
	}
	new := []way{{"Do", do}, {"DoTx", doTx}}
	return append(new, expired(new[0]), expired(new[1]))
}

// anotherTable makes a schema with a table of its own.
func (b *bundle) anotherTable(schema string) (table string) {
	b.Helper()
	table = pgx.Identifier{schema, "idempotency_keys"}.Sanitize()
	b.exec("create schema " + pgx.Identifier{schema}.Sanitize())
	b.exec("create table " + table + " (like public.idempotency_keys including all)")
	return table
}

// aRole makes a role that may use the business table alone.
func (b *bundle) aRole() (name string) {
	b.Helper()
	name = "role of " + query[string](b, "select current_database()::text")
	quoted := pgx.Identifier{name}.Sanitize()
	b.exec("create role " + quoted)
	b.exec("grant insert on charges to " + quoted)
	b.Cleanup(func() {
		b.exec("drop owned by " + quoted)
		b.exec("drop role " + quoted)
	})
	return name
}

// asRole is b whose Store and pool act as a role that may use the table, and owns nothing.
func (b *bundle) asRole(cfg idempotency.Config) *bundle {
	b.Helper()
	quoted := pgx.Identifier{b.aRole()}.Sanitize()
	b.exec("grant select, insert, update, delete on idempotency_keys to " + quoted)
	b.exec("grant usage on schema public to " + quoted)
	as := *b
	as.pool = b.anotherPool(pgtest.Direct, func(cfg *pgxpool.Config) {
		cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "set role "+quoted)
			return err
		}
	})
	as.store = as.storeOn(as.pool, cfg)
	return &as
}

// The tests here are about the settings of a session: those that somebody has made,
// and those that calls make for themselves.

func execMode(mode pgx.QueryExecMode) pgtest.Option {
	return func(cfg *pgxpool.Config) { cfg.ConnConfig.DefaultQueryExecMode = mode }
}

var execModes = map[string]pgx.QueryExecMode{
	"cache_statement": pgx.QueryExecModeCacheStatement,
	"cache_describe":  pgx.QueryExecModeCacheDescribe,
	"describe_exec":   pgx.QueryExecModeDescribeExec,
	"exec":            pgx.QueryExecModeExec,
	"simple_protocol": pgx.QueryExecModeSimpleProtocol,
}

// With IDEMPOTENCY_TEST_TABLE=partitioned the tables of the tests are partitioned by scope;
// with =distributed they also say that Citus distributes them, so that all tests run on
// the statements of citus.go. That is not Citus: see package pgtest.
var (
	tableKind        = os.Getenv("IDEMPOTENCY_TEST_TABLE")
	partitionedTable = tableKind != ""
	citusTexts       = tableKind == "distributed"
)

// claimText is a part of the first statement of a claim, claimReadText of the one that
// reads the row, and claimTrips how many round trips a claim takes more than one.
var claimText, claimReadText, claimTrips = "on conflict (id, scope) do nothing", "select fingerprint", 0

func init() {
	if citusTexts {
		claimText, claimReadText, claimTrips = "array_agg(fingerprint)", "array_agg(fingerprint)", 1
	}
}

func onOneServer(t *testing.T, why string) {
	t.Helper()
	if citusTexts {
		t.Skip(why)
	}
}

// inOnePiece is for tests that change the table as only one without partitions can be.
func inOnePiece(t *testing.T) {
	t.Helper()
	if partitionedTable {
		t.Skip("the table is partitioned")
	}
}

func serializable(b *bundle) bool {
	return query[string](b, "show default_transaction_isolation") == "serializable"
}

type fare struct {
	Rider    string
	Amount   int
	Provider string // its URL
}

type receipt struct {
	Ride    int
	Charge  string
	Refused bool
}

// takeRide is a step, a call and a step.
var takeRide = idempotency.Procedure[fare, receipt]{
	Name: "take ride",
	Run: func(ctx context.Context, op *idempotency.Op, in fare) (receipt, error) {
		ride, err := idempotency.Step(ctx, op, "create", func(ctx context.Context, tx pgx.Tx) (id int, err error) {
			err = tx.QueryRow(ctx, "insert into rides (rider, amount) values ($1, $2) returning id", in.Rider, in.Amount).Scan(&id)
			return id, err
		})
		if err != nil {
			return receipt{}, err
		}
		charge, err := idempotency.Call(ctx, op, "charge", func(ctx context.Context, key string) (payment, error) {
			return pay(ctx, in.Provider, key, payment{Rider: in.Rider, Amount: in.Amount})
		})
		if err != nil {
			return receipt{}, err
		}
		return idempotency.Step(ctx, op, "confirm", func(ctx context.Context, tx pgx.Tx) (receipt, error) {
			if charge.Declined {
				_, err := tx.Exec(ctx, "update rides set state = 'refused' where id = $1", ride)
				return receipt{Ride: ride, Refused: true}, err
			}
			_, err := tx.Exec(ctx, "update rides set state = 'paid', charge = $2 where id = $1", ride, charge.ID)
			return receipt{Ride: ride, Charge: charge.ID}, err
		})
	},
}

// A provider is somebody else's service, which keeps idempotency keys.
type provider struct {
	*httptest.Server
	mu       sync.Mutex
	charges  map[string]int // by rider: how many took effect
	answers  map[string]payment
	inFlight map[string]int
	requests atomic.Int64
	overlaps atomic.Int64                  // requests with a key that was in progress
	delay    atomic.Int64                  // a time.Duration
	lose     atomic.Int64                  // how many answers of a hundred are lost
	hooks    map[string]func(stage string) // by rider: "received", "charged"
}

type payment struct {
	ID       string
	Rider    string
	Amount   int
	Declined bool
}

func newProvider(t testing.TB) *provider {
	p := &provider{charges: map[string]int{}, answers: map[string]payment{}, inFlight: map[string]int{}, hooks: map[string]func(string){}}
	p.Server = httptest.NewServer(p)
	t.Cleanup(func() { p.CloseClientConnections(); p.Close() })
	return p
}

func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Idempotency-Key")
	var asked payment
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || len(key) != 36 {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	hook, ok := p.arrives(key, asked.Rider)
	defer p.leaves(key)
	if !ok {
		http.Error(w, "in progress", http.StatusConflict)
		return
	}
	hook("received")
	time.Sleep(time.Duration(p.delay.Load()))
	answer, ok := p.charge(key, asked)
	if !ok {
		http.Error(w, "another request", http.StatusUnprocessableEntity)
		return
	}
	hook("charged")
	if rand.Int64N(100) < p.lose.Load() {
		panic(http.ErrAbortHandler)
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// onStage has hook called at the stages of a rider's requests.
func (p *provider) onStage(rider string, hook func(stage string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hooks[rider] = hook
}

func (p *provider) arrives(key, rider string) (hook func(string), ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests.Add(1)
	p.inFlight[key]++
	if hook = p.hooks[rider]; hook == nil {
		hook = func(string) {}
	}
	if p.inFlight[key] > 1 {
		p.overlaps.Add(1)
		return hook, false
	}
	return hook, true
}

// underWay is how many requests are being answered.
func (p *provider) underWay() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, requests := range p.inFlight {
		n += requests
	}
	return n
}

func (p *provider) leaves(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inFlight[key]--
}

func (p *provider) charge(key string, asked payment) (answer payment, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	answer, known := p.answers[key]
	if known {
		return answer, answer.Rider == asked.Rider && answer.Amount == asked.Amount
	}
	asked.ID = fmt.Sprintf("ch_%d", p.requests.Load())
	if asked.Declined = asked.Amount > 1000; !asked.Declined {
		p.charges[asked.Rider]++
	}
	p.answers[key] = asked
	return asked, true
}

// pay asks the provider.
func pay(ctx context.Context, url, key string, asked payment) (answer payment, err error) {
	body, _ := json.Marshal(asked)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return answer, err
	}
	req.Header.Set("Idempotency-Key", key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		return answer, errors.New("provider: " + resp.Status + ": " + strings.TrimSpace(string(text)))
	}
	return answer, json.NewDecoder(resp.Body).Decode(&answer)
}

// A journey is a bundle with rides and their provider.
type journey struct {
	*bundle
	p *provider
}

const ridesSQL = `create table rides (id int generated always as identity primary key, rider text not null, amount int not null, state text not null default 'new', charge text)`

func setupRides(t testing.TB, cfg idempotency.Config, opts ...pgtest.Option) *journey {
	t.Helper()
	j := &journey{setup(t, cfg, opts...), newProvider(t)}
	j.exec(ridesSQL)
	return j
}

func rideKey(id string) idempotency.Key {
	return idempotency.Key{Scope: "rides", ID: id, Fingerprint: idempotency.FingerprintOf([]byte(id))}
}

func (j *journey) ride(id string) (receipt, bool, error) { return j.rideOn(j.store, id, 20) }

func (j *journey) rideOn(store *idempotency.Store, id string, amount int) (receipt, bool, error) {
	return takeRide.Do(context.Background(), store, rideKey(id), fare{Rider: id, Amount: amount, Provider: j.p.URL})
}

// once checks that each ride was made, charged and confirmed once.
func (j *journey) once(rides int) {
	j.Helper()
	for what, sql := range map[string]string{
		"rides":   "select count(*) from rides",
		"paid":    "select count(*) from rides where state = 'paid' and charge is not null",
		"results": "select count(*) from idempotency_keys where result is not null and expires_at is not null",
		"keys":    "select count(*) from idempotency_keys",
	} {
		if n := query[int](j.bundle, sql); n != rides {
			j.Errorf("%d %s, want %d", n, what, rides)
		}
	}
	if n := query[int](j.bundle, "select count(*) from idempotency_operations"); n != 0 {
		j.Errorf("%d operations have not ended", n)
	}
	j.p.mu.Lock()
	defer j.p.mu.Unlock()
	if len(j.p.charges) != rides {
		j.Errorf("%d riders were charged, want %d", len(j.p.charges), rides)
	}
	for rider, n := range j.p.charges {
		if n != 1 {
			j.Errorf("rider %s was charged %d times", rider, n)
		}
	}
}

// A part of a procedure of a test.
type part = func(ctx context.Context, op *idempotency.Op) error

func ok(name string) part {
	return func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Step(ctx, op, name, charge("key-1", 1))
		return err
	}
}

var errNoAnswer = errors.New("no answer")

func fails(name string) part {
	return func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, name, func(context.Context, string) (int, error) { return 0, errNoAnswer })
		return err
	}
}

func answers(name string, calls *atomic.Int64) part {
	return func(ctx context.Context, op *idempotency.Op) error {
		_, err := idempotency.Call(ctx, op, name, func(context.Context, string) (int64, error) { return calls.Add(1), nil })
		return err
	}
}

func procedureOf(parts ...part) idempotency.Procedure[int, int] {
	return idempotency.Procedure[int, int]{Name: "p", Run: func(ctx context.Context, op *idempotency.Op, in int) (int, error) {
		for _, p := range parts {
			if err := p(ctx, op); err != nil {
				return 0, err
			}
		}
		return in, nil
	}}
}

// charged checks how many charges there are.
func (b *bundle) charged(n int) {
	b.Helper()
	if got := query[int](b, "select count(*) from charges"); got != n {
		b.Errorf("%d charges, want %d", got, n)
	}
}

func (b *bundle) proceed(parts ...part) error {
	_, _, err := procedureOf(parts...).Do(context.Background(), b.store, b.key, 7)
	return err
}

func (b *bundle) unfinished() (all []idempotency.Unfinished) {
	b.Helper()
	for u, err := range b.store.Pending(context.Background(), 0) {
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, u)
	}
	return all
}

func (b *bundle) completes(n int, procedures ...idempotency.Completable) {
	b.Helper()
	if got, err := b.store.Complete(context.Background(), 0, procedures...); got != n || err != nil {
		b.Errorf("completed %d, %v, want %d", got, err, n)
	}
}

// ride takes a ride in a worker.
func (j job) ride(ctx context.Context, store *idempotency.Store, id string) report {
	for start := time.Now(); ; {
		got, replayed, err := takeRide.Do(ctx, store, rideKey(id), fare{Rider: id, Amount: 20, Provider: j.Provider})
		if err != nil && !j.Once && time.Since(start) < 2*time.Minute {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		r := report{Ride: id, Receipt: got, Replayed: replayed}
		if err != nil {
			r.Err = err.Error()
		}
		return r
	}
}

// expiredRows makes records that have expired.
func (b *bundle) expiredRows(n int) {
	b.Helper()
	b.exec(`insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after)
		select i::text, 'scope', '1', now(), now(), now() - i * interval '1 microsecond' from generate_series(1, $1) i`, n)
}

func (b *bundle) rows() int {
	b.Helper()
	return query[int](b, "select count(*) from idempotency_keys")
}
