package idempotency_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// hangs waits until the process is inside its function.
func (p *process) hangs() {
	p.Helper()
	if !p.out.Scan() || p.out.Text() != "hanging" {
		p.Fatalf("the worker said %q", p.out.Text())
	}
}

func TestEightProcessesOfTwentyFiveCallersExecuteOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var processes []*process
	for i := range 8 {
		processes = append(processes, b.spawn(job{Amount: i + 1, Callers: 25, Shots: i%2 == 0}))
	}
	executed, value := 0, 0
	for _, p := range processes {
		for range 25 {
			r := p.report()
			if value == 0 {
				value = r.Value
			}
			if r.Err != "" || r.Value != value {
				t.Errorf("got %+v, others got %d", r, value)
			}
			if !r.Replayed {
				executed++
			}
		}
	}
	if executed != 1 {
		t.Errorf("%d executions", executed)
	}
	b.effects(1)
	b.replays(value)
}

func TestKilledProcessLeavesNothingAndTheNextCallRuns(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"client", "server"} {
		t.Run("at work in the "+where, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			p := b.spawn(job{Amount: 1, Callers: 1, Hang: where})
			p.hangs()
			if err := p.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			b.executes(2) // waits 10 s at most
			t.Logf("the key was free %v after the kill", time.Since(start))
			b.effects(1)
		})
	}
}

func TestProcessKilledInAStatementLeavesNothingAndTheNextCallRuns(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	p := b.spawn(job{Amount: 1, Callers: 1, Shots: true, Hang: "server"})
	p.hangs()
	b.eventually("the statement runs", func() bool {
		return query[int](b, "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'") == 1
	})
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	b.executes(2) // waits 10 s at most
	b.effects(1)
}

func TestFrozenProcessIsFencedAfterMaxIdle(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	p := b.spawn(job{Amount: 1, Callers: 1, Hang: "client", MaxIdle: 500 * time.Millisecond})
	p.hangs()
	p.signal(syscall.SIGSTOP)
	b.executes(2)
	p.signal(syscall.SIGCONT)
	// The thawed process finds its COMMIT refused, asks, and gets the result.
	if r := p.report(); r.Err != "" || r.Value != 2 || !r.Replayed {
		t.Errorf("the thawed process got %+v", r)
	}
	b.effects(1)
	b.replays(2)
}

// A step is a moment in a call, as seen on the wire between it and the server.
type step struct {
	name    string
	at      func(pgproxy.Message) bool
	commits bool // what the process has sent by then contains its COMMIT
}

// steps are in the order of a first call. Each test needs its own: they count.
func steps() []step {
	return []step{
		{"before the claim", bound(claimText), false},
		{"after the claim", answered("INSERT 0 1", 1), false},
		{"inside the function", answered("INSERT 0 1", 2), false},
		{"before the record", bound("with recorded"), true},
		{"between record and commit", bound("commit"), true},
		{"after the commit, before the answer", answered("COMMIT", 1), true},
	}
}

// crash runs a worker behind a proxy and sends it a signal at a step.
func (b *bundle) crash(s step, signal syscall.Signal, verdict pgproxy.Verdict, maxIdle time.Duration) *process {
	b.Helper()
	_, proxy := b.through(idempotency.Config{})
	var worker atomic.Pointer[process]
	reached := make(chan struct{})
	var once atomic.Bool
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if !s.at(m) || !once.CompareAndSwap(false, true) {
			return pgproxy.Pass
		}
		for worker.Load() == nil {
			time.Sleep(time.Millisecond)
		}
		worker.Load().signal(signal)
		close(reached)
		return verdict
	})
	worker.Store(b.spawn(job{Port: proxy.Port(), Amount: 1, Callers: 1, MaxIdle: maxIdle}))
	select {
	case <-reached:
	case <-time.After(20 * time.Second):
		b.Fatal("the worker never reached the step")
	}
	return worker.Load()
}

// ends checks what the next call gets after a call that did, or did not commit.
func (b *bundle) ends(committed bool) {
	b.Helper()
	start := time.Now()
	if committed {
		b.replays(1)
	} else {
		b.executes(2)
	}
	b.Logf("the next call had its answer after %v", time.Since(start).Round(time.Millisecond))
	b.effects(1)
}

func TestKilledAtEveryStepTheNextCallGetsOneEffect(t *testing.T) {
	t.Parallel()
	for _, s := range steps() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			b.crash(s, syscall.SIGKILL, pgproxy.Drop, 0)
			b.ends(s.name == "after the commit, before the answer")
		})
	}
}

// What a frozen process has handed to the kernel still arrives.
func TestFrozenAtEveryStepTheNextCallGetsOneEffectAndTheThawedOneNone(t *testing.T) {
	t.Parallel()
	for _, s := range steps() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			p := b.crash(s, syscall.SIGSTOP, pgproxy.Pass, 500*time.Millisecond)
			b.ends(s.commits)
			p.signal(syscall.SIGCONT)
			want := 2
			if s.commits {
				want = 1
			}
			// A function that is told of the fence by its own statement returns
			// that error; else the call asks, and gets the result.
			if r := p.report(); !strings.Contains(r.Err, "25P03") && (r.Err != "" || r.Value != want) {
				t.Errorf("the thawed process got %+v, want %d", r, want)
			}
			b.effects(1)
		})
	}
}

// Backends are killed at random moments, most of them near a COMMIT, since a
// call is little else. Each call ends with a result or a proven error, and the
// tables agree with what it said.
func TestTerminatedBackendsLeaveOneEffectPerAnswer(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var inDoubt, committed, again atomic.Int64
	store := b.storeOn(b.anotherPool(param("application_name", "victim")), idempotency.Config{
		Observe: func(_ context.Context, e idempotency.Event) {
			if e.InDoubt != "" {
				inDoubt.Add(1)
			}
			if e.InDoubt == "committed" {
				committed.Add(1)
			}
			if e.Runs > 1 {
				again.Add(1)
			}
		},
	})

	look := b.anotherPool(pgtest.Direct) // not over a pooler's connections, which are killed
	ctx, cancel := context.WithCancel(t.Context())
	var killer, callers sync.WaitGroup
	var kills, answers atomic.Int64
	killer.Go(func() {
		for ctx.Err() == nil {
			time.Sleep(rand.N(4 * time.Millisecond))
			if kills.Load() > 3*answers.Load()+10 {
				continue // on a slow machine, calls must still get through
			}
			var n int64
			err := look.QueryRow(ctx, `
				select count(pg_terminate_backend(pid)) from (
					select pid from pg_stat_activity
					where application_name = 'victim' and datname = current_database() and (state <> 'idle' or random() < 0.1)
					order by random() limit 1) victim`).Scan(&n)
			if err == nil {
				kills.Add(n)
			}
		}
	})
	const workers = 4
	var failed atomic.Int64
	calls := long(50, 400)
	for w := range workers {
		callers.Go(func() {
			for i := range calls {
				key := idempotency.Key{Scope: "customer-1", ID: fmt.Sprintf("%d-%d", w, i)}
				for {
					got, _, err := idempotency.Do(t.Context(), store, key, func(ctx context.Context, tx pgx.Tx) (int64, error) {
						var id int64
						err := tx.QueryRow(ctx, "insert into charges (key, amount) values ($1, 1) returning id", key.ID).Scan(&id)
						return id, err
					})
					if errors.Is(err, idempotency.ErrOutcomeUnknown) {
						t.Errorf("%s: %v", key.ID, err)
					}
					if err != nil {
						failed.Add(1)
						continue
					}
					var id int64
					if err := look.QueryRow(t.Context(), "select id from charges where key = $1", key.ID).Scan(&id); err != nil || id != got {
						t.Errorf("%s: answered %d, the table has %d, %v", key.ID, got, id, err)
					}
					answers.Add(1)
					break
				}
			}
		})
	}
	callers.Wait()
	cancel()
	killer.Wait()
	t.Logf("%d calls, %d backends killed, %d commits in doubt of which %d had taken effect, %d functions run again, %d calls failed",
		workers*calls, kills.Load(), inDoubt.Load(), committed.Load(), again.Load(), failed.Load())
	if kills.Load() == 0 {
		t.Error("nothing was killed")
	}
	if n := query[int](b, "select count(*) from charges"); n != workers*calls {
		t.Errorf("%d charges of %d keys", n, workers*calls)
	}
	if n := query[int](b, `
		select count(*) from idempotency_keys k full join charges c on c.key = k.id
		where k.result is distinct from convert_to(c.id::text, 'UTF8')`); n != 0 {
		t.Errorf("%d keys disagree with their charge", n)
	}
}

// stubborn is a value whose encoding fails while it is told to.
type stubborn struct {
	N    int
	fail *atomic.Bool
}

func (s stubborn) MarshalJSON() ([]byte, error) {
	if s.fail.CompareAndSwap(true, false) {
		return nil, errors.New("not now")
	}
	return json.Marshal(s.N)
}

func (s *stubborn) UnmarshalJSON(data []byte) error { return json.Unmarshal(data, &s.N) }

// Each seam of a call breaks once, in turn. The call that meets it ends with the
// result or with an error, and calling again always leads to one effect.
func TestFaultAtEverySeamAndTheRetryHasOneEffect(t *testing.T) {
	t.Parallel()
	type seam struct {
		cut     func(pgproxy.Message) bool // the connection breaks there
		acquire bool                       // the pool cannot connect
		fn      bool                       // the function fails
		encode  bool                       // the value cannot be encoded
		expired bool                       // there is an expired record
		fails   bool                       // the first call returns an error
	}
	for name, s := range map[string]seam{
		"acquire":          {acquire: true, fails: true},
		"begin":            {cut: sent("begin")},
		"claim":            {cut: sent(claimText)},
		"claim, answered":  {cut: answered("INSERT 0 1", 1)},
		"look-up":          {cut: sent(claimReadText), expired: true},
		"lock":             {cut: sent("for update skip locked"), expired: true},
		"function":         {fn: true, fails: true},
		"its statement":    {cut: sent("insert into charges")},
		"encode":           {encode: true, fails: true},
		"record":           {cut: sent("with recorded")},
		"commit":           {cut: bound("commit")},
		"commit, answered": {cut: answered("COMMIT", 1)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			var acquire, fn, encode atomic.Bool
			store, proxy := b.through(idempotency.Config{}, func(cfg *pgxpool.Config) {
				cfg.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
					if acquire.CompareAndSwap(true, false) {
						return errors.New("not now")
					}
					return nil
				}
			})
			if s.expired {
				b.exec("insert into idempotency_keys (id, scope, result, completed_at, expires_at, purge_after) values ($1, $2, '0', now(), now(), now())", b.key.ID, b.key.Scope)
			}
			acquire.Store(s.acquire)
			fn.Store(s.fn)
			encode.Store(s.encode)
			var cut atomic.Bool
			proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
				if s.cut != nil && s.cut(m) && cut.CompareAndSwap(false, true) {
					return pgproxy.Drop
				}
				return pgproxy.Pass
			})
			call := func() error {
				got, _, err := idempotency.Do(t.Context(), store, b.key, func(ctx context.Context, tx pgx.Tx) (stubborn, error) {
					_, err := charge(b.key.ID, 1)(ctx, tx)
					if fn.CompareAndSwap(true, false) {
						err = errors.New("not now")
					}
					return stubborn{1, &encode}, err
				})
				if err == nil && got.N != 1 {
					t.Errorf("got %d", got.N)
				}
				return err
			}
			if err := call(); (err != nil) != s.fails {
				t.Errorf("first call: %v", err)
			}
			if s.cut != nil && !cut.Load() {
				t.Error("the call did not pass the seam")
			}
			if err := call(); err != nil {
				t.Errorf("second call: %v", err)
			}
			if n := query[int](b, "select count(*) from charges"); n != 1 {
				t.Errorf("%d charges", n)
			}
		})
	}
}

// The seam after the answer: the ROLLBACK of a replay is lost.
func TestLostRollbackOfAReplayCostsOnlyItsConnection(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	store, proxy := b.through(idempotency.Config{})
	b.store = store
	var cuts atomic.Int64
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if m.Type == 'Q' && m.SQL == "rollback" && cuts.Add(1) <= 3 {
			return pgproxy.Drop
		}
		return pgproxy.Pass
	})
	for range 10 {
		b.unknown()
		b.replays(1)
	}
	if cuts.Load() < 3 {
		t.Errorf("%d rollbacks were seen", cuts.Load())
	}
	b.effects(1)
}

// schedules are random: a few calls on one key at once, of each kind, on Stores
// of each isolation level, some over lines that break at any message.
type schedules struct {
	*bundle
	stores  []*idempotency.Store
	proxies []*pgproxy.Proxy
}

// chronicleSQL keeps, for each key, the order of what happened to its record: a
// result was recorded (R), its retention was cut short (X), it was removed (D).
// The rows are part of the transactions that they tell of.
const chronicleSQL = `
create table chronicle (n bigint generated always as identity, id text, what text, result text);
create function chronicle() returns trigger language plpgsql as $$ begin
	if tg_op = 'DELETE' then
		insert into chronicle (id, what) values (old.id, 'D');
	elsif new.completed_at is null then
		return null; -- a call takes an expired record over
	elsif new.completed_at is distinct from old.completed_at then
		insert into chronicle (id, what, result) values (new.id, 'R', convert_from(new.result, 'UTF8'));
	else
		insert into chronicle (id, what) values (new.id, 'X');
	end if;
	return null;
end $$;
create trigger chronicle after update or delete on idempotency_keys for each row execute function chronicle()`

func setupSchedules(t *testing.T) *schedules {
	t.Helper()
	s := &schedules{bundle: setup(t, idempotency.Config{})}
	conn, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = conn.Conn().PgConn().Exec(t.Context(), chronicleSQL).ReadAll()
	conn.Release()
	if err != nil {
		t.Fatal(err)
	}
	for _, level := range []pgx.TxIsoLevel{"", pgx.RepeatableRead, pgx.Serializable} {
		store, proxy := s.through(idempotency.Config{
			Wait: 2 * time.Second, MaxIdle: 300 * time.Millisecond, TxOptions: pgx.TxOptions{IsoLevel: level},
		}, pgtest.MaxConns(4))
		proxy.SetRule(bad)
		s.stores, s.proxies = append(s.stores, store), append(s.proxies, proxy)
	}
	s.stores = append(s.stores, s.storeOn(s.pool, idempotency.Config{Wait: -1}))
	return s
}

func chance(p float64) bool { return rand.Float64() < p }

// bad is a line that breaks anywhere, and near a COMMIT above all.
func bad(m pgproxy.Message) pgproxy.Verdict {
	p := 0.004
	if commitOnItsWay(m) || commitAnswered(m) {
		p = 0.15
	}
	switch {
	case m.Type == pgproxy.CancelRequest && chance(0.5):
		return pgproxy.Drop
	case chance(p):
		return []pgproxy.Verdict{pgproxy.Drop, pgproxy.PassAndCut}[rand.IntN(2)]
	case chance(p) && (m.FromServer || m.Type == 'S' || m.Type == 'Q'): // not in the middle of a batch
		return pgproxy.CutClient
	case chance(p):
		time.Sleep(rand.N(50 * time.Millisecond))
	}
	return pgproxy.Pass
}

var errWanted = errors.New("the function does not want to")

// business charges the key once, and returns the charge's number. What it does
// otherwise is up to chance.
func (s *schedules) business(id string, cancel func()) func(context.Context, pgx.Tx) (int, error) {
	return func(ctx context.Context, tx pgx.Tx) (int, error) {
		var n int
		err := tx.QueryRow(ctx, "insert into charges (key, amount) values ($1, 1) returning id", id).Scan(&n)
		if err != nil {
			return 0, err
		}
		time.Sleep(rand.N(10 * time.Millisecond))
		switch k := rand.IntN(20); {
		case k < 3:
			return 0, errWanted
		case k == 3:
			panic(errWanted)
		case k == 4:
			cancel() // and then it succeeds
		case k == 5:
			cancel()
			return 0, ctx.Err()
		case k == 6:
			_, err = tx.Exec(ctx, "select pg_terminate_backend(pg_backend_pid())")
		case k == 7: // a savepoint of its own, undone
			err = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				if _, err := charge(id, 2)(ctx, tx); err != nil {
					return err
				}
				return errWanted
			})
			if errors.Is(err, errWanted) {
				err = nil
			}
		}
		return n, err
	}
}

// try makes one call of any kind, and returns what the caller can rely on.
func (s *schedules) try(key idempotency.Key) (got outcome) {
	bound := 30 * time.Second
	if chance(0.15) {
		bound = rand.N(40 * time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	defer func() {
		if p := recover(); p != nil && p != error(errWanted) {
			panic(p)
		} else if p != nil {
			got = outcome{err: errWanted}
		}
	}()
	time.Sleep(rand.N(15 * time.Millisecond))
	store, fn := s.stores[rand.IntN(len(s.stores))], s.business(key.ID, cancel)
	switch k := rand.IntN(10); {
	case k < 6:
		got.value, got.replayed, got.err = idempotency.Do(ctx, store, key, fn)
	case k < 8:
		got = s.inTx(ctx, store, key, fn)
	default: // inside the function of another key, which has the same value
		outer := idempotency.Key{Scope: "outer", ID: fmt.Sprintf("%s/%d", key.ID, rand.Int64())}
		got.value, got.replayed, got.err = idempotency.Do(ctx, store, outer, func(ctx context.Context, tx pgx.Tx) (int, error) {
			value, _, err := idempotency.DoTx(ctx, store, tx, key, fn)
			return value, err
		})
		got.replayed = true // or not: this call does not know
	}
	return got
}

// inTx is DoTx in a transaction of the caller's own, which goes the caller's ways.
func (s *schedules) inTx(ctx context.Context, store *idempotency.Store, key idempotency.Key, fn func(context.Context, pgx.Tx) (int, error)) (got outcome) {
	err := pgx.BeginTxFunc(ctx, idempotency.PoolOf(store), pgx.TxOptions{IsoLevel: store.Config().TxOptions.IsoLevel}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "set local idle_in_transaction_session_timeout = 300"); err != nil {
			return err
		}
		if chance(0.3) { // once in a savepoint that is undone
			err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				if _, _, err := idempotency.DoTx(ctx, store, tx, key, fn); err != nil {
					return err
				}
				return errWanted
			})
			if !errors.Is(err, errWanted) {
				return err
			}
		}
		got.value, got.replayed, got.err = idempotency.DoTx(ctx, store, tx, key, fn)
		if chance(0.2) {
			return errWanted
		}
		return nil // also after an error: nothing of it may remain
	})
	if got.err == nil && !got.replayed {
		got.err = err
	}
	return got
}

// run plays one schedule, and checks what came of it.
func (s *schedules) run(n int) {
	key := idempotency.Key{Scope: "customer-1", ID: fmt.Sprintf("schedule-%d", n)}
	forgetful := chance(0.4) // somebody deletes, or the retention ends, meanwhile
	var calls sync.WaitGroup
	got := make([]outcome, 2+rand.IntN(5))
	for i := range got {
		calls.Go(func() { got[i] = s.try(key) })
	}
	if forgetful {
		for range 1 + rand.IntN(2) {
			calls.Go(func() { s.forget(key) })
		}
	}
	calls.Wait()
	// Sessions that were cut off end within MaxIdle. The key is then free, or recorded.
	last := s.last(key)
	executed := 0
	for _, o := range append(got, last) {
		switch {
		case errors.Is(o.err, idempotency.ErrKeyReused) || errors.Is(o.err, idempotency.ErrAbandoned) || errors.Is(o.err, idempotency.ErrOutcomeUnknown):
			s.Errorf("%s: %v", key.ID, o.err)
			continue
		case o.err != nil:
			continue
		case !o.replayed:
			executed++
		}
		if !forgetful && o.value != last.value {
			s.Errorf("%s: one answer is %+v, the last one %+v", key.ID, o, last)
		}
		if query[int](s.bundle, "select count(*) from charges where key = $1 and id = $2", key.ID, o.value) != 1 {
			s.Errorf("%s: the answer %+v has no charge", key.ID, o)
		}
	}
	if !forgetful && executed > 1 {
		s.Errorf("%s: %d calls have executed: %+v", key.ID, executed, got)
	}
	s.check(key, got)
}

func (s *schedules) last(key idempotency.Key) outcome {
	store := s.storeOn(s.pool, idempotency.Config{Wait: time.Minute})
	value, replayed, err := idempotency.Do(context.Background(), store, key, func(ctx context.Context, tx pgx.Tx) (n int, err error) {
		err = tx.QueryRow(ctx, "insert into charges (key, amount) values ($1, 1) returning id", key.ID).Scan(&n)
		return n, err
	})
	if err != nil {
		s.Errorf("%s: the last call: %v\n%s", key.ID, err, query[string](s.bundle, `
			select coalesce(string_agg(concat_ws(' ', pid, state, wait_event, now() - state_change, query), E'\n'), '')
			from pg_stat_activity where datname = current_database() and xact_start is not null and pid <> pg_backend_pid()`))
	}
	return outcome{value, replayed, err}
}

// forget deletes the record, or lets it expire, and purges.
func (s *schedules) forget(key idempotency.Key) {
	time.Sleep(rand.N(40 * time.Millisecond))
	ctx := context.Background()
	store := s.stores[rand.IntN(len(s.stores))]
	switch rand.IntN(3) {
	case 0:
		_ = store.Delete(ctx, key)
	case 1:
		s.exec("update idempotency_keys set expires_at = now(), purge_after = now() where id = $1 and expires_at > now()", key.ID)
	case 2:
		s.exec("update idempotency_keys set expires_at = now(), purge_after = now() where id = $1 and expires_at > now()", key.ID)
		_, _ = store.Purge(ctx)
	}
}

// check compares the charges of the key with its chronicle: each has been recorded,
// each record has its charge, and none came while another one was live.
func (s *schedules) check(key idempotency.Key, got []outcome) {
	var story string
	for { // where it is SERIALIZABLE, PostgreSQL may refuse even to look
		err := s.pool.QueryRow(s.Context(), "select coalesce(string_agg(what, '' order by n), '') from chronicle where id = $1", key.ID).Scan(&story)
		if err == nil {
			break
		}
		if sqlState(err) != "40001" {
			s.Fatal(err)
		}
	}
	live := false
	for _, what := range story {
		if what == 'R' && live {
			s.Errorf("%s: recorded twice: %s; %+v", key.ID, story, got)
		}
		live = what == 'R'
	}
	if n := query[int](s.bundle, `
		select count(*) from (select id::text from charges where key = $1) c
		full join (select result from chronicle where id = $1 and what = 'R') r on r.result = c.id
		where r.result is null or c.id is null`, key.ID); n != 0 {
		s.Errorf("%s: %d charges and records do not agree: %s; %+v", key.ID, n, story, got)
	}
}

func TestRandomSchedulesOnBrokenLinesKeepThePromise(t *testing.T) {
	t.Parallel()
	s := setupSchedules(t)
	var lanes sync.WaitGroup
	const width = 4
	for lane := range width {
		lanes.Go(func() {
			for n := lane; n < long(120, 2000) && !t.Failed(); n += width {
				s.run(n)
			}
		})
	}
	lanes.Wait()
	for _, proxy := range s.proxies {
		proxy.SetRule(nil)
		proxy.CutAll() // sessions that hold nothing: begun only, or aborted, which also undoes "set local"
	}
	t.Logf("%d charges, %d records; %d were forgotten", query[int](s.bundle, "select count(*) from charges"),
		query[int](s.bundle, "select count(*) from chronicle where what = 'R'"), query[int](s.bundle, "select count(*) from chronicle where what <> 'R'"))
}

// The test shows what is not guaranteed: PostgreSQL takes silence in the middle of
// a batch for no idleness. When it fails, a limit is gone: say so in
// docs/guarantees.md.
func TestLimitClientLostInTheMiddleOfABatchHoldsItsKey(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	d.store, d.proxy = d.through(idempotency.Config{MaxIdle: 500 * time.Millisecond})
	cut := d.once(func(m pgproxy.Message) bool { return m.Type == 'B' && sent("insert into charges")(m) }, pgproxy.CutClient)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	call := d.start(ctx, d.store, charge(d.key.ID, 1))
	if simple := d.pool.Config().ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol; simple {
		d.wantOutcome(receive(d, call), outcome{1, false, nil}) // it has no batches of several messages
		return
	}
	receive(d, cut)
	time.Sleep(1500 * time.Millisecond)
	b := *d.bundle
	b.store = b.storeOn(b.pool, idempotency.Config{Wait: 200 * time.Millisecond})
	_, _, err := b.do(charge(b.key.ID, 2))
	b.wantErr(err, idempotency.ErrInProgress)
	d.proxy.CutAll() // now the server sees that the client is gone
	d.wantOutcome(receive(d, call), outcome{1, false, nil})
	d.effects(1)
}
