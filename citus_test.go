package idempotency_test

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
	"github.com/pgidem/idempotency/migrations"
)

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

// Citus refuses, or runs on the wrong node, what these patterns find. It cannot be asked
// here: the rules are those of its planner (multi_router_planner.c of Citus 13).
func TestStatementsForCitusHoldToItsRules(t *testing.T) {
	t.Parallel()
	forbidden := []struct {
		rule         string
		part, expect *regexp.Regexp
	}{
		{"what changes rows has no volatile function in WHERE",
			regexp.MustCompile(`(?s)(?:update|delete from) \S+\s.*?where(.*)`), regexp.MustCompile(`clock_timestamp|pg_try_|set_config|current_setting`)},
		{"SET of an update has no volatile function",
			regexp.MustCompile(`(?s)update "\S+\s+set(.*?)where`), regexp.MustCompile(`clock_timestamp|pg_try_|set_config|current_setting`)},
		{"SET of an upsert has no function",
			regexp.MustCompile(`(?s)do update\s+set(.*?)returning`), regexp.MustCompile(`\w\(|interval`)},
		{"RETURNING has no function that is not immutable",
			regexp.MustCompile(`(?s)\breturning(.*?)(?:\)\s*select|$)`), regexp.MustCompile(`\w\(|\+`)},
		{"what is asked of the table needs nothing of the session, nor an oid of one node",
			regexp.MustCompile(`(?s)^(.*(?:from|into|update) "s"\."idempotency.*)$`), regexp.MustCompile(`set_config|current_setting|regclass|pg_current_xact|pg_backend_pid\(\)$`)},
	}
	ofManyKeys := map[string]bool{"purge": true, "list": true, "expired": true, "lockExpired": true, "lockAt": true, "existsAt": true, "journal.pending": true}
	plainOnly := map[string]bool{"claim": true, "read": true, "claimInTx": true, "readInTx": true, "expired": true, "lockExpired": true, "lockAt": true, "existsAt": true}
	onTheTable, key := regexp.MustCompile(`(?:from|into|update) "s"\."idempotency`), regexp.MustCompile(`\bid = \$1::text and (?:k\.)?scope = \$2::text|\(id, scope,`)
	all := idempotency.StatementsOnCitus()
	if len(all) < 40 {
		t.Errorf("%d statements", len(all))
	}
	for name, sql := range all {
		if plainOnly[name] || !onTheTable.MatchString(sql) {
			continue
		}
		if !ofManyKeys[name] && !key.MatchString(sql) {
			t.Errorf("%s names a row without its id and scope:\n%s", name, sql)
		}
		for _, f := range forbidden {
			for _, part := range f.part.FindAllStringSubmatch(sql, -1) {
				if found := f.expect.FindString(part[1]); found != "" {
					t.Errorf("%s: %s: %q in\n%s", name, f.rule, found, sql)
				}
			}
		}
	}
}

func TestErrorsThatSayThatTheNodeOfTheKeyIsLost(t *testing.T) {
	t.Parallel()
	for code, lost := range map[string]bool{"08006": true, "08000": true, "57P01": true, "57P02": true, "XX000": true,
		"57014": false, "40001": false, "23505": false, "22012": false, "XX001": false, "25006": false} {
		if got := idempotency.LostNode(true, code); got != lost {
			t.Errorf("%s: %v", code, got)
		}
		if idempotency.LostNode(false, code) {
			t.Errorf("%s, and the table is not distributed", code)
		}
	}
}

// Citus is played by its setting and a table of its catalog.
func TestStoreFindsOutOnceWhetherCitusDistributesItsTable(t *testing.T) {
	t.Parallel()
	for _, schema := range []string{"", "public"} {
		b := &bundle{TB: t, pool: pgtest.Empty(t, pgtest.Direct), key: idempotency.Key{Scope: "customer-1", ID: "key-1"}}
		b.exec("create table charges (id bigint generated always as identity, key text not null, amount int not null)")
		if !citusTexts {
			b.play("drop view if exists pg_catalog.pg_dist_partition; create table pg_catalog.pg_dist_partition (logicalrelid regclass)")
		}
		plain := b.storeOn(b.pool, idempotency.Config{Schema: schema})
		on := b.anotherPool(pgtest.Direct, param("citus.cluster_name", "default"))
		store := b.storeOn(on, idempotency.Config{Schema: schema})
		b.store = store
		if _, _, err := b.do(charge(b.key.ID, 1)); err == nil || store.Distributed() {
			t.Errorf("there is no table: %v", err)
		}
		if err := migrations.Up(t.Context(), b.pool, "public"); err != nil {
			t.Fatal(err)
		}
		local := b.storeOn(on, idempotency.Config{Schema: schema})
		b.store = local
		b.executes(1)
		if local.Distributed() != citusTexts {
			t.Error("it takes a local table for a distributed one")
		}
		if !citusTexts {
			b.play("insert into pg_catalog.pg_dist_partition values ('public.idempotency_keys')")
		}
		b.store = store
		b.replays(1)
		b.key.ID = "another one"
		b.executes(2)
		if !store.Distributed() {
			t.Error("it takes a distributed table for a local one")
		}
		b.store = plain
		b.replays(2)
		if plain.Distributed() != citusTexts {
			t.Error("it asks for the catalog of Citus where that is not loaded")
		}
	}
}

// play changes what only PostgreSQL itself, or an extension, may change.
func (b *bundle) play(sql string) {
	b.Helper()
	b.exec("set allow_system_table_mods = on; "+sql+"; set allow_system_table_mods = off", pgx.QueryExecModeSimpleProtocol)
}

// An ERROR of the node before COMMIT leaves nothing; one at COMMIT is in doubt. Both are
// found out, and the function runs again, but only where the table is distributed.
func TestCallIsMadeAgainWhereTheNodeOfTheKeyIsLost(t *testing.T) {
	t.Parallel()
	const lose = "create function lose() returns trigger language plpgsql as $$ begin if nextval('n') = 1 then raise exception 'the node is lost' using errcode = 'XX000'; end if; return new; end $$; create sequence n; "
	for name, c := range map[string]struct {
		trigger string
		doubt   string
	}{
		"by the claim":    {"create trigger lose before insert on idempotency_keys for each row execute function lose()", ""},
		"in the function": {"create trigger lose before insert on charges for each row execute function lose()", ""},
		"by the COMMIT":   {"create constraint trigger lose after insert on charges deferrable initially deferred for each row execute function lose()", "aborted"},
	} {
		for _, distributed := range []bool{true, false} {
			if !distributed && citusTexts {
				continue
			}
			t.Run(fmt.Sprintf("%s, distributed: %v", name, distributed), func(t *testing.T) {
				t.Parallel()
				b := setup(t, idempotency.Config{}, pgtest.Direct)
				if !citusTexts {
					b.play("create table pg_catalog.pg_dist_partition (logicalrelid regclass); insert into pg_catalog.pg_dist_partition values ('public.idempotency_keys')")
				}
				var event idempotency.Event
				pool := b.pool
				if distributed {
					pool = b.anotherPool(pgtest.Direct, param("citus.cluster_name", "default"))
				}
				b.exec(lose+c.trigger, pgx.QueryExecModeSimpleProtocol)
				b.store = b.storeOn(pool, idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) { event = e }})
				_, _, err := b.do(charge(b.key.ID, 1))
				if !distributed {
					if sqlState(err) != "XX000" {
						t.Errorf("on one server: %v", err)
					}
					return
				}
				if err != nil || event.InDoubt != c.doubt {
					t.Errorf("%v, %+v", err, event)
				}
				b.effects(1)
			})
		}
	}
}
