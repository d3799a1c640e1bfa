package doctor_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// The catalog of Citus is played by a table of its columns. Its rows are what Citus 13 has
// for such tables.
func TestPlacementOfTheTablesOnCitusIsLookedAt(t *testing.T) {
	d := setupOn(t, pgtest.New(t))
	d.exec(`set allow_system_table_mods = on;
		drop view if exists pg_catalog.pg_dist_partition;
		create table pg_catalog.pg_dist_partition (logicalrelid regclass, partmethod "char", partkey text, colocationid int, repmodel "char");
		grant select on pg_catalog.pg_dist_partition to public;
		create table rides (scope text); create table riders (scope text); create table cities (name text)`)
	place := func(table, method, column string, colocation int, model string) {
		d.exec("insert into pg_dist_partition select '" + table + "'::regclass, '" + method + "', " +
			"case when '" + column + "' <> '' then (select '{VAR :varno 1 :varattno ' || attnum || ' :vartype 25}' from pg_attribute where attrelid = '" + table + "'::regclass and attname = '" + column + "') end, " +
			string(rune('0'+colocation)) + ", '" + model + "'")
	}
	pool := d.pool("citus.cluster_name", "default")
	check := func() []doctor.Finding { return d.check(pool, idempotency.Config{}) }

	wants(t, check(), doctor.Note, "citus", "is not distributed", "create_distributed_table", "'scope'")
	healthy(t, d.check(d.pool(), idempotency.Config{})) // Citus is not loaded

	place("idempotency_keys", "h", "id", 1, "s")
	wants(t, check(), doctor.Error, "citus", "distributed by id")

	d.exec("delete from pg_dist_partition")
	place("idempotency_keys", "h", "scope", 1, "s")
	wants(t, check(), doctor.Warning, "citus", "is not placed with", "procedures fail", "colocate_with")
	place("idempotency_operations", "h", "scope", 2, "s")
	wants(t, check()[:1], doctor.Warning, "citus", "procedures fail")

	d.exec("update pg_dist_partition set colocationid = 1")
	healthy(t, check())
	place("riders", "h", "scope", 1, "s")
	place("cities", "n", "", 3, "t") // on all nodes
	healthy(t, check())
	place("rides", "h", "scope", 2, "s")
	wants(t, check(), doctor.Note, "citus", "public.rides is not placed with", "two phases")
	more := func(names ...string) {
		for _, name := range names {
			d.exec("create table " + name + " (scope text)")
			place(name, "h", "scope", 2, "s")
		}
	}
	more("a", "b", "c", "d")
	wants(t, check(), doctor.Note, "citus", "public.a, public.b, public.c, public.d, public.rides are not placed with")
	more("e", "f")
	wants(t, check(), doctor.Note, "citus", "public.a, public.b, public.c, public.d, public.e, and others are not placed with")

	d.exec("delete from pg_dist_partition where colocationid = 2")
	for _, level := range []pgx.TxIsoLevel{pgx.Serializable, pgx.RepeatableRead} {
		cfg := idempotency.Config{TxOptions: pgx.TxOptions{IsoLevel: level}}
		wants(t, d.check(pool, cfg), doctor.Warning, "citus", string(level), "read committed")
	}
	healthy(t, d.check(pool, idempotency.Config{TxOptions: pgx.TxOptions{IsoLevel: pgx.ReadCommitted}}))

	d.exec("delete from pg_dist_partition where logicalrelid <> 'cities'::regclass")
	place("idempotency_keys", "n", "", 1, "s") // with its schema
	place("idempotency_operations", "n", "", 1, "s")
	healthy(t, check())
}
