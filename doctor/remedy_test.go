package doctor_test

import (
	"context"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// statement is a remedy that is SQL, up to what else it says.
var statement = regexp.MustCompile(`(?s)^(grant|revoke|alter|create|drop|comment|vacuum) ("(?:[^"]|"")*"|[^;"])*`)

// A remedy is copied into psql, with names that others have chosen.
func TestRemedyWorksAsItIsPrintedForEveryName(t *testing.T) {
	t.Parallel()
	d := setupOn(t, pgtest.New(t))
	odd := d.role + ` o"dd; role`
	quoted, other := pgx.Identifier{odd}.Sanitize(), pgx.Identifier{odd + " 2"}.Sanitize()
	d.exec(`create role ` + quoted + `; create role ` + other + `; create schema "sch; e""ma"; alter table idempotency_keys set schema "sch; e""ma"; set search_path = "sch; e""ma";
		create table "ta; b""le" (id text, scope text, constraint "f; ""k" foreign key (id, scope) references idempotency_keys);
		alter table idempotency_keys add constraint "to; ""it" foreign key (id, scope) references idempotency_keys;
		create function f() returns trigger language plpgsql as 'begin return new; end';
		create trigger "tri; g""ger" before insert on idempotency_keys for each row execute function f();
		create rule "ru; l""e" as on delete to idempotency_keys do also nothing;
		alter table idempotency_keys enable row level security, set (autovacuum_enabled = off);
		create policy "po; l""icy" on idempotency_keys using (scope <> 'x'); create policy "al; ""l" on idempotency_keys using (true);
		create table "chi; l""d" () inherits (idempotency_keys); drop index idempotency_keys_purge_after; reset search_path;
		grant usage on schema "sch; e""ma" to ` + d.role + `; grant usage, create on schema "sch; e""ma" to public, ` + other)
	t.Cleanup(func() {
		if _, err := d.admin.Exec(context.Background(), "drop owned by "+quoted+", "+other+"; drop role "+quoted+", "+other, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Error(err)
		}
	})
	pool := d.pool("role", odd, "search_path", `"sch; e""ma"`)
	for range 20 { // a finding can hide another
		findings := d.check(pool, idempotency.Config{})
		done := 0
		for _, f := range findings {
			sql := statement.FindString(f.Remedy)
			if sql == "" || strings.Contains(sql, "...") || f.Severity == doctor.Note {
				continue
			}
			done++
			if _, err := d.admin.Exec(t.Context(), strings.Replace(sql, "concurrently", "", 1)); err != nil {
				t.Fatalf("%s: %s: %v", f.Check, sql, err)
			}
			break
		}
		if done == 0 {
			break
		}
	}
	for _, f := range d.check(pool, idempotency.Config{}) {
		t.Errorf("after its remedies: %s", f)
	}
}

// What a role has set by default is read when it logs in, so the remedy names who has logged
// in, and not whose rights the session has.
func TestRemedyOfASettingIsForTheRoleThatHasLoggedIn(t *testing.T) {
	t.Parallel()
	d := setup(t)
	login := d.role + ` lo"gin; role`
	quoted := pgx.Identifier{login}.Sanitize()
	d.exec(`create role ` + quoted + ` login password 'secret' in role ` + d.role + `;
		alter role ` + quoted + ` set synchronous_commit = off; alter role ` + quoted + ` set idle_in_transaction_session_timeout = 0; alter role ` + quoted + ` set role = ` + d.role)
	t.Cleanup(func() {
		if _, err := d.admin.Exec(context.Background(), "drop role "+quoted); err != nil {
			t.Error(err)
		}
	})
	connect := func() *pgxpool.Pool {
		cfg := d.pool("role", d.role).Config()
		cfg.ConnConfig.User, cfg.ConnConfig.Password = login, "secret"
		for _, set := range []string{"role", "synchronous_commit", "idle_in_transaction_session_timeout"} {
			delete(cfg.ConnConfig.RuntimeParams, set)
		}
		pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		return pool
	}
	findings := d.check(connect(), idempotency.Config{})
	if len(findings) != 2 || findings[0].Check != "synchronous_commit" || findings[1].Check != "idle timeout" {
		t.Errorf("%v", findings)
	}
	for _, f := range findings {
		_, sql, found := strings.Cut(f.Remedy, "alter role ")
		if !found {
			t.Errorf("no statement in %q", f.Remedy)
		}
		d.exec("alter role " + sql)
	}
	healthy(t, d.check(connect(), idempotency.Config{}))
}
