package idempotency_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

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

func named(name string) pgtest.Option {
	return func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["application_name"] = name }
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
	b.exec("delete from charges")
	k := newBlocker()
	b.key.Scope = "scope-0"
	taking := b.start(t.Context(), b.store, k.charge(b.key.ID, 2))
	<-k.begun
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	n, err := b.store.Purge(ctx)
	if n != keys-1 || err != nil {
		t.Errorf("purged %d beside a call that takes one over, %v", n, err)
	}
	b.key.Scope = "scope-1" // nor does the purge keep another key from its callers
	b.executes(3)
	k.goOn <- nil
	b.wantOutcome(<-taking, outcome{2, false, nil})
	b.key.Scope = "scope-0"
	b.replays(2)
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
