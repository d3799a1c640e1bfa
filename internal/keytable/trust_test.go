package keytable_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/keytable"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// described is the table of schema as the role sees it, or with none the superuser, after
// the statements, of which nothing stays. NAME in them is a name of this database's own, since roles are the
// server's.
func described(t *testing.T, pool *pgxpool.Pool, sql, role, schema string) (table keytable.Table, in func(string) string) {
	t.Helper()
	tx, in := session(t, pool, sql, role)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	table, err := keytable.Describe(t.Context(), tx, in(schema), keytable.Name)
	if err != nil {
		t.Fatal(err)
	}
	return table, in
}

// session is a transaction of the role, behind the statements. The caller rolls it back.
func session(t *testing.T, pool *pgxpool.Pool, sql, role string) (tx pgx.Tx, in func(string) string) {
	t.Helper()
	in = strings.NewReplacer("NAME", pool.Config().ConnConfig.Database, "DATABASE", pool.Config().ConnConfig.Database).Replace
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if role != "none" {
		sql = strings.TrimSuffix(sql, ";") + "; set local session authorization " + role
	}
	if _, err := tx.Exec(t.Context(), in(sql), pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(in(sql), ": ", err)
	}
	return tx, in
}

const run = `create function run() returns trigger language plpgsql as $$ begin return null; end $$; create role NAME_me;`

// A trigger of PostgreSQL's own functions, too, runs what its condition says, which is
// by whoever has created it.
const conditional = `create trigger t before update on idempotency_keys for each row when (old.id is null) execute function suppress_redundant_updates_trigger();`

const holds = `create role NAME_x; create function holds(text) returns bool immutable language sql as 'select true'; alter function holds(text) owner to NAME_x;`

const refers = `create table refers (id text, scope text, more text unique, foreign key (id, scope) references idempotency_keys on delete cascade);`

// calling is a function that SQL in a condition can name.
const calling = `create function calls(text) returns bool language sql as 'select true'; `

const commented = `comment on trigger t on idempotency_keys is 'audit; idempotency: wanted'`

func onDelete(table, what string) string {
	return `create trigger t before delete on ` + table + ` for each row when (calls(old.id)) ` + what
}

// apart are statements of different transactions, as the rows of the catalog have it.
func apart(statements ...string) (sql string) {
	for _, each := range statements {
		sql += "; savepoint apart; " + each + "; release apart"
	}
	return strings.TrimPrefix(sql, "; ")
}

// strangers are who could get the rights of NAME_me and of a superuser, or only of the
// role as: the role and the kind of what is found.
var strangers = map[string]struct{ sql, role, kind, as string }{
	"function of a predefined role":                      {run + `alter function run() owner to pg_monitor; create trigger t before update on idempotency_keys for each row execute function run()`, "pg_monitor", "trigger", ""},
	"table of a predefined role that one is a member of": {run + `grant pg_monitor to NAME_me; alter table idempotency_keys owner to pg_monitor`, "pg_monitor", "table", "NAME_me"},
	"schema of a predefined role":                        {run + `alter table idempotency_keys owner to pg_monitor; alter schema public owner to pg_monitor`, "pg_monitor", "table", ""},
	"operator of a predefined role": {run + `create function two(text, text) returns bool immutable language sql as 'select true';
		create operator %% (leftarg = text, rightarg = text, function = two); create index i on idempotency_keys ((id %% scope)); alter operator %% (text, text) owner to pg_monitor`, "pg_monitor", "index", ""},
	"domain of a predefined role": {run + `create domain d as text check (value <> 'x'); alter table idempotency_keys add more d; alter domain d owner to pg_monitor`, "pg_monitor", "column", ""},
	"policy on a table of a predefined role": {run + `create table tenants (id text); create policy p on idempotency_keys using (scope in (select id from tenants));
		alter table tenants owner to pg_monitor`, "pg_monitor", "policy", ""},
	"collation of a predefined role":         {run + `create collation c from "C"; create index i on idempotency_keys (id collate c); alter collation c owner to pg_monitor`, "pg_monitor", "index", ""},
	"trigger beside the right to create one": {run + conditional + `create role NAME_x; grant trigger on idempotency_keys to NAME_x`, "NAME_x", "right", ""},
	"trigger beside everybody's right":       {run + conditional + `grant trigger on idempotency_keys to public`, "public", "right", ""},
	"trigger beside a predefined role's":     {run + conditional + `grant trigger on idempotency_keys to pg_monitor`, "pg_monitor", "right", "NAME_me"},
	"trigger of a child beside the right": {run + `create table kid () inherits (idempotency_keys); create role NAME_x; grant trigger on kid to NAME_x;` +
		strings.ReplaceAll(conditional, "on idempotency_keys", "on kid"), "NAME_x", "right", ""},
	"schema of one who can create schemas": {run + `create role NAME_x; grant create on database DATABASE to NAME_x; alter table idempotency_keys owner to NAME_x; alter schema public owner to NAME_x`, "NAME_x", "table", ""},
	"schema of one whose member can create schemas": {run + `create role NAME_x; create role NAME_y in role NAME_x; grant create on database DATABASE to NAME_y;
		alter table idempotency_keys owner to NAME_x; alter schema public owner to NAME_x`, "NAME_x", "table", ""},
	"function of an operator": {run + `create role NAME_x; create function two(text, text) returns bool immutable language sql as 'select true';
		create operator %% (leftarg = text, rightarg = text, function = two); create index i on idempotency_keys ((id %% scope)); alter function two(text, text) owner to NAME_x`, "NAME_x", "index", ""},
	"function of the constraint of a domain": {run + holds + `create domain d as text check (holds(value)); alter table idempotency_keys add more d`, "NAME_x", "column", ""},
	"function of the element of a type":      {run + holds + `create domain d as text check (holds(value)); create type pair as (a d, b int); alter table idempotency_keys add more pair[]`, "NAME_x", "column", ""},
	"function of a view behind a policy":     {run + holds + `create view chosen as select scope from idempotency_keys where holds(scope); create policy p on idempotency_keys using (scope in (select scope from chosen))`, "NAME_x", "policy", ""},
	"function of an index behind a policy": {run + holds + `create table tenants (id text); create index on tenants (id) where holds(id);
		create policy p on idempotency_keys using (scope in (select id from tenants))`, "NAME_x", "policy", ""},
	"function of a trigger behind a rule": {run + `create role NAME_x; alter function run() owner to NAME_x; create table gone (id text); create trigger t before insert on gone for each row execute function run();
		create rule r as on delete to idempotency_keys do also insert into gone values (old.id)`, "NAME_x", "rule", ""},
	"function of a trigger behind a cascade":     {run + refers + `create role NAME_x; alter function run() owner to NAME_x; create trigger t after delete on refers for each row execute function run()`, "NAME_x", "trigger", ""},
	"trigger behind a cascade of an update":      {run + `create role NAME_x; create table refers (id text, scope text, foreign key (id, scope) references idempotency_keys on update cascade); alter table refers owner to NAME_x`, "NAME_x", "foreign key", ""},
	"index behind a foreign key that only looks": {run + `create role NAME_x; create table refers (id text, scope text, foreign key (id, scope) references idempotency_keys on delete restrict); alter table refers owner to NAME_x`, "NAME_x", "foreign key", ""},
	"function of a child of a table behind a policy": {run + holds + `create table tenants (id text); create table kid () inherits (tenants); create index on kid (id) where holds(id);
		create policy p on idempotency_keys using (scope in (select id from tenants))`, "NAME_x", "policy", ""},
	"owner of a child of a table behind a policy": {run + `create role NAME_x; create table tenants (id text); create table kid () inherits (tenants); alter table kid owner to NAME_x;
		create policy p on idempotency_keys using (scope in (select id from tenants))`, "NAME_x", "policy", ""},
	"schema of one who was the group of who may create schemas": {run + `create role NAME_x; create role NAME_y; grant create on database DATABASE to NAME_y; alter table idempotency_keys owner to NAME_x; alter schema public owner to NAME_x`, "NAME_x", "table", ""},
	"trigger behind two cascades":                               {run + refers + `create role NAME_x; create table more (id text references refers (more) on delete cascade); alter table more owner to NAME_x`, "NAME_x", "foreign key", ""},
	"trigger behind a cascade beside a right":                   {run + refers + strings.ReplaceAll(conditional, "on idempotency_keys", "on refers") + `create role NAME_x; grant trigger on refers to NAME_x`, "NAME_x", "right", ""},
	"role that one has created":                                 {`create role NAME_me createrole; set local role NAME_me; create role NAME_x; reset role; alter table idempotency_keys owner to NAME_x`, "NAME_x", "table", ""},
	"schema in which only the table is trusted":                 {run + conditional + `create role NAME_x; grant create on database DATABASE to NAME_x; grant usage on schema public to NAME_me; alter schema public owner to NAME_x`, "NAME_x", "schema", ""},
	"function of a partition's parent": {run + `create role NAME_x; create function holds(text, text) returns text immutable language sql as 'select $1'; alter function holds(text, text) owner to NAME_x;
		create table parent (like idempotency_keys) partition by list (holds(id, scope)); drop index idempotency_keys_purge_after; alter table parent attach partition idempotency_keys default`, "NAME_x", "parent or type", ""},
	"parent of the owner of the database": {run + `create role NAME_x; alter database DATABASE owner to NAME_x; create function holds(text, text) returns text immutable language sql as 'select $1'; alter function holds(text, text) owner to NAME_x;
		create table parent (like idempotency_keys) partition by list (holds(id, scope)); drop index idempotency_keys_purge_after; alter table parent attach partition idempotency_keys default; alter table parent owner to NAME_x;
		alter table idempotency_keys owner to NAME_x`, "NAME_x", "parent or type", "none"},
	"membership of the stranger's own making": {run + `create role NAME_x; create role NAME_y; grant NAME_y to NAME_x with admin option; set local role NAME_x; grant NAME_y to NAME_me; reset role;
		alter table idempotency_keys owner to NAME_y`, "NAME_y", "table", "NAME_me"},
	"membership by way of a predefined role": {run + `create role NAME_x; grant NAME_x to pg_monitor; grant pg_monitor to NAME_me; alter table idempotency_keys owner to NAME_x`, "NAME_x", "table", "NAME_me"},
	"right to create a trigger behind a rule": {run + `create role NAME_x; create table gone (id text); grant trigger on gone to NAME_x;
		create rule r as on delete to idempotency_keys do also insert into gone values (old.id)`, "NAME_x", "right", ""},
	"right to create a trigger behind a cascade": {run + refers + `create role NAME_x; grant trigger on refers to NAME_x`, "NAME_x", "right", ""},
	"trigger whose condition calls a function":   {run + calling + onDelete("idempotency_keys", "execute function suppress_redundant_updates_trigger()"), "public", "condition", ""},
	"trigger whose condition has an operator that is not PostgreSQL's": {run + `create function two(text, text) returns bool language sql as 'select true'; create operator %% (leftarg = text, rightarg = text, function = two);
		create trigger t before delete on idempotency_keys for each row when (old.id %% old.scope) execute function run()`, "public", "condition", ""},
	"trigger with arguments":                  {run + `create trigger t before delete on idempotency_keys for each row execute function run('select 1')`, "public", "condition", ""},
	"condition of a trigger behind a cascade": {run + calling + refers + onDelete("refers", "execute function run()"), "public", "condition", ""},
	"condition of a trigger behind a rule": {run + calling + `create table gone (id text); ` + onDelete("gone", "execute function run()") + `;
		create rule r as on delete to idempotency_keys do also delete from gone where id = old.id`, "public", "condition", ""},
	"trigger that was replaced since it was wanted": {run + calling + apart(onDelete("idempotency_keys", "execute function run()"), commented,
		strings.Replace(onDelete("idempotency_keys", "execute function run()"), "create", "create or replace", 1)), "public", "condition", ""},
	"trigger that is not wanted": {run + calling + onDelete("idempotency_keys", "execute function run()") + `; comment on trigger t on idempotency_keys is 'audit'`, "public", "condition", ""},
	"schema of the role's own name": {run + `create role NAME_x; grant create on database DATABASE to NAME_x; grant usage, create on schema public to NAME_x; set local role NAME_x; create schema NAME_me;
		create table NAME_me.idempotency_keys (id text); reset role`, "NAME_x", "table", ""},
}

func TestWhoCouldGetTheRightsOfTheRoleIsAStranger(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for what, row := range strangers {
		for _, as := range []string{"NAME_me", "none"} {
			if row.as != "" && row.as != as {
				continue
			}
			schema := "public"
			if strings.Contains(row.sql, "create schema") {
				schema = "NAME_me"
			}
			table, in := described(t, pool, row.sql, as, schema)
			s, found := table.StrangerByName(keytable.Reading), false
			for _, each := range table.Strangers {
				found = found || each.Kind == row.kind && each.Role == in(row.role)
			}
			if s == nil || !found {
				t.Errorf("%s, as %s: %+v, want the %s of %s", what, as, table.Strangers, row.kind, in(row.role))
				continue
			}
			if text := s.Found("t") + s.Remedy(); !strings.Contains(text, s.Role) {
				t.Errorf("%s: %s", what, text)
			}
		}
	}
}

func TestWhoAlreadyHasTheRightsOfTheRoleOrGaveItTheTableIsNoStranger(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for what, sql := range map[string]string{
		"member":                  run + `create role NAME_x role NAME_me; alter table idempotency_keys owner to NAME_x`,
		"who can act as the role": run + `create role NAME_x in role NAME_me; alter table idempotency_keys owner to NAME_x; alter schema public owner to NAME_x; grant create on database DATABASE to NAME_x`,
		"member without them":     `create role NAME_me noinherit; create role NAME_x role NAME_me; alter table idempotency_keys owner to NAME_x`,
		"superuser's":             run + conditional,
		"trigger that compares":   run + `create trigger t before update on idempotency_keys for each row when (old.* is distinct from new.* and old.id <> 'x') execute function run()`,
		"trigger that is wanted":  run + calling + onDelete("idempotency_keys", "execute function run('x')") + "; " + commented,
		"trigger that is wanted since it was changed": run + calling + apart(onDelete("idempotency_keys", "execute function run()")+"; "+commented, "alter trigger t on idempotency_keys rename to u; alter trigger u on idempotency_keys rename to t", commented),
		"trigger that is wanted on all partitions": run + calling + `drop table idempotency_keys; create table idempotency_keys (id text, scope text) partition by hash (id); create table part partition of idempotency_keys for values with (modulus 1, remainder 0);
			create trigger t after delete on idempotency_keys for each row when (calls(old.id)) execute function run(); ` + commented,
		"member by the will of who has made the role": `create role NAME_admin createrole; set local role NAME_admin; create role NAME_me; create role NAME_x; grant NAME_x to NAME_me; reset role;
			alter table idempotency_keys owner to NAME_x; alter schema public owner to NAME_x`,
		"member by the will of another member of what is its member": run + `create role NAME_x; create role NAME_a; create role NAME_team role NAME_me, NAME_a; grant NAME_x to NAME_a with admin option; set local role NAME_a; grant NAME_x to NAME_team; reset role;
			alter table idempotency_keys owner to NAME_x`,
		"member of a member": run + `create role NAME_x; create role NAME_y role NAME_me; grant NAME_x to NAME_y; alter table idempotency_keys owner to NAME_x`,
		"owner of the schema beside a member of the owner of the database who creates schemas": run + `create role NAME_db; alter database DATABASE owner to NAME_db; create role NAME_x; create role NAME_admin in role NAME_db, NAME_x;
			alter table idempotency_keys owner to NAME_x; alter schema public owner to NAME_x`,
		"owner of the schema where only the role itself may create others": run + `create role NAME_x; grant create on database DATABASE to NAME_me; alter table idempotency_keys owner to NAME_x; alter schema public owner to NAME_x`,
		"owner of the schema": run + `create role NAME_x; alter table idempotency_keys owner to NAME_x; alter schema public owner to NAME_x`,
		"owner of the database": run + conditional + `create role NAME_x; alter database DATABASE owner to NAME_x; alter table idempotency_keys owner to pg_database_owner;
			grant trigger on idempotency_keys to NAME_x`,
		"members of the owner of the database": run + conditional + `create role NAME_x role NAME_me; alter database DATABASE owner to NAME_x; alter table idempotency_keys owner to pg_database_owner;
			alter schema public owner to pg_database_owner`,
	} {
		if table, _ := described(t, pool, sql, "NAME_me", "public"); table.StrangerToCalls() != nil {
			t.Errorf("%s: %+v", what, table.Strangers)
		}
	}
}

// Whoever can only become a role does not have its rights: what only an owner does would run
// what that role has put there.
func TestRoleThatOneCanOnlyBecomeIsAStrangerToOwners(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for inherits, becomes := range map[string]bool{"noinherit": true, "inherit": false} {
		table, _ := described(t, pool, `create role NAME_me `+inherits+`; create role NAME_x role NAME_me; alter table idempotency_keys owner to NAME_x`, "NAME_me", "public")
		if (table.StrangerToOwners() != nil) != becomes || table.StrangerToCalls() != nil {
			t.Errorf("%s: %+v", inherits, table.Strangers)
		}
	}
}

// Under a lock the table stays where it is, until somebody renames the schema.
func TestOwnerOfTheSchemaCountsForWhoNamesTheTable(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	table, _ := described(t, pool, run+conditional+"create role NAME_x; grant create on database DATABASE to NAME_x; grant usage on schema public to NAME_me; alter schema public owner to NAME_x", "NAME_me", "public")
	if table.Stranger() != nil || table.StrangerUnlessLocked() != nil || table.StrangerToOwners() != nil {
		t.Errorf("%+v", table.Strangers)
	}
	if s := table.StrangerByName(keytable.Reading); s == nil || !strings.Contains(s.Found("t"), "the owner of the schema") {
		t.Errorf("%+v", table.Strangers)
	}
	table, _ = described(t, pool, run+"create role NAME_x; alter schema public owner to NAME_x", "none", "public")
	if table.StrangerByName(keytable.Reading) != nil || table.StrangerByName(keytable.Writing) == nil {
		t.Errorf("as a superuser, where nothing can run: %+v", table.Strangers)
	}
}

// Whoever only looks runs no trigger, and who changes the table locks it first.
func TestRightToCreateATriggerCountsForWhoWritesBeforeThereIsOne(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	table, _ := described(t, pool, run+`create role NAME_x; grant trigger on idempotency_keys to NAME_x`, "NAME_me", "public")
	if table.Stranger() != nil || table.StrangerUnlessLocked() != nil || table.StrangerToOwners() != nil {
		t.Errorf("%+v", table.Strangers)
	}
	if s := table.StrangerToCalls(); s == nil || strings.Contains(s.Found("t"), "has a trigger") {
		t.Errorf("%+v", s)
	}
}

// With a table that refers to this one, and cascades, triggers run. One that is there is
// not by whoever may only refer.
func TestRightToReferToTheTableCountsForWhoWrites(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for _, columns := range []string{"", " (id, scope)"} {
		table, in := described(t, pool, run+conditional+"create role NAME_x; grant references"+columns+" on idempotency_keys to NAME_x", "NAME_me", "public")
		if s := table.StrangerToCalls(); s == nil || s.Role != in("NAME_x") || !strings.Contains(s.Found("t"), "the right references") {
			t.Errorf("references%s: %+v", columns, s)
		}
		if table.Stranger() != nil || table.StrangerUnlessLocked() != nil || table.StrangerToOwners() != nil {
			t.Errorf("references%s: %+v", columns, table.Strangers)
		}
	}
}

func TestRemedyForARightTakesItAway(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for _, grant := range []string{
		`create role NAME_x; grant trigger, references on idempotency_keys to NAME_x with grant option; set local role NAME_x; grant trigger on idempotency_keys to "NAME_o""dd x"; reset role; grant NAME_x to NAME_me`,
		`create role NAME_x; create role NAME_y; grant trigger on idempotency_keys to NAME_x with grant option; set local role NAME_x; grant trigger on idempotency_keys to NAME_y; reset role`,
		`grant trigger on idempotency_keys to public`, `grant references (id) on idempotency_keys to "NAME_o""dd x"`,
		`create schema "O""dd"; create table "O""dd".kid () inherits (idempotency_keys); grant all on "O""dd".kid to "NAME_o""dd x"`,
	} {
		sql := run + `create role "NAME_o""dd x"; ` + grant
		table, in := described(t, pool, sql, "NAME_me", "public")
		s := table.StrangerToCalls()
		if s == nil || s.Kind != "right" {
			t.Errorf("%s: %+v", grant, table.Strangers)
			continue
		}
		_, remedy, _ := strings.Cut(s.Remedy(), "and revoke")
		if table, _ := described(t, pool, sql+"; revoke "+remedy, in("NAME_me"), "public"); table.StrangerToCalls() != nil {
			t.Errorf("%s, after %s: %+v", grant, remedy, table.Strangers)
		}
	}
}

// PostgreSQL 16 makes who creates a role a member of it, without its rights. Whoever the
// role's maker lets administer it can add them, by a second membership.
func TestRightsThatAStrangerAddsToAMembershipAreNotTrusted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	since16(t, pool)
	made := `create role NAME_me createrole; create role NAME_x; set local role NAME_me; create role NAME_team; grant NAME_team to NAME_x with admin true; reset role; alter table idempotency_keys owner to NAME_team; `
	for what, row := range map[string]struct {
		sql               string
		stranger, becomes bool
	}{
		"nothing is added":                    {made, true, false},
		"a stranger adds them":                {made + `set local role NAME_x; grant NAME_team to NAME_me with inherit true, set true; reset role`, true, false},
		"a superuser adds them":               {made + `grant NAME_team to NAME_me with inherit true`, false, false},
		"a superuser lets it become the role": {made + `grant NAME_team to NAME_me with inherit false, set true`, true, true},
	} {
		table, in := described(t, pool, row.sql, "NAME_me", "public")
		i := slices.IndexFunc(table.Strangers, func(s keytable.Stranger) bool { return s.Kind == "table" && s.Role == in("NAME_team") })
		if (i >= 0) != row.stranger || i >= 0 && table.Strangers[i].Host != row.becomes {
			t.Errorf("%s: %+v", what, table.Strangers)
		}
	}
}

// PostgreSQL 16 lets a role be a member of another without any right.
func TestMemberWithoutRightsIsNobodyWhoCouldActAsTheRole(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	since16(t, pool)
	made := `create role NAME_me; create role NAME_lead; create role NAME_boss; create role NAME_x; grant NAME_x to NAME_lead with admin option; OPTION; set local role NAME_lead; grant NAME_x to NAME_me; reset role;
		alter table idempotency_keys owner to NAME_x`
	owner := `create role NAME_me; create role NAME_db; create role NAME_boss; alter database DATABASE owner to NAME_db; create role NAME_x; grant create on database DATABASE to NAME_x;
		OPTION; alter table idempotency_keys owner to NAME_x; alter schema public owner to NAME_x`
	const without = " with inherit false, set false"
	for option, trusted := range map[string]bool{
		"grant GROUP to MEMBER" + without:                                                                                            false,
		"grant GROUP to MEMBER with inherit false, set true":                                                                         true,
		"grant GROUP to MEMBER with inherit true, set false":                                                                         true,
		"grant GROUP to MEMBER with admin true, inherit false, set false":                                                            true,
		"grant GROUP to NAME_boss with admin true, inherit false, set false; grant NAME_boss to MEMBER" + without:                    false,
		"grant GROUP to NAME_boss with admin true, inherit false, set false; grant NAME_boss to MEMBER with inherit false, set true": true,
	} {
		for what, sql := range map[string]string{
			"grantor":            strings.ReplaceAll(made, "OPTION", strings.NewReplacer("GROUP", "NAME_me", "MEMBER", "NAME_lead").Replace(option)),
			"creator of schemas": strings.ReplaceAll(owner, "OPTION", strings.NewReplacer("GROUP", "NAME_db", "MEMBER", "NAME_x").Replace(option)),
		} {
			if table, _ := described(t, pool, sql, "NAME_me", "public"); (table.StrangerToCalls() == nil) != trusted {
				t.Errorf("%s, %s: %+v", what, option, table.Strangers)
			}
		}
	}
}

func since16(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	if version(t, pool) < 160000 {
		t.Skip("a membership has no options before PostgreSQL 16")
	}
}

func version(t *testing.T, pool *pgxpool.Pool) (version int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), "select current_setting('server_version_num')::int").Scan(&version); err != nil {
		t.Fatal(err)
	}
	return version
}

// A statement that names a column which is not there, or has another type, can run what
// somebody has planted.
func TestTableWithoutOurColumnsIsNotInert(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for table, column := range map[string]string{keytable.Name: "origin", keytable.Operations: "attempts", keytable.Migrations: "version"} {
		for change, inert := range map[string]bool{"add extra text": true, "drop column " + column: false, "alter " + column + " type varchar": false} {
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			sql := "create role NAME_x; alter schema public owner to NAME_x; alter table TABLE owner to NAME_x; alter table TABLE " + change
			sql = strings.NewReplacer("NAME", pool.Config().ConnConfig.Database, "TABLE", table).Replace(sql)
			if _, err := tx.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(err)
			}
			described, err := keytable.Describe(t.Context(), tx, "public", table)
			if err != nil {
				t.Error(err)
			}
			if described.Inert() != inert || described.Fits() != inert || (described.Unfit() == "") != inert {
				t.Errorf("%s, %s: %+v, %q", table, change, described.Strangers, described.Unfit())
			}
			_ = tx.Rollback(context.WithoutCancel(t.Context()))
		}
	}
}

// PostgreSQL 16 does not let a role go that has made somebody a member.
func TestMemberByTheWillOfARoleThatIsGoneIsTrusted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	if version(t, pool) >= 160000 {
		t.Skip("a grantor cannot be dropped since PostgreSQL 16")
	}
	table, _ := described(t, pool, run+`create role NAME_x; create role NAME_gone; grant NAME_x to NAME_gone with admin option;
		set local role NAME_gone; grant NAME_x to NAME_me; reset role; drop role NAME_gone; alter table idempotency_keys owner to NAME_x`, "NAME_me", "public")
	if table.StrangerToCalls() != nil {
		t.Errorf("%+v", table.Strangers)
	}
}
