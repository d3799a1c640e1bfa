package idempotency_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// described is 2 when pgx describes each statement before it executes it, which
// doubles the round trips of those with arguments; else 1.
func (b *bundle) described() int {
	if b.pool.Config().ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeDescribeExec {
		return 2
	}
	return 1
}

func TestFirstCallCostsTheRoundTripsOfTheBareTransaction(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	one := pgtest.MaxConns(1)
	store, proxy := b.through(idempotency.Config{}, one)
	if got := roundTrips(t, proxy, func(i int) {
		key := idempotency.Key{Scope: "s", ID: fmt.Sprint(i)}
		if _, _, err := idempotency.Do(t.Context(), store, key, charge(key.ID, i)); err != nil {
			t.Fatal(err)
		}
	}); got != (3+claimTrips)*b.described() {
		t.Errorf("%d round trips, want 3: begin+claim, the function's one, record+commit", got)
	}
}

func TestReplayCostsOneRoundTrip(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		known     bool
		rollbacks int64
	}{
		"of a key that the process knows": {known: true},
		"of another key":                  {rollbacks: 1}, // in the background
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			b.executes(1)
			store, proxy := b.through(idempotency.Config{}, pgtest.MaxConns(1))
			b.store = store
			var questions, rollbacks atomic.Int64
			b.replays(1) // the statements are prepared
			b.replays(1)
			if !c.known {
				b.unknown()
			}
			time.Sleep(50 * time.Millisecond)
			proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
				switch {
				case m.FromServer:
				case m.Type == 'Q' && m.SQL == "rollback":
					rollbacks.Add(1)
				case m.Type == 'S' || m.Type == 'Q':
					questions.Add(1)
				}
				return pgproxy.Pass
			})
			b.replays(1)
			time.Sleep(50 * time.Millisecond)
			if questions.Load() != int64(b.described()) || rollbacks.Load() != c.rollbacks {
				t.Errorf("%d round trips and %d rollbacks, want one and %d", questions.Load(), rollbacks.Load(), c.rollbacks)
			}
		})
	}
}

func TestDoTxCostsThreeRoundTripsOfItsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	store, proxy := b.through(idempotency.Config{}, pgtest.MaxConns(1))
	pool := b.anotherPool(pgtest.MaxConns(1), address("127.0.0.1", proxy.Port()))
	if got := roundTrips(t, proxy, func(i int) {
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			key := idempotency.Key{Scope: "s", ID: fmt.Sprint(i)}
			_, _, err := idempotency.DoTx(t.Context(), store, tx, key, charge(key.ID, i))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}); got != 3+(3+claimTrips)*b.described() {
		t.Errorf("%d round trips, want 6: begin, savepoint, claim, the function's one, record+release, commit", got)
	}
}

// The counters are of the whole server: this test is not parallel, and takes
// the quietest of several tries.
func TestReplayWritesNothing(t *testing.T) {
	b := setup(t, idempotency.Config{})
	b.executes(1)
	b.replays(1)
	for try := range 20 {
		xid, wal := b.counters()
		for range 50 {
			b.unknown()
			b.replays(1)
			b.replays(1)
			b.unknown()
			if _, replayed, err := idempotency.QueryRow[int](t.Context(), b.store, b.key, "insert into charges (key, amount) values ('x', 1) returning amount"); !replayed || err != nil {
				t.Fatal(replayed, err)
			}
		}
		newXid, newWal := b.counters()
		t.Logf("150 replays: %d transaction ids, %d bytes of WAL", newXid-xid, newWal-wal)
		if newXid == xid && newWal == wal {
			return
		}
		time.Sleep(time.Duration(try) * 20 * time.Millisecond)
	}
	t.Error("in every try, replays have used transaction ids or written to the log")
}

// A typicalCall is one with a fingerprint and a result of 300 bytes.
func (b *bundle) typicalCall(i int) {
	b.Helper()
	id := benchID(i)
	key := idempotency.Key{Scope: "customer-1", ID: id, Fingerprint: idempotency.FingerprintOf([]byte(id))}
	if _, _, err := idempotency.Do(context.Background(), b.store, key, benchCharge(id, i)); err != nil {
		b.Fatal(err)
	}
}

// A typicalStatement is typicalCall as one statement.
func (b *bundle) typicalStatement(i int) {
	b.Helper()
	id := benchID(i)
	key := idempotency.Key{Scope: "customer-1", ID: id, Fingerprint: idempotency.FingerprintOf([]byte(id))}
	if _, _, err := idempotency.QueryRow[string](context.Background(), b.store, key, benchStatement, id, i); err != nil {
		b.Fatal(err)
	}
}

// What is not pruned becomes a gap on an old page with the next vacuum.
func TestDeadVersionOfAClaimMakesRoomForLaterCalls(t *testing.T) {
	b := setup(t, idempotency.Config{TxOptions: pgx.TxOptions{IsoLevel: pgx.ReadCommitted}})
	const calls = 1000
	for i := range calls {
		b.typicalCall(i)
	}
	size := query[int](b, "select pg_relation_size('idempotency_keys')") / calls
	t.Logf("%d bytes of the table a call", size)
	if size > 515 { // 482 when every page is pruned, 550 when none is
		t.Errorf("%d bytes of the table a call", size)
	}
}

// 230 B for the bare transaction, the result, and of our own 455 B, of which the record's
// insert that becomes an update has some 56; or 350 B where claim and record are one row.
func TestFirstCallWritesLittle(t *testing.T) {
	const resultBytes, calls = 300, 200
	for _, c := range []struct {
		name string
		call func(*bundle, int)
		own  int64
	}{
		{"Do", (*bundle).typicalCall, 455},
		{"QueryRow", (*bundle).typicalStatement, 350},
	} {
		b := setup(t, idempotency.Config{})
		if c.name == "QueryRow" && (serializable(b) || citusTexts) {
			continue // it claims, as Do does
		}
		c.call(b, 0)
		b.exec("checkpoint")
		c.call(b, 1) // logs the full pages that follow a checkpoint
		least := int64(1 << 60)
		for try := range 5 {
			_, before := b.counters()
			for i := range calls {
				c.call(b, 1000*(try+1)+i)
			}
			_, after := b.counters()
			least = min(least, (after-before)/calls)
		}
		t.Logf("%s: %d bytes of WAL a call, with a result of %d bytes", c.name, least, resultBytes)
		if limit := 230 + resultBytes + c.own; least > limit {
			t.Errorf("%s: %d bytes of WAL a call, want at most %d", c.name, least, limit)
		}
	}
}

// counters are the server's next transaction id and its position in the
// write-ahead log.
func (b *bundle) counters() (xid, wal int64) {
	b.Helper()
	err := b.pool.QueryRow(context.Background(), `
		select pg_snapshot_xmax(pg_current_snapshot())::text::bigint, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint`,
	).Scan(&xid, &wal)
	if err != nil {
		b.Fatal(err)
	}
	return xid, wal
}

// The function's own statement is among them. Of a first call, all but some 20 are of
// pgx, for the same statements.
func TestCallAllocatesLittle(t *testing.T) {
	onOneServer(t, "a claim of two statements allocates more")
	b := setup(t, idempotency.Config{})
	if mode := b.pool.Config().ConnConfig.DefaultQueryExecMode; mode != pgx.QueryExecModeCacheStatement {
		t.Skipf("counted in pgx's default mode, and this is %v", mode)
	}
	i := 0
	for _, c := range []struct {
		name  string
		call  func()
		limit float64
	}{
		{"first call", func() { i++; b.typicalCall(i) }, 110},
		{"replay of a known key", func() { b.typicalCall(i) }, 55},
		{"statement", func() { i++; b.typicalStatement(i) }, 85},
		{"replay of a statement", func() { b.typicalStatement(i) }, 55},
	} {
		least := c.limit + 1
		for try := 0; try < 10 && least > c.limit; try++ {
			least = min(least, testing.AllocsPerRun(100, c.call))
		}
		t.Logf("%s: %v", c.name, least)
		if least > c.limit {
			t.Errorf("%s: %v allocations, want at most %v", c.name, least, c.limit)
		}
	}
}

// countedRide is takeRide without its provider, with a message to be sent, or its first step
// alone.
func countedRide(whole bool) idempotency.Procedure[fare, receipt] {
	return idempotency.Procedure[fare, receipt]{Name: "take ride", Run: func(ctx context.Context, op *idempotency.Op, in fare) (r receipt, err error) {
		r.Ride, err = idempotency.Step(ctx, op, "create", func(ctx context.Context, tx pgx.Tx) (id int, err error) {
			err = tx.QueryRow(ctx, "insert into rides (rider, amount) values ('c', 20) returning id").Scan(&id)
			return id, err
		})
		if err != nil || !whole {
			return r, err
		}
		charge, err := idempotency.Call(ctx, op, "charge", func(context.Context, string) (payment, error) {
			return payment{ID: "ch_3MmlLrLkdIwHu7ix0snN0B15", Rider: "c", Amount: 20}, nil
		})
		if err != nil {
			return r, err
		}
		r.Charge = charge.ID
		_, err = idempotency.Step(ctx, op, "confirm", func(ctx context.Context, tx pgx.Tx) (struct{}, error) {
			if _, err := tx.Exec(ctx, "update rides set state = 'paid', charge = $2 where id = $1", r.Ride, r.Charge); err != nil {
				return struct{}{}, err
			}
			_, err := tx.Exec(ctx, "insert into outbox (message) values ($1)", fmt.Sprintf("receipt of ride %d", r.Ride))
			return struct{}{}, err
		})
		return r, err
	}}
}

// The counters are of the whole server: this test is not parallel, and takes the quietest
// of several tries.
func TestProcedureCostsLittle(t *testing.T) {
	j := setupRides(t, idempotency.Config{})
	j.exec("create table outbox (id int generated always as identity primary key, message text not null)")
	store, proxy := j.through(idempotency.Config{}, pgtest.MaxConns(1))
	in := fare{Rider: "customer-7", Amount: 20, Provider: "https://api.example.com"}
	body, _ := json.Marshal(in)
	do := func(p idempotency.Procedure[fare, receipt], what string, i int) (replayed bool) {
		key := idempotency.Key{Scope: "customer-7", ID: fmt.Sprintf("0192f1c4-%s-7d2a-9c1e-%012d", what, i), Fingerprint: idempotency.FingerprintOf(body)}
		_, replayed, err := p.Do(t.Context(), store, key, in)
		if err != nil {
			t.Fatal(what, err)
		}
		return replayed
	}
	for _, c := range []struct {
		name            string
		op              func(i int)
		trips           int
		wal, identities int64 // at most
	}{
		{"step, call, step", func(i int) { do(countedRide(true), "ride", i) }, 7, 2200, 3},
		{"one step", func(i int) { do(countedRide(false), "step", i) }, 3, 1000, 1},
		{"replay", func(i int) {
			if !do(countedRide(true), "ride", 1000+i%100) {
				t.Fatal("not replayed")
			}
		}, 1, 0, 0},
	} {
		if c.identities > 0 { // it claims
			c.trips += claimTrips
		}
		if got := roundTrips(t, proxy, c.op); got != c.trips*j.described() {
			t.Errorf("%s: %d round trips, want %d", c.name, got, c.trips*j.described())
		}
		const calls = 100
		wal, identities := int64(1<<60), int64(1<<60)
		j.exec("checkpoint")
		for i := range 3 * calls {
			c.op(1000 + i) // logs the full pages that follow a checkpoint
		}
		for try := range 3 {
			xid, before := j.counters()
			for i := range calls {
				c.op(10_000*(try+1) + i)
			}
			newXid, after := j.counters()
			wal, identities = min(wal, (after-before)/calls), min(identities, (newXid-xid)/calls)
		}
		t.Logf("%s: %d bytes of WAL and %d transaction ids", c.name, wal, identities)
		if serializable(j.bundle) {
			continue
		}
		if wal > c.wal || identities != c.identities {
			t.Errorf("%s: %d bytes of WAL and %d transaction ids, want %d and %d", c.name, wal, identities, c.wal, c.identities)
		}
	}
}

func TestCallHoldsNoSnapshotAndNoTransactionId(t *testing.T) {
	t.Parallel()
	for _, level := range []pgx.TxIsoLevel{"", pgx.RepeatableRead, pgx.Serializable} {
		j := setupRides(t, idempotency.Config{TxOptions: pgx.TxOptions{IsoLevel: level}})
		held := make(chan string, 2)
		j.p.onStage("a", func(stage string) {
			if stage == "received" {
				time.Sleep(50 * time.Millisecond)
				held <- query[string](j.bundle, `select coalesce(string_agg(format('%s xid=%s xmin=%s', state, backend_xid, backend_xmin), '; '), 'nothing')
					from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and state like 'idle in%'`)
			}
		})
		j.p.lose.Store(100)
		if _, _, err := j.ride("a"); err == nil {
			t.Fatal("no answer was lost")
		}
		j.p.lose.Store(0)
		if _, _, err := j.ride("a"); err != nil {
			t.Fatal(err)
		}
		for _, which := range []string{"first", "repeated"} {
			if got := receive(j, held); got != "idle in transaction xid= xmin=" {
				t.Errorf("%s, the %s call: %s", level, which, got)
			}
		}
	}
}

// As with Do: who waits in the same process gets the first one's answer without a query, and
// who comes later reads the record without a transaction.
func TestDuplicatesOfAProcedureInAProcessCostNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	store, proxy := b.through(idempotency.Config{})
	var begun, statements atomic.Int64
	begins, any := bound("begin"), bound("")
	// ends counts the statements from where the first one's call returns, until all have
	// their answer.
	ends := func(id string, duplicates int) int64 {
		key := idempotency.Key{Scope: "s", ID: id}
		inside, leave := make(chan struct{}), make(chan struct{})
		p := procedureOf(func(ctx context.Context, op *idempotency.Op) error {
			_, err := idempotency.Call(ctx, op, "c", func(context.Context, string) (int, error) {
				close(inside)
				<-leave
				return 1, nil
			})
			return err
		})
		var replays atomic.Int64
		do := func() {
			got, replayed, err := p.Do(context.Background(), store, key, 7)
			if got != 7 || err != nil {
				t.Error(got, err)
			}
			if replayed {
				replays.Add(1)
			}
		}
		var all sync.WaitGroup
		all.Go(do)
		receive(b, inside)
		for range duplicates {
			all.Go(do)
		}
		b.eventually("all wait", func() bool { return store.Waiting(key) == duplicates })
		statements.Store(0)
		proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
			if any(m) {
				statements.Add(1)
			}
			if begins(m) {
				begun.Add(1)
			}
			return pgproxy.Pass
		})
		close(leave)
		all.Wait()
		n := statements.Load()
		if replays.Load() != int64(duplicates) {
			t.Errorf("%d replays of %d duplicates", replays.Load(), duplicates)
		}
		do()
		proxy.SetRule(nil)
		return n
	}
	ends("warm", 0)
	alone, beside := ends("alone", 0), ends("beside", 20)
	if alone != beside {
		t.Errorf("%d statements beside duplicates, %d without", beside, alone)
	}
	if begun.Load() != 0 {
		t.Errorf("%d transactions of later duplicates", begun.Load())
	}
}

// The Store's calls take half of the pool: the other half is for everybody else.
func TestCallsUnderWayLeaveConnectionsToOthers(t *testing.T) {
	t.Parallel()
	j := setupRides(t, idempotency.Config{}, pgtest.MaxConns(8))
	j.p.delay.Store(int64(100 * time.Millisecond))
	one := func() time.Duration {
		start := time.Now()
		j.exec("select 1")
		return time.Since(start)
	}
	var calm, waits []time.Duration
	for range 100 {
		time.Sleep(5 * time.Millisecond) // as below: one that follows at once is faster
		calm = append(calm, one())
	}
	var rides sync.WaitGroup
	for i := range 24 {
		rides.Go(func() {
			if _, _, err := j.ride(fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
	}
	most := 0 // at the provider: what a connection is silent for is not known
	ended := make(chan struct{})
	go func() { rides.Wait(); close(ended) }()
	for waiting := true; waiting; {
		select {
		case <-ended:
			waiting = false
		case <-time.After(5 * time.Millisecond):
			waits = append(waits, one())
			most = max(most, j.p.underWay())
		}
	}
	slices.Sort(calm)
	slices.Sort(waits)
	t.Logf("select 1: median %v, calm %v; longest %v", waits[len(waits)/2], calm[len(calm)/2], waits[len(waits)-1])
	if most < 2 || most > 4 {
		t.Errorf("%d calls were under way at a time, want 4 at most, and several", most)
	}
	j.once(24)
	if j.p.overlaps.Load() > 0 {
		t.Error("two at a time in one call")
	}
}

// Rows of operations that have not ended are read by Pending and Complete alone, and by
// each purge those whose key is older than the retention.
func TestHundredThousandUnfinishedOperationsCostPurgesAndCallsNothing(t *testing.T) {
	inOnePiece(t)
	t.Parallel()
	j := setupRides(t, idempotency.Config{}, param("enable_seqscan", "off")) // for the test's own statements
	for _, table := range []string{"idempotency_keys", "idempotency_operations"} {
		j.exec("alter table " + table + " set (autovacuum_enabled = off)")
	}
	rowsRead := func() (rows int) {
		pool := j.anotherPool(pgtest.MaxConns(2), pgtest.Direct, named("calls"))
		store := j.storeOn(pool, idempotency.Config{})
		key := idempotency.Key{Scope: "calls", ID: fmt.Sprint(time.Now())}
		for range 2 {
			if _, _, err := idempotency.Do(t.Context(), store, key, func(context.Context, pgx.Tx) (int, error) { return 1, nil }); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := j.rideOn(store, key.ID, 20); err != nil {
			t.Fatal(err)
		}
		j.exec(`insert into idempotency_keys (id, scope, purge_after, result, completed_at, expires_at)
			select 'expired-' || i, 'purged', now(), '1', now(), now() from generate_series(1, 100) i`)
		before := query[int](j.bundle, readRowsSQL)
		if n, err := store.Purge(t.Context()); n != 100 || err != nil {
			t.Fatalf("purged %d, %v", n, err)
		}
		j.gone(pool)
		j.eventually("the server has counted", func() bool { return query[int](j.bundle, readRowsSQL)-before >= 100 })
		time.Sleep(time.Second) // PostgreSQL 14 counts in a process of its own
		return query[int](j.bundle, readRowsSQL) - before
	}
	alone := rowsRead()
	j.exec(`insert into idempotency_operations (id, scope, number, started_at, progressed_at, due_at, name, input, labels, results)
		select 'id ' || i, 'unfinished', gen_random_uuid(), now(), now(), now(), 'p', '1', '{}', '{}' from generate_series(1, 100000) i`)
	j.exec(`insert into idempotency_keys (id, scope, purge_after)
		select 'id ' || i, 'unfinished', now() + interval '1 day' from generate_series(1, 100000) i`)
	beside := rowsRead()
	t.Logf("rows read: %d alone, %d beside them", alone, beside)
	if beside > 2*alone {
		t.Errorf("rows read: %d alone, %d beside 100,000 operations that have not ended", alone, beside)
	}
}

const readRowsSQL = `
select sum(seq_tup_read + idx_tup_fetch + (select sum(idx_tup_read) from pg_stat_user_indexes i where i.relid = t.relid))::bigint
from pg_stat_user_tables t where relname like 'idempotency%'`

// The tests here are about plans: a connection that has planned our statements while
// the table was small goes on with these plans when it has grown.

// small makes a table of which PostgreSQL believes that it is small.
var small = map[string]func(b *bundle){
	"60 rows and analyze": func(b *bundle) {
		b.fill("few", 60)
		b.exec("analyze idempotency_keys")
	},
	"emptied and vacuumed": func(b *bundle) {
		b.fill("many", 1000)
		b.exec("delete from idempotency_keys")
		b.exec("vacuum analyze idempotency_keys")
	},
	"one row analyzed": func(b *bundle) {
		b.fill("one", 1)
		b.exec("analyze idempotency_keys")
	},
	"never analyzed": func(b *bundle) {},
}

// fill inserts n rows whose result is live, and the statistics do not hear of it.
func (b *bundle) fill(scope string, n int) {
	b.Helper()
	b.exec(`insert into idempotency_keys (id, scope, purge_after, result, completed_at, expires_at)
		select 'filled-' || i, $1, now() + interval '1 day', '1', now(), now() + interval '1 day' from generate_series(1, $2) i`, scope, n)
}

// scans are the sequential scans of the table, and the rows that index scans have
// read. They are complete once the sessions that have scanned are gone.
func (b *bundle) scans() (sequential, indexRows int64) {
	b.Helper()
	err := b.pool.QueryRow(context.Background(), `select t.seq_scan, (select sum(i.idx_tup_read)::bigint from pg_stat_user_indexes i where i.relid = t.relid)
		from pg_stat_user_tables t where t.relname = 'idempotency_keys' and t.schemaname = 'public'`).Scan(&sequential, &indexRows)
	if err != nil {
		b.Fatal(err)
	}
	return sequential, indexRows
}

// gone waits until a closed pool's sessions have ended and left their counters.
func (b *bundle) gone(pool *pgxpool.Pool) {
	b.Helper()
	name := pool.Config().ConnConfig.RuntimeParams["application_name"]
	pool.Close()
	b.eventually("the sessions have ended", func() bool {
		return query[int](b, "select count(*) from pg_stat_activity where datname = current_database() and application_name = $1", name) == 0
	})
}

// everything calls each operation that looks for a key, n times.
func (b *bundle) everything(store *idempotency.Store, pool *pgxpool.Pool, round string, n int) {
	b.Helper()
	ctx := context.Background()
	fn := func(context.Context, pgx.Tx) (int, error) { return 1, nil }
	check := func(what string, err error) {
		b.Helper()
		if err != nil {
			b.Fatalf("%s: %v", what, err)
		}
	}
	for i := range n {
		key := idempotency.Key{Scope: "calls", ID: fmt.Sprint(round, "-", i)}
		for range 2 {
			_, _, err := idempotency.Do(ctx, store, key, fn)
			check("Do", err)
			check("DoTx", pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				_, _, err := idempotency.DoTx(ctx, store, tx, key, fn)
				return err
			}))
		}
		_, err := store.Get(ctx, key)
		check("Get", err)
		for name, again := range map[string]func() error{
			"taken over by Do": func() error { _, _, err := idempotency.Do(ctx, store, key, fn); return err },
			"taken over by DoTx": func() error {
				return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
					_, _, err := idempotency.DoTx(ctx, store, tx, key, fn)
					return err
				})
			},
		} {
			b.exec("update idempotency_keys set expires_at = now(), purge_after = now() where id = $1 and scope = $2", key.ID, key.Scope)
			check(name, again())
		}
		check("Delete", store.Delete(ctx, key))
		for range 3 { // a first call, a replay, and what goes before the guard
			_, _, err := idempotency.QueryRow[int](ctx, store, key, "select 1")
			check("QueryRow", err)
			store.Forget(key)
		}
		_, err = store.Purge(ctx)
		check("Purge", err)
	}
}

func TestNoPlanOfASmallTableScansTheGrownOne(t *testing.T) {
	inOnePiece(t)
	onOneServer(t, "Citus plans each statement anew, on the node that runs it")
	for name, made := range small {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{}, param("enable_seqscan", "off")) // for the test's own statements
			b.exec("alter table idempotency_keys set (autovacuum_enabled = off)")
			maker := *b
			maker.pool = b.anotherPool(pgtest.Direct, named("maker"))
			made(&maker)
			b.gone(maker.pool) // its own scans are counted by now
			pools, stores := map[string]*pgxpool.Pool{}, map[string]*idempotency.Store{}
			for mode, value := range execModes {
				pools[mode] = b.anotherPool(pgtest.MaxConns(1), pgtest.Direct, execMode(value), named("calls "+mode))
				stores[mode] = b.storeOn(pools[mode], idempotency.Config{})
				b.everything(stores[mode], pools[mode], "small "+mode, 7)
			}
			b.fill("growth", 3000)
			before, _ := b.scans()
			for mode, pool := range pools {
				b.everything(stores[mode], pool, "grown "+mode, 2)
				b.gone(pool)
				after, _ := b.scans()
				if after != before {
					t.Errorf("%s: %d sequential scans", mode, after-before)
				}
				before = after
			}
		})
	}
}

// On a table that was never analyzed, a plan that sorts, or collects a bitmap, would
// read all that has expired for each batch.
func TestPurgeBatchReadsItsLimitAndWhatIsUnfinished(t *testing.T) {
	inOnePiece(t)
	onOneServer(t, "Citus plans each statement anew, on the node that runs it")
	const unfinished, expired, limit = 50, 12_000, 1000
	for name, analyzed := range map[string]bool{"never analyzed": false, "analyzed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			b.exec("alter table idempotency_keys set (autovacuum_enabled = off)")
			b.exec(`insert into idempotency_keys (id, scope, purge_after) select 'open-' || i, 's', now() - interval '2 hours' from generate_series(1, $1) i`, unfinished)
			b.exec(`insert into idempotency_keys (id, scope, purge_after, result, completed_at, expires_at)
				select 'id-' || i, 's', now() - interval '1 hour', '1', now() - interval '2 hours', now() - interval '1 hour' from generate_series(1, $1) i`, expired)
			if analyzed {
				b.exec("analyze idempotency_keys")
			}
			sequential, read := b.scans()
			pool := b.anotherPool(pgtest.MaxConns(1), pgtest.Direct, named("purge"))
			n, err := b.storeOn(pool, idempotency.Config{}).PurgeBatch(t.Context())
			if n != limit || err != nil {
				t.Fatalf("purged %d, %v", n, err)
			}
			b.gone(pool)
			sequentialAfter, readAfter := b.scans()
			if got := readAfter - read; got > limit+unfinished || sequentialAfter != sequential {
				t.Errorf("%d rows read through indexes, want at most %d; %d sequential scans", got, limit+unfinished, sequentialAfter-sequential)
			}
		})
	}
}

// As long as an older transaction is open, what a batch has deleted stays in the index,
// and the next batch must not read it again.
func TestPurgeReadsOnceWhatItDeletesAlsoBesideAnOldTransaction(t *testing.T) {
	inOnePiece(t)
	onOneServer(t, "Citus plans each statement anew, on the node that runs it")
	t.Parallel()
	const unfinished, expired = 50, 5_000
	b := setup(t, idempotency.Config{})
	b.exec("alter table idempotency_keys set (autovacuum_enabled = off)")
	b.exec(`insert into idempotency_keys (id, scope, purge_after) select 'open-' || i, 's', now() - interval '2 hours' from generate_series(1, $1) i`, unfinished)
	b.exec(`insert into idempotency_keys (id, scope, purge_after, result, completed_at, expires_at)
		select 'id-' || i, 's', now() - interval '1 hour' + i * interval '1 second' + (i > 3600)::int * interval '1 day', '1', now(), now() from generate_series(1, $1) i`, expired)
	old := b.begin(pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if _, err := old.Exec(t.Context(), "select from charges"); err != nil {
		t.Fatal(err)
	}
	_, before := b.scans()
	pool := b.anotherPool(pgtest.MaxConns(1), pgtest.Direct, named("purge"))
	n, err := b.storeOn(pool, idempotency.Config{}).Purge(t.Context())
	if want := int64(3600); n != want || err != nil { // the others are not yet due
		t.Fatalf("purged %d, %v; want %d", n, err, want)
	}
	b.gone(pool)
	b.commit(old)
	_, after := b.scans()
	if got := after - before; got > 3600+unfinished+10 {
		t.Errorf("%d rows read through indexes, for 3600 deleted ones", got)
	}
}

// In a partitioned table a place (ctid) is one of its partition, so that the rows of
// different partitions have the same ones.
func TestPurgeOfAPartitionedTableWaitsForNoCallInAnotherPartition(t *testing.T) {
	onOneServer(t, "a purge of all nodes waits for a row that is locked")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.partition(2)
	const keys = 40
	for i := range keys {
		b.key.Scope = fmt.Sprint("scope-", i)
		b.executes(1)
	}
	b.exec("update idempotency_keys set expires_at = now(), purge_after = now()")
	b.exec("vacuum full idempotency_keys") // so that each has its rows from the first place on
	b.exec("delete from charges")
	k := newBlocker()
	taken := query[string](b, `select a.scope from idempotency_keys a join idempotency_keys b on a.ctid = b.ctid and a.tableoid <> b.tableoid order by 1 limit 1`)
	b.key.Scope = taken
	taking := b.start(t.Context(), b.store, k.charge(b.key.ID, 2))
	receive(b, k.begun)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	n, err := b.store.Purge(ctx)
	if n != keys-1 || err != nil {
		t.Errorf("purged %d beside a call that takes one over, %v", n, err)
	}
	b.key.Scope = "scope-another" // nor does the purge keep another key from its callers
	b.executes(3)
	k.goOn <- nil
	b.wantOutcome(receive(b, taking), outcome{2, false, nil})
	b.key.Scope = taken
	b.replays(2)
}

func TestPurgeOfAPartitionedTableDeletesTheOldestFirst(t *testing.T) {
	onOneServer(t, "each node deletes its own oldest")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.partition(2)
	b.exec(`insert into idempotency_keys (id, scope, purge_after, result, completed_at, expires_at)
		select i::text, 'scope-' || i % 50, now() - (2000 - i) * interval '1 second', '1', now(), now() from generate_series(1, 1500) i`)
	n, err := b.store.PurgeBatch(t.Context())
	if oldest := query[int](b, "select min(id::int) from idempotency_keys"); n != 1000 || err != nil || oldest != 1001 {
		t.Errorf("purged %d, %v; the oldest that is left is %d", n, err, oldest)
	}
}

// partition makes the table one of n partitions by scope.
func (b *bundle) partition(n int) {
	b.Helper()
	b.exec("create table partitioned (like idempotency_keys including all) partition by hash (scope)")
	b.exec("drop table idempotency_keys")
	b.exec("alter table partitioned rename to idempotency_keys")
	for i := range n {
		b.exec(fmt.Sprintf("create table keys_%d partition of idempotency_keys for values with (modulus %d, remainder %d)", i, n, i))
	}
}

func TestEveryOperationWorksOnAPartitionedTable(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.partition(3)
	for _, w := range ways() {
		for _, scope := range []string{"a", "b", "c", "d"} {
			b.key = idempotency.Key{Scope: scope, ID: w.name}
			b.wantOutcome(w.call(b, charge(b.key.ID, 1)), outcome{1, false, nil})
			b.replays(1)
			if _, err := b.store.Get(t.Context(), b.key); err != nil {
				t.Errorf("Get: %v", err)
			}
			if err := b.store.Delete(t.Context(), b.key); err != nil {
				t.Errorf("Delete: %v", err)
			}
		}
	}
}

var benchResult = strings.Repeat("x", 298)

func benchCharge(id string, i int) func(context.Context, pgx.Tx) (string, error) {
	return func(ctx context.Context, tx pgx.Tx) (string, error) {
		_, err := charge(id, i)(ctx, tx)
		return benchResult, err
	}
}

// benchStatement is benchCharge as one statement.
const benchStatement = `insert into charges (key, amount) values ($1, $2) returning repeat('x', 298)`

func benchID(i int) string { return fmt.Sprintf("018f4d3c-0000-7000-8000-%012d", i) }

// BenchmarkBareTransaction is what the others are to be compared with.
func BenchmarkBareTransaction(b *testing.B) {
	s := setup(b, idempotency.Config{})
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i++
		err := pgx.BeginFunc(b.Context(), s.pool, func(tx pgx.Tx) error {
			_, err := benchCharge(benchID(i), i)(b.Context(), tx)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDoFirstCall(b *testing.B) {
	s := setup(b, idempotency.Config{})
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i++
		key := idempotency.Key{Scope: "customer-1", ID: benchID(i)}
		if _, _, err := idempotency.Do(b.Context(), s.store, key, benchCharge(key.ID, i)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDoReplay(b *testing.B) {
	s := setup(b, idempotency.Config{})
	key := idempotency.Key{Scope: "customer-1", ID: benchID(1)}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := idempotency.Do(b.Context(), s.store, key, benchCharge(key.ID, 1)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDoDuplicates is 100 callers of one key at a time, the last of which
// is a first call.
func BenchmarkDoDuplicates(b *testing.B) {
	s := setup(b, idempotency.Config{})
	i := 0
	for b.Loop() {
		i++
		storm := *s
		storm.key.ID = benchID(i)
		var ends []<-chan outcome
		for range 100 {
			ends = append(ends, storm.start(b.Context(), storm.store, charge(storm.key.ID, i)))
		}
		for _, end := range ends {
			if got := receive(b, end); got.err != nil || got.value != i {
				b.Fatalf("got %+v", got)
			}
		}
	}
}
