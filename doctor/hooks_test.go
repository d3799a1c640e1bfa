package doctor_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
	"github.com/pgidem/idempotency/internal/pgtest"
)

const (
	triggerFunction = `create function audit() returns trigger language plpgsql as $$ begin return new; end $$;`
	partitioned     = `drop table idempotency_keys;
		create table idempotency_keys (purge_after timestamptz not null, id text, scope text, completed_at timestamptz, expires_at timestamptz,
			fingerprint bytea, result bytea, origin text, primary key (id, scope)) partition by hash (id);
		create index on idempotency_keys (purge_after);
		create table keys_0 partition of idempotency_keys for values with (modulus 1, remainder 0);
		grant select, insert, update, delete on idempotency_keys to public;`
)

func TestWhatCanChangeOrDropARecordIsNamed(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, sql, check string
		says             []string
	}{
		{"after update", triggerFunction + `create trigger "Audit it" after update on idempotency_keys for each row execute function audit()`, "trigger", []string{`"Audit it", after update`, "drop trigger"}},
		{"before insert or delete", triggerFunction + `create trigger a before insert or delete on idempotency_keys for each row execute function audit()`, "trigger", []string{`"a", before insert or delete`}},
		{"of the statement", triggerFunction + `create trigger a after insert on idempotency_keys execute function audit()`, "trigger", []string{`"a", after insert`}},
		{"before delete", triggerFunction + `create trigger a before delete on idempotency_keys for each row execute function audit()`, "trigger", []string{`"a", before delete`}},
		{"always", triggerFunction + `create trigger a before update on idempotency_keys for each row execute function audit(); alter table idempotency_keys enable always trigger a`, "trigger", []string{`"a", before update`}},
		{"of a partition", partitioned + triggerFunction + `create trigger a before update on keys_0 for each row execute function audit()`, "trigger", []string{`"a", before update`, `drop trigger "a" on "public"."keys_0"`}},
		{"rule of a partition", partitioned + `create rule r as on delete to keys_0 do also nothing`, "rule", []string{`drop rule "r" on "public"."keys_0"`}},
		{"reference of a partition", partitioned + `create table tenants (id text primary key); alter table keys_0 add constraint t foreign key (scope) references tenants`, "foreign key", []string{`alter table "public"."keys_0" drop constraint "t"`}},
		{"reference of all partitions", partitioned + `create table tenants (id text primary key); alter table idempotency_keys add constraint t foreign key (scope) references tenants`, "foreign key", []string{`alter table "public"."idempotency_keys" drop constraint "t"`}},
		{"of all partitions", partitioned + triggerFunction + `create trigger a before update on idempotency_keys for each row execute function audit()`, "trigger", []string{`"a", before update`}},
		{"rule", `create rule "R" as on update to idempotency_keys do instead nothing`, "rule", []string{`"R", on update`, "drop rule"}},
		{"rule on insert", `create rule r as on insert to idempotency_keys do also select 1`, "rule", []string{`"r", on insert`}},
		{"reference", `create table rides (k text, s text, constraint "Ride" foreign key (k, s) references idempotency_keys (id, scope))`, "foreign key", []string{`"Ride"`, `of "public"."rides"`, "purge fails"}},
		{"reference to another", `create table tenants (id text primary key); alter table idempotency_keys add constraint t foreign key (scope) references tenants on delete cascade`, "foreign key", []string{`"t"`, "cascades"}},
		{"policy", `alter table idempotency_keys enable row level security; create policy everything on idempotency_keys using (true); create policy "P" on idempotency_keys for select using (id <> 'k')`, "policy", []string{`"P"`, "drop policy"}},
		{"restrictive policy", `alter table idempotency_keys enable row level security; create policy everything on idempotency_keys using (true); create policy r on idempotency_keys as restrictive for update with check (scope <> 's')`, "policy", []string{`"r"`}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			d := setup(t)
			d.exec(row.sql)
			wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Warning, row.check, row.says...)
		})
	}
}

func TestWhatIsDeclaredAsWantedOrDoesNotFireIsNoFinding(t *testing.T) {
	t.Parallel()
	d := setup(t)
	d.exec(triggerFunction + `
		create trigger wanted after update on idempotency_keys for each row execute function audit();
		comment on trigger wanted on idempotency_keys is 'copies to the audit log; idempotency: wanted';
		create trigger disabled before update on idempotency_keys for each row execute function audit();
		alter table idempotency_keys disable trigger disabled;
		create trigger replica before update on idempotency_keys for each row execute function audit();
		alter table idempotency_keys enable replica trigger replica;
		create trigger truncated before truncate on idempotency_keys execute function audit();
		create policy dormant on idempotency_keys using (false);
		create rule disabled as on update to idempotency_keys do instead nothing;
		alter table idempotency_keys disable rule disabled;
		create rule replica as on update to idempotency_keys do instead nothing;
		alter table idempotency_keys enable replica rule replica;
		create rule wanted as on delete to idempotency_keys do also select 1;
		comment on rule wanted on idempotency_keys is 'idempotency: wanted'`)
	healthy(t, d.check(d.pool(), idempotency.Config{}))
	d.exec(`alter table idempotency_keys enable row level security; drop policy dormant on idempotency_keys;
		create policy tenant on idempotency_keys using (scope like current_user || '%');
		comment on policy tenant on idempotency_keys is 'idempotency: wanted'`)
	healthy(t, d.check(d.pool(), idempotency.Config{}))
	d.exec(`drop policy tenant on idempotency_keys; create policy everything on idempotency_keys using (true)`)
	healthy(t, d.check(d.pool(), idempotency.Config{}))
	d.exec(`create policy restrictive on idempotency_keys as restrictive using (true) with check (true)`) // and hides nothing
	healthy(t, d.check(d.pool(), idempotency.Config{}))
}

func TestCommandsThatNoPolicyPermitsAreNamed(t *testing.T) {
	t.Parallel()
	d := setup(t)
	d.exec(`alter table idempotency_keys enable row level security;
		create policy i on idempotency_keys for insert with check (true);
		create policy u on idempotency_keys for update to pg_monitor using (true);
		create policy s on idempotency_keys as restrictive for select using (true);
		comment on policy s on idempotency_keys is 'idempotency: wanted'`)
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Error, "policy", "lets this role select, update, delete")
	wants(t, d.check(d.pool("role", "none"), idempotency.Config{}), doctor.Note, "privileges", "superuser") // who sees every row
	d.exec("create policy m on idempotency_keys for delete to " + d.role + " using (true); create policy a on idempotency_keys for select using (true)")
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Error, "policy", "lets this role update:")
}

// What it creates later runs with the rights of the program, and not with a reader's.
func TestRightOfAStrangerToCreateATriggerIsAWarningToAProgram(t *testing.T) {
	t.Parallel()
	d := setup(t)
	stranger := d.role + "_stranger"
	d.exec("create role " + stranger)
	t.Cleanup(func() { d.forget(stranger) })
	for _, right := range []string{"trigger", "references"} {
		d.exec("grant " + right + " on idempotency_keys to " + d.role + ", " + stranger)
		findings := d.check(d.pool(), idempotency.Config{})
		wants(t, findings, doctor.Warning, "owner", `gives role "`+stranger+`" the right `+right)
		reading, err := doctor.CheckReader(t.Context(), d.pool(), idempotency.Config{})
		if err != nil {
			t.Fatal(err)
		}
		healthy(t, reading)
		_, remedy, _ := strings.Cut(findings[0].Remedy, "and revoke")
		d.exec("revoke " + remedy)
		healthy(t, d.check(d.pool(), idempotency.Config{}))
	}
}

func TestTableOfAStrangerIsAnError(t *testing.T) {
	t.Parallel()
	d := setup(t)
	stranger := d.role + "_stranger"
	d.exec("create role " + stranger)
	t.Cleanup(func() { d.forget(stranger) })
	d.exec("alter table idempotency_keys owner to " + stranger)
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Error, "owner", `belongs to role "`+stranger+`"`)
	d.exec(operation + "update idempotency_operations set progressed_at = now() - interval '2 hours'")
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Error, "owner", `belongs to role "`+stranger+`"`) // and nothing more is read
	d.exec("delete from idempotency_operations")
	superusers := d.check(d.pool("role", "none"), idempotency.Config{})
	if superusers[0].Check != "owner" { // who is a member of every role
		t.Errorf("a superuser finds %v", superusers)
	}
	for _, trusted := range []string{
		"grant " + stranger + " to " + d.role,
		"revoke " + stranger + " from " + d.role + "; alter schema public owner to " + stranger,
	} {
		d.exec(trusted)
		healthy(t, d.check(d.pool(), idempotency.Config{}))
	}
	// On the table of the schema's owner nothing can run, until there is a trigger.
	for sql, check := range map[string]string{
		"": "privileges",
		triggerFunction + "alter function audit() owner to " + stranger + "; create trigger a before update on idempotency_keys for each row execute function audit()": "owner",
	} {
		d.exec(sql)
		if found := d.check(d.pool("role", "none"), idempotency.Config{}); found[0].Check != check {
			t.Errorf("a superuser finds %v, want %s", found, check)
		}
		d.exec("drop trigger if exists a on idempotency_keys; drop function if exists audit()")
	}
}

// They would run with the rights of whoever asks the doctor.
func TestNothingThatAStrangerHasMadeRuns(t *testing.T) {
	t.Parallel()
	const theirs = `create function theirs(text) returns bool immutable language plpgsql as $$ begin raise exception 'theirs runs'; end $$; alter function theirs(text) owner to stranger;`
	for name, row := range map[string]struct{ sql, check, says string }{
		"view":              {theirs + `drop table idempotency_migrations; create view idempotency_migrations as select 1::bigint as version, theirs('x') as dirty`, "migrations", "is not a table"},
		"materialized view": {`drop table idempotency_migrations; create materialized view idempotency_migrations as select 1::bigint as version, true as dirty`, "migrations", "is not a table"},
		"index":             {`drop table idempotency_migrations; create index idempotency_migrations on idempotency_keys (origin)`, "migrations", "is not a table"},
		"sequence":          {`drop table idempotency_migrations; create sequence idempotency_migrations`, "migrations", "is not a table"},
		"versions of a stranger": {theirs + `alter table idempotency_migrations owner to stranger; alter table idempotency_migrations enable row level security;
			create policy p on idempotency_migrations using (theirs('x'))`, "migrations", `belongs to role "stranger"`},
		"index of the versions": {theirs + `set check_function_bodies = off; insert into idempotency_migrations values (9, true);
			alter table idempotency_migrations add column extra text; create index i on idempotency_migrations (extra) where extra > 'x' and theirs(extra)`, "migrations", `the index "i" of role "stranger"`},
		"policy":      {theirs + `alter table idempotency_keys enable row level security; create policy p on idempotency_keys using (theirs(id)); comment on policy p on idempotency_keys is 'idempotency: wanted'`, "owner", `the policy "p" of role "stranger"`},
		"table":       {theirs + `alter table idempotency_keys owner to stranger; alter table idempotency_keys enable row level security; create policy p on idempotency_keys using (theirs(id)); comment on policy p on idempotency_keys is 'idempotency: wanted'`, "owner", `belongs to role "stranger"`},
		"child":       {`create table kid () inherits (idempotency_keys); alter table kid owner to stranger`, "owner", `the child "kid" of role "stranger"`},
		"foreign key": {`create table refers (id text, scope text, constraint f foreign key (id, scope) references idempotency_keys on delete cascade); alter table refers owner to stranger`, "owner", `the foreign key "f" of role "stranger"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := setup(t)
			stranger := d.role + "_stranger"
			d.exec("create role " + stranger + "; grant create on schema public to " + stranger + "; grant select on idempotency_migrations to " + d.role)
			t.Cleanup(func() { d.forget(stranger) })
			d.exec("insert into idempotency_keys (id, scope, completed_at, expires_at, purge_after) select 'i', 's', t, t, t from (select now() - interval '73 hours') x (t)")
			d.exec(strings.ReplaceAll(row.sql, "stranger", stranger))
			if row.check == "migrations" && name != "index" { // on which nothing can be granted
				d.exec("grant select on idempotency_migrations to public")
			}
			for who, pool := range map[string]*pgxpool.Pool{"program": d.pool(), "superuser": d.pool("role", "none")} {
				found := false
				for _, f := range d.check(pool, idempotency.Config{}) { // which also fails on an error
					found = found || f.Severity == doctor.Error && f.Check == row.check && f.Remedy != "" && strings.Contains(f.Found, strings.ReplaceAll(row.says, "stranger", stranger))
					if row.check == "owner" && f.Check == "purge" {
						t.Errorf("%s: rows were read: %s", who, f)
					}
				}
				if !found {
					t.Errorf("%s: no error %q in %v", who, row.says, d.check(pool, idempotency.Config{}))
				}
			}
		})
	}
}

func TestSchemaInWhichOthersCanCreateIsNamed(t *testing.T) {
	t.Parallel()
	d := setup(t)
	other := d.role + "_other"
	d.exec("create role " + other + `; create schema "Open"; grant usage on schema "Open" to public; grant create on schema "Open" to ` + other)
	t.Cleanup(func() { d.forget(other) })
	healthy(t, d.check(d.pool(), idempotency.Config{})) // it is not in the search_path
	path := []string{"search_path", `"$user", public, "Open", missing`}
	wants(t, d.check(d.pool(path...), idempotency.Config{}), doctor.Warning, "search_path", `"Open"`, "by: "+other, "revoke create")
	d.exec(`grant create on schema "Open" to public`)
	wants(t, d.check(d.pool(path...), idempotency.Config{}), doctor.Warning, "search_path", `"Open"`, other+", public")
	d.exec(`revoke create on schema "Open" from public; grant ` + other + " to " + d.role)
	healthy(t, d.check(d.pool(path...), idempotency.Config{}))
}

// What who may create there would let the current role run counts, whoever has made it a
// member of that role.
func TestMembershipThatAStrangerHasMadeHidesNobodyWhoCanCreate(t *testing.T) {
	t.Parallel()
	d := setup(t)
	stranger, team := d.role+"_stranger", d.role+"_team"
	d.exec("create role " + stranger + "; create role " + team + "; grant " + team + " to " + stranger + " with admin option; grant create on schema public to " + team)
	t.Cleanup(func() { d.forget(team); d.forget(stranger) })
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Warning, "search_path", "by: "+team)
	d.exec("begin; set local role " + stranger + "; grant " + team + " to " + d.role + "; commit")
	wants(t, d.check(d.pool(), idempotency.Config{}), doctor.Warning, "search_path", "by: "+team)
	d.exec("begin; set local role " + stranger + "; revoke " + team + " from " + d.role + "; commit; grant " + team + " to " + d.role)
	healthy(t, d.check(d.pool(), idempotency.Config{}))
	d.exec("revoke " + team + " from " + d.role + "; grant " + d.role + " to " + team) // which has its rights already
	healthy(t, d.check(d.pool(), idempotency.Config{}))
}

func TestSchemaOfTheSearchPathThatAStrangerOwnsIsNamed(t *testing.T) {
	t.Parallel()
	d := setup(t)
	stranger := d.role + "_stranger"
	d.exec("create role " + stranger + `; create schema "Theirs" authorization ` + stranger + `; grant usage on schema "Theirs" to public`)
	t.Cleanup(func() { d.forget(stranger) })
	path := []string{"search_path", `"Theirs", public`}
	healthy(t, d.check(d.pool(path...), idempotency.Config{})) // nobody but the owner of the database creates schemas
	d.exec("grant create on database " + d.admin.Config().ConnConfig.Database + " to " + stranger)
	wants(t, d.check(d.pool(path...), idempotency.Config{}), doctor.Warning, "search_path", `schema "Theirs" is in the search_path, and belongs to role "`+stranger+`"`, "owner to")
	superusers := d.check(d.pool(append(path, "role", "none")...), idempotency.Config{})
	if superusers[0].Check != "search_path" {
		t.Errorf("a superuser finds %v", superusers)
	}
	d.exec("grant " + d.role + " to " + stranger)
	healthy(t, d.check(d.pool(path...), idempotency.Config{}))
}

// forget drops a role with all that it has.
func (d *database) forget(role string) {
	sql := "reassign owned by " + role + " to current_user; drop owned by " + role + "; drop role " + role
	if _, err := d.admin.Exec(context.Background(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		d.Error(err)
	}
}

func TestFindingsDoNotDependOnHowASessionShowsValuesNorOnWhatIsPlanted(t *testing.T) {
	t.Parallel()
	d := setup(t)
	d.exec(triggerFunction + `create trigger a after update on idempotency_keys for each row execute function audit();
		create table "Rides" (k text, s text, foreign key (k, s) references idempotency_keys (id, scope));
		alter table idempotency_keys enable row level security;
		create policy p on idempotency_keys for select using (id <> 'k');
		insert into idempotency_keys (id, scope, completed_at, expires_at, purge_after) select 'i', 's', t, t, t from (select now() - interval '73 hours 30 minutes') x (t);
		grant pg_monitor to ` + d.role)
	texts := func(pool *pgxpool.Pool) string {
		var all []string
		for _, f := range d.check(pool, idempotency.Config{}) {
			all = append(all, f.String())
		}
		return strings.Join(all, "\n")
	}
	want := texts(d.pool())
	for _, check := range []string{"purge", "trigger", "policy", "foreign key"} {
		if !strings.Contains(want, check) {
			t.Errorf("no finding of %s in\n%s", check, want)
		}
	}
	for _, styles := range pgtest.OddStyles {
		pgtest.Odd(t, d.admin, styles)
		if got := texts(d.pool()); got != want {
			t.Errorf("%v:\n%s\nwant\n%s", styles, got, want)
		}
	}
	pgtest.Plant(t, d.admin, "*.go", "../internal/keytable/*.go")
	for _, pool := range []*pgxpool.Pool{d.pool(), d.pool("role", "none")} {
		if got := texts(pool); strings.Contains(got, "planted runs") || !strings.Contains(got, "foreign key") {
			t.Error(got)
		}
	}
}

const shadowSQL = `
create function public.trap(text, text) returns bool language plpgsql as $$ begin raise exception 'what somebody has planted runs'; end $$;
create operator public.= (leftarg = text, rightarg = text, function = public.trap);
create function public.current_database() returns name language plpgsql as $$ begin raise exception 'what somebody has planted runs'; end $$;
create function public.pg_backend_pid() returns int language plpgsql as $$ begin raise exception 'what somebody has planted runs'; end $$`

func TestNothingIsAskedWhereWhatIsPlantedIsPreferred(t *testing.T) {
	t.Parallel()
	d := setup(t)
	d.exec(shadowSQL)
	wants(t, d.check(d.pool("search_path", "public, pg_catalog"), idempotency.Config{}), doctor.Error, "search_path", "public, pg_catalog", "looked no further", "take pg_catalog out")
}
