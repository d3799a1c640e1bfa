package doctor_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
)

// planted are operators that fit a text better than PostgreSQL's fit any other.
const planted = `
create function runs(text, timestamptz) returns bool language plpgsql as $$ begin raise exception 'theirs runs'; end $$;
create function less(timestamptz, text) returns interval language sql as 'select interval ''1 hour''';
create operator < (leftarg = text, rightarg = timestamptz, function = runs);
create operator <= (leftarg = text, rightarg = timestamptz, function = runs);
create operator - (leftarg = timestamptz, rightarg = text, function = less);`

const operation = `insert into idempotency_operations (id, scope, number, started_at, due_at, name, input, progressed_at, labels, results)
	values ('i', 's', gen_random_uuid(), now(), now(), 'n', '', 'epoch', '{}', '{}');`

// For other types than ours an operator that somebody has planted runs, with the rights of
// whoever asks the doctor.
func TestTableOfOtherTypesIsNotRead(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ sql, check, says string }{
		{operation + "alter table idempotency_operations alter progressed_at type text", "unfinished", "it needs progressed_at timestamptz"},
		{"alter table idempotency_operations drop column progressed_at", "unfinished", "it has no column progressed_at"},
		{"alter table idempotency_migrations alter dirty type text", "migrations", "it needs dirty bool"},
		{"alter table idempotency_migrations drop column version", "migrations", "it has no column version"},
	} {
		d := setup(t)
		d.exec(planted + row.sql + "; grant select on idempotency_migrations to " + d.role)
		stranger := d.role + "_stranger"
		d.exec("create role " + stranger)
		t.Cleanup(func() { d.forget(stranger) })
		only := func(pool *pgxpool.Pool, says string) {
			t.Helper()
			var found []doctor.Finding
			for _, f := range d.check(pool, idempotency.Config{}) { // which also fails where something planted runs
				if f.Severity == doctor.Error {
					found = append(found, f)
				}
			}
			wants(t, found, doctor.Error, row.check, says)
		}
		only(d.pool(), row.says)
		only(d.pool("role", "none"), row.says)
		d.exec("alter schema public owner to " + stranger + "; alter table idempotency_" + strings.Replace(row.check, "unfinished", "operations", 1) + " owner to " + stranger)
		only(d.pool("role", "none"), `belongs to role "`+stranger+`"`)
	}
}

// What was there when the doctor has begun to look can be another table when it has waited
// for its lock.
func TestTableOfOtherTypesThatComesWhileTheDoctorWaitsIsNotRead(t *testing.T) {
	t.Parallel()
	d := setup(t)
	d.exec(planted + `create table other (like idempotency_keys including indexes); alter table other alter purge_after type text;
		insert into other (id, scope, purge_after, expires_at) values ('i', 's', 'x', now() - interval '9 days'); grant select on other to ` + d.role)
	tx, err := d.admin.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), "lock table idempotency_keys in access exclusive mode; alter table idempotency_keys rename to gone; alter table other rename to idempotency_keys", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	var found []doctor.Finding
	checked := make(chan error, 1)
	pool := d.pool("role", "none", "default_transaction_isolation", "serializable")
	go func() {
		var err error
		found, err = doctor.Check(context.WithoutCancel(t.Context()), pool, idempotency.Config{})
		checked <- err
	}()
	for waits, begun := false, time.Now(); !waits; {
		_ = d.admin.QueryRow(t.Context(), "select exists (select from pg_locks where not granted and relation is not null and database = (select oid from pg_database where datname = current_database()))").Scan(&waits)
		if time.Since(begun) > time.Minute {
			t.Fatal("the doctor does not wait")
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-checked; err != nil {
		t.Error(err)
	}
	for _, f := range found {
		if f.Check == "purge" {
			t.Error(f)
		}
	}
}

func TestTableWithATriggerWhoseConditionCanRunSQLIsAnError(t *testing.T) {
	t.Parallel()
	d := setup(t)
	const trigger = "create trigger t before delete on idempotency_keys for each row when (query_to_xml('select 1', true, true, '')::text = 'never') execute function suppress_redundant_updates_trigger()"
	d.exec(trigger)
	found := d.check(d.pool(), idempotency.Config{})
	wants(t, found[:1], doctor.Error, "owner", `the trigger "t", whose condition or arguments can run SQL`, `comment on trigger "t" on "public"."idempotency_keys" is 'idempotency: wanted'`)
	d.exec(`comment on trigger "t" on "public"."idempotency_keys" is 'idempotency: wanted'`)
	healthy(t, d.check(d.pool(), idempotency.Config{}))
	d.exec(strings.Replace(trigger, "create", "create or replace", 1))
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Error, "owner", `the trigger "t"`)
}
