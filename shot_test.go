package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// cached skips what holds only where pgx prepares statements once.
func (b *bundle) cached() {
	b.Helper()
	if mode := b.pool.Config().ConnConfig.DefaultQueryExecMode; mode != pgx.QueryExecModeCacheStatement {
		b.Skipf("of pgx's default mode, and this is %v", mode)
	}
}

func serializable(b *bundle) bool {
	return query[string](b, "show default_transaction_isolation") == "serializable"
}

func TestStatementCostsOneRoundTrip(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	for name, cfg := range map[string]idempotency.Config{
		"of its own transaction":       {},
		"with TxOptions":               {TxOptions: pgx.TxOptions{IsoLevel: pgx.RepeatableRead}},
		"serializable":                 {TxOptions: pgx.TxOptions{IsoLevel: pgx.Serializable}},
		"of a session of serializable": {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			b.cached()
			opts := []pgtest.Option{pgtest.MaxConns(1)}
			strict := cfg.TxOptions.IsoLevel == pgx.Serializable || serializable(b) && cfg.TxOptions.IsoLevel == ""
			if name == "of a session of serializable" {
				opts, strict = append(opts, param("default_transaction_isolation", "serializable"), pgtest.Direct), true
			}
			store, proxy := b.through(cfg, opts...)
			b.store = store
			call := func(i int) {
				b.key.ID = fmt.Sprint(i)
				if _, _, err := b.book(7); err != nil {
					t.Fatal(err)
				}
			}
			if got := roundTrips(t, proxy, call); got != 1 {
				t.Errorf("a first call: %d round trips", got)
			}
			if got := roundTrips(t, proxy, call); got != 1 {
				t.Errorf("a replay of a known key: %d round trips", got)
			}
			want := 1
			switch {
			case strict:
				want = 3 // and Do's claim, with its ROLLBACK in the background
				if cfg.TxOptions.IsoLevel != "" {
					want++
				}
			case cfg.TxOptions.IsoLevel != "":
				want = 2 // and a ROLLBACK
			}
			if got := roundTrips(t, proxy, func(i int) {
				b.key.ID = fmt.Sprint(i)
				b.unknown()
				call(i)
				time.Sleep(50 * time.Millisecond)
			}); got != want {
				t.Errorf("a replay of another key: %d round trips, want %d", got, want)
			}
		})
	}
}

// errors are those that the server sends through a proxy.
func serverErrors(proxy *pgproxy.Proxy) *atomic.Int64 {
	var n atomic.Int64
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if m.FromServer && m.Type == 'E' {
			n.Add(1)
		}
		return pgproxy.Pass
	})
	return &n
}

func TestDuplicateOfAStatementLeavesNoErrorInTheLogIfItsKeyIsKnownAndElseOneInWords(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	store, proxy := b.through(idempotency.Config{})
	b.store = store
	n := serverErrors(proxy)
	b.books(7, false)
	b.books(7, true)
	if serializable(b) {
		n.Add(-1) // which said that it is
	}
	if n.Load() != 0 {
		t.Errorf("%d errors", n.Load())
	}
	b.unknown()
	b.books(7, true)
	if n.Load() > 1 {
		t.Errorf("%d errors of an unknown key", n.Load())
	}
	tx := b.begin(pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if _, err := tx.Exec(t.Context(), "select set_config('idempotency.seqscan', 'on', true)"); err != nil {
		t.Fatal(err)
	}
	_, err := tx.Exec(t.Context(), strings.Replace(idempotency.GuardSQL, "coalesce(to_regclass('search_path idempotency_keys'::text)::oid = 'idempotency_keys'::regclass::oid, true)", "true", 1), b.key.ID, b.key.Scope, idempotency.LockID(b.key))
	if err == nil || !strings.Contains(err.Error(), "the key was called before, or is in progress") {
		t.Errorf("the guard: %v", err)
	}
}

func TestStatementsStayPreparedAfterADuplicateAndTheirNumberIsBounded(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.cached()
	store, proxy := b.through(idempotency.Config{}, pgtest.MaxConns(1))
	pool := idempotency.PoolOf(store)
	ours := func() (n int) {
		if err := pool.QueryRow(t.Context(), "select count(*) from pg_prepared_statements where name like 'idempotency%'").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	b.store = store
	b.books(7, false)
	b.unknown()
	b.books(7, true) // the guard fails
	before := proxy.RoundTrips()
	b.key.ID = "another"
	b.books(7, false)
	if got := proxy.RoundTrips() - before; got != 1 && !serializable(b) {
		t.Errorf("after a duplicate, a call has cost %d round trips", got)
	}
	for i := range 300 {
		key := idempotency.Key{Scope: "texts", ID: fmt.Sprint(i)}
		if got, _, err := idempotency.QueryRow[int](t.Context(), store, key, fmt.Sprintf("select %d", i)); got != i || err != nil {
			t.Fatal(got, err)
		}
	}
	if n := ours(); n > 200 || n < 100 {
		t.Errorf("%d statements of ours are prepared", n)
	}
	b.key.ID = "the first text again"
	b.books(7, false)
}

func TestStatementsThatSomebodyHasDeallocatedArePreparedAgain(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.cached()
	store, proxy := b.through(idempotency.Config{}, pgtest.MaxConns(1))
	b.store = store
	b.books(7, false)
	conn, err := idempotency.PoolOf(store).Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "deallocate all", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	if err := conn.Conn().DeallocateAll(t.Context()); err != nil { // pgx's own forgets them
		t.Fatal(err)
	}
	conn.Release()
	b.key.ID = "2"
	b.books(7, false)
	conn, err = idempotency.PoolOf(store).Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "deallocate all", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	conn.Release()
	for i := range 5 { // pgx's own statements of Do's way fail too, until it forgets them
		b.key.ID = fmt.Sprint("after-", i)
		b.book(7)
	}
	before := proxy.RoundTrips()
	b.key.ID = "3"
	b.books(7, false)
	if got := proxy.RoundTrips() - before; got != 1 && !serializable(b) {
		t.Errorf("%d round trips", got)
	}
}

// Four processes, as it were, and a gate in each.
func TestStatementsOfParallelDuplicatesTakeEffectOnce(t *testing.T) {
	t.Parallel()
	cfg := idempotency.Config{Wait: time.Minute}
	b := setup(t, cfg, pgtest.MaxConns(4))
	stores := []*idempotency.Store{b.store}
	for range 3 {
		stores = append(stores, b.storeOn(b.anotherPool(pgtest.MaxConns(4)), cfg))
	}
	for k := range 25 {
		var wg sync.WaitGroup
		var ids sync.Map
		key := idempotency.Key{Scope: "customer-1", ID: fmt.Sprint("key-", k)}
		for c := range 12 {
			wg.Go(func() {
				var got ride
				var err error
				if c%3 == 2 { // Do beside them
					got, _, err = idempotency.Do(t.Context(), stores[c%4], key, func(ctx context.Context, tx pgx.Tx) (r ride, err error) {
						err = tx.QueryRow(ctx, rideSQL, key.ID, 7).Scan(&r.ID, &r.Key, &r.Amount)
						return r, err
					})
				} else {
					got, _, err = idempotency.QueryRow[ride](t.Context(), stores[c%4], key, rideSQL, key.ID, 7)
				}
				if err != nil {
					t.Error(err)
				}
				ids.Store(got.ID, true)
			})
		}
		wg.Wait()
		answers := 0
		ids.Range(func(any, any) bool { answers++; return true })
		if n := query[int](b, "select count(*) from charges where key = $1", key.ID); n != 1 || answers != 1 {
			t.Errorf("%s: %d effects, %d answers", key.ID, n, answers)
		}
	}
}

func TestStatementWaitsForACallInProgressAndGetsItsResult(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	entered, release := make(chan struct{}), make(chan struct{})
	go func() {
		idempotency.Do(context.Background(), b.storeOn(b.anotherPool(), idempotency.Config{}), b.key, func(ctx context.Context, tx pgx.Tx) (ride, error) {
			close(entered)
			<-release
			return ride{ID: 5, Key: b.key.ID, Amount: 7}, nil
		})
	}()
	<-entered
	time.AfterFunc(100*time.Millisecond, func() { close(release) })
	if got := b.books(7, true); got.ID != 5 {
		t.Errorf("got %v", got)
	}
	short := b.storeOn(b.pool, idempotency.Config{Wait: -1})
	held := b.begin(pgx.TxOptions{})
	b.key.ID = "held"
	b.locks(held)
	_, _, err := idempotency.QueryRow[ride](t.Context(), short, b.key, rideSQL, b.key.ID, 7)
	b.wantErr(err, idempotency.ErrInProgress)
}

// What the statement has returned is known before its COMMIT is.
func TestStatementThatFailsAtItsCommitAnswersNobody(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	for name, options := range map[string]pgx.TxOptions{"batch": {}, "with a COMMIT of its own": {AccessMode: pgx.ReadWrite}} {
		b := setup(t, idempotency.Config{})
		b.exec(`create function refuse() returns trigger language plpgsql as $$ begin
				raise exception 'refused at COMMIT' using errcode = 'check_violation';
			end $$;
			create constraint trigger refused after insert on charges deferrable initially deferred for each row execute function refuse()`)
		pool := b.anotherPool(pgtest.MaxConns(1))
		b.store = b.storeOn(pool, idempotency.Config{TxOptions: options})
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		calls := make(chan outcome, 4)
		for range cap(calls) {
			go func() {
				got, replayed, err := b.book(7)
				calls <- outcome{got.Amount, replayed, err}
			}()
		}
		b.joined(cap(calls) - 1) // before the first one sends anything, so that they may have its answer
		conn.Release()
		for range cap(calls) {
			if got := <-calls; sqlState(got.err) != "23514" {
				t.Errorf("%s: %+v", name, got)
			}
		}
		b.nothingKept(name)
	}
}

// Each message of the batch is lost once, or its answer is.
func TestFaultAtEveryMessageOfAStatementHasOneEffect(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	inserted := func(then byte) func() func(pgproxy.Message) bool {
		return func() func(pgproxy.Message) bool {
			var seen atomic.Bool
			return func(m pgproxy.Message) bool {
				if m.FromServer && m.Tag == "SELECT 1" {
					seen.Store(true)
				}
				return m.FromServer && m.Type == then && seen.Load()
			}
		}
	}
	for name, match := range map[string]func() func(pgproxy.Message) bool{
		"ahead":     func() func(pgproxy.Message) bool { return bound("idempotency.seqscan") },
		"guard":     func() func(pgproxy.Message) bool { return sent("pg_try_advisory") },
		"statement": func() func(pgproxy.Message) bool { return sent("insert into charges") },
		"sync": func() func(pgproxy.Message) bool {
			return func(m pgproxy.Message) bool { return !m.FromServer && m.Type == 'S' }
		},
		"answer": inserted('C'),
		"ready":  inserted('Z'),
	} {
		for _, verdict := range []pgproxy.Verdict{pgproxy.Drop, pgproxy.PassAndCut, pgproxy.CutClient} {
			if verdict == pgproxy.CutClient && name != "answer" && name != "ready" {
				// PostgreSQL would wait for the rest of the batch: a client that is gone closes
				// the connection, and one that is cut off in the middle of a message holds its
				// key until TCP gives up, as it does in a batch of Do.
				continue
			}
			t.Run(fmt.Sprint(name, " ", verdict), func(t *testing.T) {
				t.Parallel()
				b := setup(t, idempotency.Config{})
				store, proxy := b.through(idempotency.Config{})
				for _, warm := range []bool{false, true} {
					if warm {
						idempotency.QueryRow[ride](t.Context(), store, idempotency.Key{Scope: "w", ID: "w"}, rideSQL, "w", 1)
					}
					matches := match()
					var once atomic.Bool
					proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
						if matches(m) && once.CompareAndSwap(false, true) {
							return verdict
						}
						return pgproxy.Pass
					})
					key := idempotency.Key{Scope: "customer-1", ID: fmt.Sprint("warm ", warm)}
					got, _, err := idempotency.QueryRow[ride](t.Context(), store, key, rideSQL, key.ID, 7)
					proxy.SetRule(nil)
					if err != nil && !errors.Is(err, idempotency.ErrOutcomeUnknown) {
						t.Errorf("warm %v: %v", warm, err)
					}
					again, _, err2 := idempotency.QueryRow[ride](t.Context(), b.store, key, rideSQL, key.ID, 7)
					if err2 != nil || err == nil && again != got {
						t.Errorf("warm %v: %v, then %v, %v", warm, got, again, err2)
					}
					if n := query[int](b, "select count(*) from charges where key = $1", key.ID); n != 1 {
						t.Errorf("warm %v: %d effects", warm, n)
					}
				}
			})
		}
	}
}

// The batch that was lost arrives after all, when the call has made sure of the key and
// its own second run has failed.
func TestStatementThatMayStillArriveIsOfUnknownOutcome(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("create table open (yes bool); insert into open values (false)")
	var event idempotency.Event
	store, proxy := b.through(idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) { event = e }})
	const sql = "insert into charges (key, amount) select $1, 1 / (case when yes then 1 else 0 end) from open returning id, key, amount"
	var once atomic.Bool
	matches := bound("insert into charges")
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if matches(m) && once.CompareAndSwap(false, true) {
			return pgproxy.Drop
		}
		return pgproxy.Pass
	})
	_, _, err := idempotency.QueryRow[ride](t.Context(), store, b.key, sql, b.key.ID)
	if !once.Load() {
		t.Fatal("the batch did not pass")
	}
	b.wantErr(err, idempotency.ErrOutcomeUnknown)
	if sqlState(err) != "22012" {
		t.Errorf("the error does not say how the second run ended: %v", err)
	}
	if event.Outcome != "outcome_unknown" || event.InDoubt != "unknown" || event.Operation != "QueryRow" {
		t.Errorf("event %+v", event)
	}
	proxy.SetRule(nil)
	b.exec("update open set yes = true")
	if got, _, err := idempotency.QueryRow[ride](t.Context(), store, b.key, sql, b.key.ID); err != nil || got.Amount != 1 {
		t.Errorf("the next call: %v, %v", got, err)
	}
	b.effects(1)
}

func TestContextThatEndsWhileTheStatementRunsCancelsIt(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	pool := b.anotherPool(pgtest.MaxConns(1))
	b.store = b.storeOn(pool, idempotency.Config{})
	b.books(7, false)
	made := pool.Stat().NewConnsCount()
	for name, end := range map[string]func() (context.Context, context.CancelFunc){
		"cancelled": func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(200*time.Millisecond, cancel)
			return ctx, cancel
		},
		"deadline": func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), 200*time.Millisecond)
		},
	} {
		ctx, cancel := end()
		b.key.ID = name
		start := time.Now()
		_, _, err := idempotency.QueryRow[ride](ctx, b.store, b.key, "insert into charges (key, amount) select $1, length(pg_sleep(30)::text) returning id, key, amount", b.key.ID)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
		b.wantErr(err, ctx.Err())
		if errors.Is(err, idempotency.ErrOutcomeUnknown) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
		b.nothingKept(name)
		b.books(7, false)
	}
	if n := pool.Stat().NewConnsCount(); n != made {
		t.Errorf("%d connections were lost", n-made)
	}
}

// A statement that PostgreSQL does not cancel is in doubt after a second, and its end is
// found out by claiming the key.
func TestContextThatEndsWhileTheAnswerIsLostIsFoundOut(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	store, proxy := b.through(idempotency.Config{})
	idempotency.QueryRow[ride](t.Context(), store, idempotency.Key{Scope: "w", ID: "w"}, rideSQL, "w", 1)
	ctx, cancel := context.WithCancel(t.Context())
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if m.Type == pgproxy.CancelRequest {
			return pgproxy.Drop
		}
		if m.FromServer && m.Tag == "SELECT 1" { // what is behind it waits
			cancel()
			time.Sleep(3 * time.Second)
		}
		return pgproxy.Pass
	})
	defer proxy.SetRule(nil)
	got, replayed, err := idempotency.QueryRow[ride](ctx, store, b.key, rideSQL, b.key.ID, 7)
	if err != nil && !errors.Is(err, idempotency.ErrOutcomeUnknown) || err == nil && (!replayed || got.Amount != 7) {
		t.Errorf("%v, %v, %v", got, replayed, err)
	}
	proxy.SetRule(nil)
	if _, _, err := b.book(7); err != nil {
		t.Error(err)
	}
	b.effects(1)
}

func TestStatementsOfDistinctKeysDoNotFailEachOther(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	for _, level := range []string{"read committed", "repeatable read", "serializable"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			var runs, calls atomic.Int64
			b := setup(t, idempotency.Config{})
			pool := b.anotherPool(param("default_transaction_isolation", level), pgtest.MaxConns(8))
			store := b.storeOn(pool, idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) {
				runs.Add(int64(e.Runs))
				if e.Operation == "QueryRow" {
					calls.Add(1)
				}
			}})
			var wg sync.WaitGroup
			for w := range 8 {
				wg.Go(func() {
					for i := range 40 {
						key := idempotency.Key{Scope: "s", ID: fmt.Sprintf("%06d", w*1000+i)}
						if _, _, err := idempotency.QueryRow[int](t.Context(), store, key, "select $1::int", 7); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			if runs.Load() != 320 || calls.Load() != 320 {
				t.Errorf("%d runs of %d calls", runs.Load(), calls.Load())
			}
		})
	}
}

func TestTriggerThatChangesOrDropsTheRecordOfAStatementIsAnError(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for name, body := range map[string]string{
		"drops it":                "return null;",
		"changes the result":      "new.result := '9'; return new;",
		"drops the result":        "new.result := null; return new;",
		"changes the fingerprint": "new.fingerprint := 'x'; return new;",
		"changes the origin":      "new.origin := 'x'; return new;",
		"prolongs the retention":  "new.expires_at := new.expires_at + interval '1 day'; return new;",
		"puts the purge off":      "new.purge_after := new.purge_after + interval '1 second'; return new;",
	} {
		if citusTexts && name == "puts the purge off" {
			continue // only the coordinator could tell
		}
		b.exec("create or replace function spoil() returns trigger language plpgsql as $$ begin if new.completed_at is null then return new; end if; " + body + " end $$")
		b.exec("create trigger spoil before insert or update on idempotency_keys for each row execute function spoil()")
		b.key.ID = name
		if _, _, err := b.book(7); err == nil || !strings.Contains(err.Error(), "trigger") {
			t.Errorf("%s: %v", name, err)
		}
		b.nothingKept(name)
		b.exec("drop trigger spoil on idempotency_keys")
		b.books(7, false)
	}
}

func TestStatementOnAConnectionThatLeadsToAnotherTableIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.books(7, false)
	b.anotherTable("tenant_b")
	b.exec("grant usage on schema tenant_b to public")
	pool := b.anotherPool(param("search_path", "public"), pgtest.MaxConns(1), pgtest.Direct)
	store := b.storeOn(pool, idempotency.Config{})
	if _, _, err := idempotency.QueryRow[ride](t.Context(), store, idempotency.Key{Scope: "s", ID: "1"}, rideSQL, "1", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), "set search_path = tenant_b, public"); err != nil {
		t.Fatal(err)
	}
	_, _, err := idempotency.QueryRow[ride](t.Context(), store, b.key, rideSQL, b.key.ID, 1)
	if err == nil || !strings.Contains(err.Error(), "tenant_b") {
		t.Errorf("got %v", err)
	}
	b.effects(1)
	b.key.ID = "of no record"
	if _, _, err := idempotency.QueryRow[ride](t.Context(), store, b.key, rideSQL, b.key.ID, 1); err == nil || !strings.Contains(err.Error(), "tenant_b") {
		t.Errorf("a new key: %v", err)
	}
	b.nothingKept("a new key")
}

func TestNullIsTheZeroValueOrNil(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for range 2 {
		n, _, err := idempotency.QueryRow[int](t.Context(), b.store, idempotency.Key{Scope: "s", ID: "int"}, "select null::int")
		if n != 0 || err != nil {
			t.Errorf("an int: %d, %v", n, err)
		}
		p, _, err := idempotency.QueryRow[*int](t.Context(), b.store, idempotency.Key{Scope: "s", ID: "pointer"}, "select null::int")
		if p != nil || err != nil {
			t.Errorf("a pointer: %v, %v", p, err)
		}
	}
}

func TestStatementSeesTheSettingsOfItsSessionAndLeavesThem(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for _, seqscan := range []string{"on", "off"} {
		pool := b.anotherPool(param("enable_seqscan", seqscan), pgtest.MaxConns(1), pgtest.Direct)
		store := b.storeOn(pool, idempotency.Config{})
		show := func() (s [3]string) {
			err := pool.QueryRow(t.Context(), "select current_setting('enable_seqscan'), current_setting('client_connection_check_interval'), coalesce(current_setting('idempotency.seqscan', true), '')").Scan(&s[0], &s[1], &s[2])
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		before := show()
		for i := range 3 {
			key := idempotency.Key{Scope: seqscan, ID: fmt.Sprint(i)}
			for range 2 {
				got, _, err := idempotency.QueryRow[string](t.Context(), store, key, "select current_setting('enable_seqscan')")
				if got != seqscan || err != nil {
					t.Errorf("enable_seqscan is %s in the statement, %v; want %s", got, err, seqscan)
				}
				store.Forget(key)
			}
		}
		if after := show(); after[0] != before[0] || after[1] != before[1] || after[2] != "" {
			t.Errorf("the session has %v, and had %v", after, before)
		}
	}
}

func TestStatementRunsWithTheTransactionsOptions(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for i, c := range []struct {
		opts pgx.TxOptions
		want string
	}{
		{pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, "repeatable read off"},
		{pgx.TxOptions{IsoLevel: pgx.Serializable, AccessMode: pgx.ReadWrite, DeferrableMode: pgx.Deferrable}, "serializable on"},
		{pgx.TxOptions{BeginQuery: "begin isolation level repeatable read deferrable;", CommitQuery: "end"}, "repeatable read on"},
	} {
		store := b.storeOn(b.pool, idempotency.Config{TxOptions: c.opts})
		for range 3 {
			key := idempotency.Key{Scope: "s", ID: fmt.Sprint(i)}
			got, _, err := idempotency.QueryRow[string](t.Context(), store, key, "select current_setting('transaction_isolation') || ' ' || current_setting('transaction_deferrable')")
			if got != c.want || err != nil {
				t.Errorf("%+v: %q, %v; want %q", c.opts, got, err, c.want)
			}
			store.Forget(key)
		}
	}
}

func TestEventOfAStatementSaysHowItWent(t *testing.T) {
	t.Parallel()
	var events []idempotency.Event
	b := setup(t, idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) { events = append(events, e) }})
	b.exec("create table late (id int, constraint late_u unique (id) deferrable initially deferred); insert into late values (1)")
	b.books(7, false)
	b.books(7, true)
	b.unknown()
	b.books(7, true)
	b.wantKnown("it was seen recorded", true)
	b.key.ID = "fails"
	idempotency.Query[int](t.Context(), b.store, b.key, "select 1 / (random() * 0)::int")
	idempotency.Query[int](t.Context(), b.store, b.key, "insert into late values (1) returning id")
	for i, want := range []struct {
		operation, outcome string
		runs               int
		failed             bool
	}{{"QueryRow", "executed", 1, false}, {"QueryRow", "replayed", 0, false}, {"QueryRow", "replayed", 0, false}, {"Query", "failed", 2, true}, {"Query", "failed", 2, true}} {
		e := events[i]
		if (serializable(b) || citusTexts) && want.failed {
			e.Runs = want.runs
		}
		if e.Operation != want.operation || e.Outcome != want.outcome || e.Runs != want.runs || (e.Err != nil) != want.failed || e.Duration <= 0 || e.InDoubt != "" {
			t.Errorf("event %+v, want %+v", e, want)
		}
	}
}

// Waiters that came before the statement was sent get its answer: that of an execution,
// and that of a duplicate.
func TestWaitersOfAStatementGetItsAnswerWithoutAQuery(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	for name, recorded := range map[string]bool{"executed": false, "replayed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			b.cached()
			if recorded {
				b.books(7, false)
			}
			store, proxy := b.through(idempotency.Config{Wait: time.Minute}, pgtest.MaxConns(1))
			b.store = store
			for i := range 2 { // the statements are prepared
				key := idempotency.Key{Scope: "s", ID: fmt.Sprint("prepares ", i)}
				if _, _, err := idempotency.QueryRow[ride](t.Context(), store, key, rideSQL, key.ID, 7); err != nil {
					t.Fatal(err)
				}
			}
			held, err := idempotency.PoolOf(store).Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			answers := make(chan ride, 11)
			call := func() {
				got, _, err := idempotency.QueryRow[ride](t.Context(), store, b.key, rideSQL, b.key.ID, 7)
				if err != nil {
					t.Error(err)
				}
				answers <- got
			}
			go call()
			b.eventually("the leader waits for the connection", func() bool { return idempotency.PoolOf(store).Stat().EmptyAcquireCount() > 0 })
			for range 10 {
				go call()
			}
			b.joined(10)
			before := proxy.RoundTrips()
			held.Release()
			first := <-answers
			for range 10 {
				if got := <-answers; got != first {
					t.Errorf("%+v and %+v", got, first)
				}
			}
			if got := proxy.RoundTrips() - before; got > 1 && !serializable(b) {
				t.Errorf("%d round trips for eleven calls", got)
			}
			b.effects(1)
		})
	}
}

// An ERROR at COMMIT proves an abort only if PostgreSQL says so in so many words. This one
// is found out, and not run again.
func TestErrorOfTheCommitOfAStatementIsFoundOut(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	var event idempotency.Event
	b := setup(t, idempotency.Config{
		TxOptions: pgx.TxOptions{IsoLevel: pgx.ReadCommitted},
		Observe:   func(_ context.Context, e idempotency.Event) { event = e },
	})
	b.exec(`create function refuse() returns trigger language plpgsql as $$ begin raise exception 'at the commit'; end $$;
		create constraint trigger refuse after insert on charges deferrable initially deferred for each row execute function refuse()`, pgx.QueryExecModeSimpleProtocol)
	_, _, err := idempotency.QueryRow[ride](t.Context(), b.store, b.key, rideSQL, b.key.ID, 7)
	if sqlState(err) != "P0001" || event.InDoubt != "aborted" || event.Runs != 1 {
		t.Errorf("%v, %+v", err, event)
	}
	b.effects(0)
}

// What is used stays prepared, however many others come and go.
func TestStatementsThatAreUsedAreNotPreparedAgain(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.cached()
	store, proxy := b.through(idempotency.Config{}, pgtest.MaxConns(1))
	var prepared atomic.Int64
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if m.Type == 'P' && !m.FromServer && strings.Contains(m.SQL, "idempotency.seqscan") && strings.Contains(m.SQL, "client_connection_check_interval") {
			prepared.Add(1)
		}
		return pgproxy.Pass
	})
	for i := range 600 {
		key := idempotency.Key{Scope: "texts", ID: fmt.Sprint(i)}
		if _, _, err := idempotency.QueryRow[int](t.Context(), store, key, fmt.Sprintf("select %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := prepared.Load(); n != 1 && !serializable(b) {
		t.Errorf("the first statement of each call was prepared %d times", n)
	}
}
