// Package citus tests package idempotency on a real Citus cluster, the one of CITUS_URL:
// make test-citus. Without one, its test is skipped.
package citus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
	"github.com/pgidem/idempotency/migrations"
)

// A cluster is a schema of its own in which the tables are distributed.
type cluster struct {
	*testing.T
	pool   *pgxpool.Pool
	schema string
	store  *idempotency.Store
}

// placements are the two ways to distribute a table, with the statements before and
// behind the migrations.
var placements = map[string]struct{ before, behind string }{
	"by scope": {"", `
		select create_distributed_table('SCHEMA.idempotency_keys', 'scope');
		select create_distributed_table('SCHEMA.idempotency_operations', 'scope', colocate_with => 'SCHEMA.idempotency_keys');
		select create_distributed_table('SCHEMA.charges', 'scope', colocate_with => 'SCHEMA.idempotency_keys')`},
	"with its schema": {"select citus_schema_distribute('SCHEMA')", ""},
}

func setup(t *testing.T, before, behind string) *cluster {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), os.Getenv("CITUS_URL"))
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{T: t, pool: pool, schema: fmt.Sprintf("idempotency_%08x", rand.Uint32())}
	t.Cleanup(func() {
		if _, err := pool.Exec(context.Background(), "drop schema if exists "+c.schema+" cascade"); err != nil {
			t.Error(err)
		}
		pool.Close()
	})
	c.exec("create schema " + c.schema)
	c.exec(before)
	if err := migrations.Up(t.Context(), pool, c.schema); err != nil {
		t.Fatal(err)
	}
	c.exec(`create table ` + c.schema + `.charges (scope text collate "C" not null, key text collate "C" not null, amount int not null)`)
	c.exec(behind)
	if err := migrations.Up(t.Context(), pool, c.schema); err != nil {
		t.Error("once more, on the distributed table: ", err)
	}
	c.store = c.newStore(idempotency.Config{})
	return c
}

func (c *cluster) exec(sql string) {
	c.Helper()
	if sql == "" {
		return
	}
	if _, err := c.pool.Exec(c.Context(), strings.ReplaceAll(sql, "SCHEMA", c.schema), pgx.QueryExecModeSimpleProtocol); err != nil {
		c.Fatalf("%s: %v", sql, err)
	}
}

func (c *cluster) newStore(cfg idempotency.Config) *idempotency.Store {
	c.Helper()
	cfg.Schema = c.schema
	store, err := idempotency.NewWithConfig(c.pool, cfg)
	if err != nil {
		c.Fatal(err)
	}
	return store
}

func (c *cluster) charge(key idempotency.Key, amount int) func(context.Context, pgx.Tx) (int, error) {
	return func(ctx context.Context, tx pgx.Tx) (int, error) {
		_, err := tx.Exec(ctx, "insert into "+c.schema+".charges (scope, key, amount) values ($1, $2, $3)", key.Scope, key.ID, amount)
		return amount, err
	}
}

func (c *cluster) charges(key idempotency.Key, want int) {
	c.Helper()
	var n int
	err := c.pool.QueryRow(c.Context(), "select count(*) from "+c.schema+".charges where scope = $1 and key = $2", key.Scope, key.ID).Scan(&n)
	if err != nil || n != want {
		c.Errorf("%d charges for %s, %v; want %d", n, key.ID, err, want)
	}
}

func (c *cluster) want(what string, got int, replayed bool, err error, want int, wantReplayed bool) {
	c.Helper()
	if got != want || replayed != wantReplayed || err != nil {
		c.Errorf("%s = %d, replayed %v, %v; want %d, replayed %v", what, got, replayed, err, want, wantReplayed)
	}
}

func TestEveryOperationWorksOnACluster(t *testing.T) {
	if os.Getenv("CITUS_URL") == "" {
		t.Skip("CITUS_URL is not set: see make test-citus")
	}
	for name, p := range placements {
		t.Run(name, func(t *testing.T) {
			c := setup(t, p.before, p.behind)
			t.Run("Do, DoTx, QueryRow", func(t *testing.T) { c.on(t).calls() })
			t.Run("parallel duplicates", func(t *testing.T) { c.on(t).duplicates() })
			t.Run("records", func(t *testing.T) { c.on(t).records() })
			t.Run("expired", func(t *testing.T) { c.on(t).expired() })
			t.Run("procedures", func(t *testing.T) { c.on(t).procedures() })
			t.Run("doctor", func(t *testing.T) { c.on(t).healthy() })
		})
	}
}

func (c *cluster) on(t *testing.T) *cluster {
	on := *c
	on.T = t
	return &on
}

func key(id string) idempotency.Key { return idempotency.Key{Scope: "customer " + id, ID: id} }

func (c *cluster) calls() {
	for _, store := range []*idempotency.Store{c.store, c.newStore(idempotency.Config{})} { // the second one knows no key
		k := key("do")
		n, replayed, err := idempotency.Do(c.Context(), store, k, c.charge(k, 1))
		c.want("Do", n, replayed, err, 1, store != c.store)
		c.charges(k, 1)

		k = key("dotx")
		err = pgx.BeginFunc(c.Context(), c.pool, func(tx pgx.Tx) (err error) {
			n, replayed, err = idempotency.DoTx(c.Context(), store, tx, k, c.charge(k, 2))
			return err
		})
		c.want("DoTx", n, replayed, err, 2, store != c.store)
		c.charges(k, 1)

		k = key("query")
		sql := "insert into " + c.schema + ".charges (scope, key, amount) values ($1, $2, $3) returning amount"
		n, replayed, err = idempotency.QueryRow[int](c.Context(), store, k, sql, k.Scope, k.ID, 3)
		c.want("QueryRow", n, replayed, err, 3, store != c.store)
		c.charges(k, 1)
	}
	failed := errors.New("no")
	k := key("fails")
	_, _, err := idempotency.Do(c.Context(), c.store, k, func(ctx context.Context, tx pgx.Tx) (int, error) {
		c.charge(k, 1)(ctx, tx)
		return 0, failed
	})
	if !errors.Is(err, failed) {
		c.Error(err)
	}
	c.charges(k, 0)
}

func (c *cluster) duplicates() {
	k := key("parallel")
	var wg sync.WaitGroup
	for range 20 {
		store := c.newStore(idempotency.Config{})
		wg.Go(func() {
			n, _, err := idempotency.Do(c.Context(), store, k, func(ctx context.Context, tx pgx.Tx) (int, error) {
				time.Sleep(20 * time.Millisecond)
				return c.charge(k, 4)(ctx, tx)
			})
			if n != 4 || err != nil {
				c.Errorf("Do = %d, %v", n, err)
			}
		})
	}
	wg.Wait()
	c.charges(k, 1)
}

func (c *cluster) records() {
	k := key("record")
	n, replayed, err := idempotency.Do(c.Context(), c.store, k, c.charge(k, 5))
	c.want("Do", n, replayed, err, 5, false)
	rec, err := c.store.Get(c.Context(), k)
	if err != nil || string(rec.Result) != "5" {
		c.Errorf("Get = %s, %v", rec.Result, err)
	}
	listed := 0
	for rec, err := range c.store.All(c.Context(), k.Scope) {
		if err != nil || rec.Key.ID != k.ID {
			c.Errorf("All: %v, %v", rec.Key, err)
		}
		listed++
	}
	if listed != 1 {
		c.Errorf("All: %d records", listed)
	}
	if err := c.store.Delete(c.Context(), k); err != nil {
		c.Error("Delete: ", err)
	}
	if err := c.store.Delete(c.Context(), k); !errors.Is(err, idempotency.ErrNotFound) {
		c.Error("Delete of nothing: ", err)
	}
}

func (c *cluster) expired() {
	brief := c.newStore(idempotency.Config{Retention: time.Second})
	k := key("expired")
	n, replayed, err := idempotency.Do(c.Context(), brief, k, c.charge(k, 6))
	c.want("Do", n, replayed, err, 6, false)
	others := 30
	for i := range others {
		k := key(fmt.Sprint("other ", i))
		if _, _, err := idempotency.Do(c.Context(), brief, k, c.charge(k, 1)); err != nil {
			c.Error(err)
		}
	}
	time.Sleep(1100 * time.Millisecond) // the retention
	n, replayed, err = idempotency.Do(c.Context(), c.store, k, c.charge(k, 7))
	c.want("Do of an expired key", n, replayed, err, 7, false)
	c.charges(k, 2)
	if n, err := c.store.Purge(c.Context()); int(n) != others || err != nil {
		c.Errorf("Purge = %d, %v; want %d", n, err, others)
	}
}

func (c *cluster) procedures() {
	k := key("procedure")
	failOnce := true
	ride := idempotency.Procedure[int, string]{Name: "ride", Run: func(ctx context.Context, op *idempotency.Op, amount int) (string, error) {
		if _, err := idempotency.Step(ctx, op, "create", c.charge(k, amount)); err != nil {
			return "", err
		}
		charge, err := idempotency.Call(ctx, op, "charge", func(_ context.Context, key string) (string, error) {
			if failOnce {
				failOnce = false
				return "", errors.New("no answer")
			}
			return "charge " + key, nil
		})
		if err != nil {
			return "", err
		}
		return idempotency.Step(ctx, op, "confirm", func(context.Context, pgx.Tx) (string, error) { return charge, nil })
	}}
	if _, _, err := ride.Do(c.Context(), c.store, k, 8); err == nil {
		c.Error("the call has failed, and Do has not")
	}
	pending := 0
	for u, err := range c.store.Pending(c.Context(), 0) {
		if err != nil || u.Begun != "call charge" {
			c.Errorf("Pending: %+v, %v", u, err)
		}
		pending++
	}
	ended, err := c.store.Complete(c.Context(), 0, ride)
	if pending != 1 || ended != 1 || err != nil {
		c.Errorf("%d pending, %d completed, %v", pending, ended, err)
	}
	if out, replayed, err := ride.Do(c.Context(), c.store, k, 8); out == "" || !replayed || err != nil {
		c.Errorf("Do = %q, replayed %v, %v", out, replayed, err)
	}
	c.charges(k, 1)
}

func (c *cluster) healthy() {
	findings, err := doctor.Check(c.Context(), c.pool, c.store.Config())
	if err != nil {
		c.Error(err)
	}
	for _, f := range findings {
		if f.Check == "citus" || f.Severity == doctor.Error {
			c.Error(f)
		}
	}
}
