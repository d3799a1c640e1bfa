package idempotency_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

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
			if got := <-held; got != "idle in transaction xid= xmin=" {
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
		<-inside
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
	most := int32(0)
	ended := make(chan struct{})
	go func() { rides.Wait(); close(ended) }()
	for waiting := true; waiting; {
		select {
		case <-ended:
			waiting = false
		case <-time.After(5 * time.Millisecond):
			waits = append(waits, one())
			most = max(most, int32(query[int](j.bundle, `select count(*) from pg_stat_activity
				where datname = current_database() and state = 'idle in transaction' and state_change < clock_timestamp() - interval '20 milliseconds'`)))
		}
	}
	slices.Sort(calm)
	slices.Sort(waits)
	t.Logf("select 1: median %v, calm %v; longest %v", waits[len(waits)/2], calm[len(calm)/2], waits[len(waits)-1])
	if most < 2 || most > 4 {
		t.Errorf("%d calls held a connection at a time, want 4 at most, and several", most)
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
