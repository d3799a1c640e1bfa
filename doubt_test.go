package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func (d *doubt) expect(got outcome, want outcome, runs int64, inDoubt string) {
	d.Helper()
	d.wantOutcome(got, want)
	if e := d.event.Load(); d.runs.Load() != runs || e.Runs != int(runs) || e.InDoubt != inDoubt {
		d.Errorf("%d runs, event %+v; want %d runs, in doubt %q", d.runs.Load(), e, runs, inDoubt)
	}
	d.proxy.SetRule(nil)
}

func TestConnectionCutBeforeCommitArrivesRunsAgainInTheSameCall(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	d.once(commitOnItsWay, pgproxy.Drop)
	value, replayed, err := d.do(d.charge)
	d.expect(outcome{value, replayed, err}, outcome{2, false, nil}, 2, "aborted")
	d.effects(1)
	d.replays(2)
}

func TestLostCommitAnswerIsFoundOutByTheSameCall(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	d.once(commitAnswered, pgproxy.Drop)
	value, replayed, err := d.do(d.charge)
	d.expect(outcome{value, replayed, err}, outcome{1, true, nil}, 1, "committed")
	d.wantKnown("after a commit in doubt that took effect", true)
	d.effects(1)
	d.replays(1)
}

// The server shows a commit before its standbys have it. A write of the call's own waits for
// them, up to that commit.
func TestRecordThatIsFoundInDoubtIsConfirmedByAWrite(t *testing.T) {
	onOneServer(t, "the write is another one")
	t.Parallel()
	d := setupDoubt(t)
	var confirmed atomic.Bool
	lost, confirms := answered("COMMIT", 1), bound("pg_logical_emit_message(true,") // what is not transactional waits for nothing
	var tries atomic.Int64
	d.proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if confirms(m) {
			confirmed.Store(true)
		}
		if lost(m) || confirms(m) && tries.Add(1) == 1 { // the first confirmation fails
			return pgproxy.Drop
		}
		return pgproxy.Pass
	})
	value, replayed, err := d.do(d.charge)
	d.wantOutcome(outcome{value, replayed, err}, outcome{1, true, nil})
	if !confirmed.Load() {
		t.Error("the record was returned as it was found")
	}
	d.effects(1)
}

func TestLostCommitAnswerReachesTheWaitersToo(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	hit := d.once(commitAnswered, pgproxy.Drop)
	k := newBlocker()
	first := d.start(t.Context(), d.store, k.charge(d.key.ID, 1))
	receive(d, k.begun)
	var waiters []<-chan outcome
	for range 10 {
		waiters = append(waiters, d.start(t.Context(), d.store, k.charge(d.key.ID, 2)))
	}
	d.stays(waiters[9])
	k.goOn <- nil
	receive(d, hit)
	d.wantOutcome(receive(d, first), outcome{1, true, nil})
	for _, w := range waiters {
		d.wantOutcome(receive(d, w), outcome{1, true, nil})
	}
	d.effects(1)
}

// slowCommit makes the COMMIT of the first charge take a while, on the server.
func (d *doubt) slowCommit(seconds float64, ending string) {
	d.exec(fmt.Sprintf(`create function linger() returns trigger language plpgsql as $$ begin if new.amount = 1 then perform pg_sleep(%v); end if; %s end $$`, seconds, ending))
	d.exec(`create constraint trigger linger after insert on charges deferrable initially deferred for each row execute function linger()`)
}

// A look-up says "not there" while the old transaction is still committing.
func TestLookUpIsFooledByACommitUnderWayAndDoIsNot(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	d.slowCommit(0.4, "return null;")
	hit := d.once(commitComplete(), pgproxy.CutClient)
	call := d.start(t.Context(), d.store, d.charge)
	receive(d, hit)
	if _, err := d.storeOn(d.pool, idempotency.Config{}).Get(t.Context(), d.key); !errors.Is(err, idempotency.ErrNotFound) {
		t.Errorf("the look-up was not fooled, so this test shows nothing: %v", err)
	}
	d.expect(receive(d, call), outcome{1, true, nil}, 1, "committed")
	d.effects(1)
}

func TestCommitThatFailsAfterTheConnectionIsLostRunsAgain(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	d.slowCommit(0.4, `if (select min(amount) from charges) = 1 then raise 'over the limit'; end if; return null;`)
	d.once(commitComplete(), pgproxy.CutClient)
	value, replayed, err := d.do(d.charge)
	d.expect(outcome{value, replayed, err}, outcome{2, false, nil}, 2, "aborted")
	d.effects(1)
	d.replays(2)
}

func TestCallersCancelledContextDoesNotPutACommitInDoubt(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	d.slowCommit(0.4, "return null;")
	ctx, cancel := context.WithCancel(t.Context())
	hit := d.once(commitComplete(), pgproxy.Pass)
	call := d.start(ctx, d.store, d.charge)
	receive(d, hit)
	cancel()
	d.expect(receive(d, call), outcome{1, false, nil}, 1, "")
	d.effects(1)
}

func TestCancelledCallerInDoubtStillGetsTheRecordedResult(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	d.slowCommit(0.4, "return null;")
	ctx, cancel := context.WithCancel(t.Context())
	hit := d.once(commitComplete(), pgproxy.CutClient)
	call := d.start(ctx, d.store, d.charge)
	receive(d, hit)
	cancel()
	d.expect(receive(d, call), outcome{1, true, nil}, 1, "committed")
	d.effects(1)
}

func TestCancelledCallerIsNotRunAgainAfterAProvenAbort(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	ctx, cancel := context.WithCancel(t.Context())
	d.once(func(m pgproxy.Message) bool {
		if commitOnItsWay(m) {
			cancel()
			return true
		}
		return false
	}, pgproxy.Drop)
	got := receive(d, d.start(ctx, d.store, d.charge))
	if got.err == nil || errors.Is(got.err, idempotency.ErrOutcomeUnknown) {
		t.Errorf("got %+v, want the error of the lost connection", got)
	}
	if d.runs.Load() != 1 {
		t.Errorf("%d runs", d.runs.Load())
	}
	d.effects(0)
	d.proxy.SetRule(nil)
	d.executes(7)
}

func TestCommitAnsweredWithRollbackIsAnError(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.store.CommitBy("rollback")
	_, _, err := b.do(charge(b.key.ID, 1))
	b.wantErr(err, pgx.ErrTxCommitRollback)
	var calls atomic.Int64
	b.wantErr(b.proceed(ok("a"), answers("c", &calls)), pgx.ErrTxCommitRollback)
	if calls.Load() != 0 {
		t.Error("a call was made behind a step that is not recorded")
	}
	b.effects(0)
}

// The request to cancel arrives, and aborts the COMMIT.
func TestCommitCancelledByTheDriverRunsAgain(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	d.slowCommit(30, "return null;")
	d.cancels = true
	d.once(commitComplete(), pgproxy.CutClient)
	value, replayed, err := d.do(d.charge)
	d.expect(outcome{value, replayed, err}, outcome{2, false, nil}, 2, "aborted")
	d.effects(1)
}

func TestServerThatStaysAwayMakesTheOutcomeUnknown(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	d.proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if commitAnswered(m) {
			d.proxy.SetRule(func(pgproxy.Message) pgproxy.Verdict { return pgproxy.Drop })
			return pgproxy.Drop
		}
		return pgproxy.Pass
	})
	start := time.Now()
	_, _, err := d.do(d.charge)
	d.wantErr(err, idempotency.ErrOutcomeUnknown)
	if e := d.event.Load(); e.InDoubt != "unknown" || e.Outcome != "outcome_unknown" {
		t.Errorf("event %+v", e)
	}
	if took := time.Since(start); took < 29*time.Second || took > 45*time.Second {
		t.Errorf("took %v", took)
	}
	d.proxy.SetRule(nil)
	d.replays(1)
	d.effects(1)
}

// Near the end of the retention the record of the lost COMMIT may have come and
// gone: what is not there then proves nothing.
func TestDoubtBeyondTheRetentionIsUnknown(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	d.store, d.proxy = d.through(idempotency.Config{Retention: 300 * time.Millisecond})
	d.slowCommit(0.4, "return null;")
	d.once(commitComplete(), pgproxy.CutClient)
	_, _, err := d.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		d.runs.Add(1)
		return charge(d.key.ID, 1)(ctx, tx)
	})
	// The COMMIT takes 400 ms: the record has expired when it becomes visible.
	d.wantErr(err, idempotency.ErrOutcomeUnknown)
	if d.runs.Load() != 1 {
		t.Errorf("%d runs", d.runs.Load())
	}
}

func TestConnectionLostInTheFunctionRunsAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	runs := 0
	value, replayed, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		runs++
		if runs < 3 {
			var pid int // not what the driver was told, which can be a pooler's
			if err := tx.QueryRow(ctx, "select pg_backend_pid()").Scan(&pid); err != nil {
				return 0, err
			}
			b.exec("select pg_terminate_backend($1)", pid)
		}
		return charge(b.key.ID, runs)(ctx, tx)
	})
	b.wantOutcome(outcome{value, replayed, err}, outcome{3, false, nil})
	b.effects(1)
}

func TestConnectionLostBeforeTheClaimIsReplaced(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	store, proxy := b.through(idempotency.Config{})
	b.store = store
	b.executes(1)
	proxy.CutAll() // the idle connections of the pool are dead now
	b.key.ID = "key-2"
	b.executes(2)
}

func TestFunctionsOwnNetworkErrorIsNotRetried(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	_, dialErr := pgconn.Connect(t.Context(), "postgres://127.0.0.1:1/none")
	for _, own := range []error{dialErr, io.EOF, io.ErrUnexpectedEOF, pgconn.ErrConnClosed, &net.OpError{Op: "read", Err: errors.New("connection reset by peer")}} {
		runs := 0
		_, _, err := b.do(func(context.Context, pgx.Tx) (int, error) {
			runs++
			return 0, own
		})
		if err != own || runs != 1 {
			t.Errorf("%v: %d runs, %v", own, runs, err)
		}
	}
}

func TestRollbackThatHangsIsGivenUpAndTheErrorOfTheFunctionReturned(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	store, proxy := b.through(idempotency.Config{})
	goOn := make(chan struct{})
	defer close(goOn)
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if m.Type == 'Q' && m.SQL == "rollback" {
			<-goOn
		}
		return pgproxy.Pass
	})
	failure := errors.New("no")
	call := b.start(t.Context(), store, func(context.Context, pgx.Tx) (int, error) { return 0, failure })
	b.wantOutcome(receive(b, call), outcome{err: failure})
}

// A deadline that is left on a connection ends a later call, of anybody.
func TestCallLeavesNoDeadlineOnItsConnection(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var deadline atomic.Pointer[time.Time]
	var set atomic.Int64
	pool := b.anotherPool(pgtest.MaxConns(1), func(cfg *pgxpool.Config) {
		dial := cfg.ConnConfig.DialFunc
		cfg.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			return watchedConn{conn, &deadline, &set}, err
		}
	})
	b.store = b.storeOn(pool, idempotency.Config{})
	for _, c := range []struct {
		call  func()
		bound bool // its COMMIT
	}{
		{func() { b.executes(1) }, true},
		{func() {
			_, _, err := idempotency.QueryRow[int](t.Context(), b.store, idempotency.Key{Scope: "s", ID: "1"}, "insert into charges (key, amount) values ('1', 1) returning amount")
			b.wantErr(err, nil)
		}, false},
		{func() {
			b.key.ID = "a procedure"
			b.wantErr(b.proceed(ok("a"), fails("c")), errNoAnswer)
		}, true},
	} {
		before := set.Load()
		c.call()
		if at := deadline.Load(); at == nil || !at.IsZero() {
			t.Errorf("the deadline is %v", at)
		}
		if c.bound && set.Load() == before {
			t.Errorf("%s: the COMMIT has no deadline", b.key.ID)
		}
	}
}

// A watchedConn keeps the deadline that it was given last.
type watchedConn struct {
	net.Conn
	deadline *atomic.Pointer[time.Time]
	set      *atomic.Int64 // how many there were
}

func (c watchedConn) SetDeadline(t time.Time) error {
	c.deadline.Store(&t)
	if !t.IsZero() {
		c.set.Add(1)
	}
	return c.Conn.SetDeadline(t)
}

// The backend of a lost connection holds the key until it notices. A call that
// has run for longer than Wait by then still waits for it.
func TestWaitBeginsAnewAfterALostConnection(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t)
	d.store, d.proxy = d.through(idempotency.Config{Wait: 2 * time.Second})
	hit := d.once(func(m pgproxy.Message) bool { return m.Type == 'Q' && m.SQL == "select pg_sleep(0.5)" }, pgproxy.CutClient)
	go func() {
		receive(d, hit)
		time.Sleep(700 * time.Millisecond)
		d.proxy.CutAll() // now the server notices
	}()
	value, replayed, err := d.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		if d.runs.Add(1) == 1 {
			time.Sleep(2100 * time.Millisecond)
		}
		if _, err := tx.Exec(ctx, "select pg_sleep(0.5)"); err != nil {
			return 0, err
		}
		return charge(d.key.ID, 1)(ctx, tx)
	})
	d.wantOutcome(outcome{value, replayed, err}, outcome{1, false, nil})
}

// What is not there proves that nothing was committed for nine tenths of the
// retention, and nothing afterwards: a record may have come and gone. Another
// call's record proves as much; one of the same request is the answer.
func TestDoubtIsConclusiveForNineTenthsOfTheRetention(t *testing.T) {
	t.Parallel()
	const retention = 1000 * time.Hour
	for name, c := range map[string]struct {
		ago      time.Duration
		recorded bool
		other    bool // by another request
		found    bool
		err      error
	}{
		"nothing, before":       {ago: 890 * time.Hour, err: idempotency.ErrLost},
		"nothing, after":        {ago: 910 * time.Hour, err: idempotency.ErrOutcomeUnknown},
		"the request, before":   {ago: 890 * time.Hour, recorded: true, found: true},
		"the request, after":    {ago: 910 * time.Hour, recorded: true, found: true},
		"another one's, before": {ago: 890 * time.Hour, recorded: true, other: true, found: true},
		"another one's, after":  {ago: 910 * time.Hour, recorded: true, other: true, err: idempotency.ErrOutcomeUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{Retention: retention})
			if c.recorded {
				b.executes(1)
			}
			if c.other {
				b.key.Fingerprint = idempotency.FingerprintOf([]byte("other"))
			}
			found, err := b.store.Resolve(t.Context(), b.key, c.ago)
			if found != c.found || !errors.Is(err, c.err) || errors.Is(err, idempotency.ErrOutcomeUnknown) != (c.err == idempotency.ErrOutcomeUnknown) {
				t.Errorf("found %v, %v; want %v, %v", found, err, c.found, c.err)
			}
		})
	}
}

// After a restart of the server, all connections of a pool are dead, and the
// pool does not know that.
func TestPoolOfSixteenDeadConnectionsServesTheNextCall(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{}, pgtest.MaxConns(2))
	const conns = 16
	store, proxy := b.through(idempotency.Config{}, pgtest.MaxConns(conns), func(cfg *pgxpool.Config) {
		cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false } // as if used just now
	})
	b.store = store
	k := newBlocker()
	var calls []<-chan outcome
	for i := range conns {
		other := *b
		other.key.ID = fmt.Sprint("warm-", i)
		calls = append(calls, other.start(t.Context(), store, k.charge(other.key.ID, 1)))
		receive(b, k.begun)
	}
	for range conns {
		k.goOn <- nil
	}
	b.want(calls, outcome{1, false, nil})
	proxy.CutAll()
	b.executes(1)
	b.effects(1)
}

func TestPoolOfOneMayLoseMoreThanOneConnection(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	store, proxy := b.through(idempotency.Config{}, pgtest.MaxConns(1))
	b.store = store
	var lost atomic.Int64
	begins := bound("begin")
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if begins(m) && lost.Add(1) <= 5 {
			return pgproxy.Drop
		}
		return pgproxy.Pass
	})
	b.executes(1)
	if lost.Load() < 6 {
		t.Errorf("%d connections were lost", lost.Load())
	}
}

func TestOperationIsMadeAgainOnlyWhereNothingCanHaveBeenDone(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	conflict, ended := &pgconn.PgError{Code: "40001"}, errors.New("no more")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx      context.Context
		executed bool
		err      error
		want     int // how often it is made, where the fourth one succeeds
	}{
		"a conflict":                    {t.Context(), false, conflict, 4},
		"a conflict that was executed":  {t.Context(), true, conflict, 1},
		"a conflict, context ended":     {canceled, false, conflict, 1},
		"a lost connection":             {t.Context(), false, pgconn.ErrConnClosed, 4},
		"a lost connection, executed":   {t.Context(), true, pgconn.ErrConnClosed, 1},
		"a lost connection, context":    {canceled, false, pgconn.ErrConnClosed, 1},
		"an error that says no such":    {t.Context(), false, ended, 1},
		"a conflict inside another one": {t.Context(), false, errors.Join(ended, conflict), 4},
	} {
		made := 0
		err := b.store.Retried(c.ctx, func() (bool, error) {
			if made++; made == 4 {
				return true, nil
			}
			return c.executed, c.err
		})
		if made != c.want || (err == nil) != (c.want == 4) {
			t.Errorf("%s: made %d times, want %d: %v", name, made, c.want, err)
		}
	}
	made := 0
	err := b.store.Retried(t.Context(), func() (bool, error) { made++; return false, conflict })
	if made != 11 || err != conflict {
		t.Errorf("a conflict that does not end: made %d times, %v", made, err)
	}
}

func TestNegativeMaxIdleIsNoLimit(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	pool := b.anotherPool(param("idle_in_transaction_session_timeout", "50ms"))
	b.store = b.storeOn(pool, idempotency.Config{MaxIdle: -time.Second})
	got, replayed, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		time.Sleep(300 * time.Millisecond)
		return charge(b.key.ID, 1)(ctx, tx)
	})
	b.wantOutcome(outcome{got, replayed, err}, outcome{1, false, nil})

	b.key.ID = "key-2"
	runs := 0
	got, replayed, err = b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
		if runs++; runs == 1 { // not for its silence
			var pid int
			if err := tx.QueryRow(ctx, "select pg_backend_pid()").Scan(&pid); err != nil {
				return 0, err
			}
			b.exec("select pg_terminate_backend($1)", pid)
		}
		return charge(b.key.ID, runs)(ctx, tx)
	})
	b.wantOutcome(outcome{got, replayed, err}, outcome{2, false, nil})
}

// opened returns a pool whose n connections are all there, and idle.
func (b *bundle) opened(n int32, opts ...pgtest.Option) *pgxpool.Pool {
	b.Helper()
	pool := b.anotherPool(append(opts, pgtest.MaxConns(n), pgtest.Direct)...)
	var conns []*pgxpool.Conn
	for range n {
		conn, err := pool.Acquire(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		conn.Release()
	}
	return pool
}

// demotable is an option of a pool whose sessions are read-only until it is turned off,
// as those to a primary that has become a standby.
func demotable() (option pgtest.Option, demoted *atomic.Bool) {
	demoted = new(atomic.Bool)
	demoted.Store(true)
	return func(cfg *pgxpool.Config) {
		cfg.BeforeConnect = func(_ context.Context, cc *pgx.ConnConfig) error {
			value := "off"
			if demoted.Load() {
				value = "on"
			}
			cc.RuntimeParams["default_transaction_read_only"] = value
			return nil
		}
	}, demoted
}

// operations are those of a Store on a connection of its own, each on a record.
var operations = map[string]func(context.Context, *bundle) error{
	"Do": func(ctx context.Context, b *bundle) error {
		_, replayed, err := idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 2))
		if err == nil && !replayed {
			err = errors.New("it was executed")
		}
		return err
	},
	"Get": func(ctx context.Context, b *bundle) error { _, err := b.store.Get(ctx, b.key); return err },
	"All": func(ctx context.Context, b *bundle) error {
		for _, err := range b.store.All(ctx, b.key.Scope) {
			return err
		}
		return errors.New("no record")
	},
	"Delete": func(ctx context.Context, b *bundle) error { return b.store.Delete(ctx, b.key) },
	"Purge": func(ctx context.Context, b *bundle) error {
		b.exec("update idempotency_keys set expires_at = now(), purge_after = now()")
		n, err := b.store.Purge(ctx)
		if err == nil && n != 1 {
			err = fmt.Errorf("%d records were purged", n)
		}
		return err
	},
}

func TestConnectionsLeftBehindByAFailoverAreReplaced(t *testing.T) {
	t.Parallel()
	for name, call := range operations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			b.executes(1)
			option, demoted := demotable()
			b.store = b.storeOn(b.opened(12, option), idempotency.Config{})
			demoted.Store(false)
			if err := call(t.Context(), b); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestServerThatStaysReadOnlyIsRefusedAfterOneNewConnection(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"Do", "Delete", "Purge"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			b.executes(1)
			option, _ := demotable()
			pool := b.opened(1, option)
			b.store = b.storeOn(pool, idempotency.Config{})
			err := operations[name](t.Context(), b)
			if sqlState(err) != "25006" || !strings.Contains(err.Error(), "connect to the primary") {
				t.Errorf("got %v", err)
			}
			if n := pool.Stat().NewConnsCount(); n != 2 {
				t.Errorf("%d connections were made, want 2", n)
			}
		})
	}
}

func TestConnectionsThatDiedWhileIdleAreReplacedByEveryOperation(t *testing.T) {
	t.Parallel()
	for name, call := range operations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			b.executes(1)
			b.store = b.storeOn(b.opened(12, named("idle")), idempotency.Config{})
			b.exec("select pg_terminate_backend(pid, 10000) from pg_stat_activity where application_name = 'idle' and datname = current_database()")
			if err := call(t.Context(), b); err != nil {
				t.Error(err)
			}
		})
	}
}

// It can have taken effect: to delete once more could take what a later call has recorded.
func TestDeleteThatLosesTheAnswerToItsCommitIsNotSentAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	store, proxy := b.through(idempotency.Config{})
	var deletes atomic.Int64
	asked, committed := bound("delete from idempotency_keys"), answered("COMMIT", 1)
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if asked(m) {
			deletes.Add(1)
		}
		if committed(m) {
			return pgproxy.Drop
		}
		return pgproxy.Pass
	})
	if err := store.Delete(t.Context(), b.key); err == nil || errors.Is(err, idempotency.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if n := deletes.Load(); n != 1 {
		t.Errorf("%d deletes were sent", n)
	}
}

// A deployment that alters a table while programs run: every connection has the plan of
// before.
func TestFunctionWhoseStatementHasAnOldPlanIsRunAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("create table account (id int)")
	b.store = b.storeOn(b.opened(3), idempotency.Config{})
	read := func(ctx context.Context, tx pgx.Tx) (int, error) {
		rows, _ := tx.Query(ctx, "select * from account")
		list, err := pgx.CollectRows(rows, pgx.RowToMap)
		if err == nil {
			_, err = charge(b.key.ID, 1)(ctx, tx)
		}
		return len(list), err
	}
	for i := range 4 {
		b.key.ID = fmt.Sprint("key-", i)
		if got := receive(b, b.start(t.Context(), b.store, read)); got.err != nil || got.replayed {
			t.Errorf("call %d: %+v", i, got)
		}
		b.effects(1)
		b.exec(fmt.Sprintf("alter table account add column c%d int", i))
	}
}
