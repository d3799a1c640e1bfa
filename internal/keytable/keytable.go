// Package keytable describes the tables of a database as they are, and says what
// package idempotency needs of them, and who could get the rights of those who use them.
package keytable

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Name of the table of the keys, in whatever schema it is, of the index that the purge
// goes by, and of the table of the procedures' operations.
const (
	Name       = "idempotency_keys"
	IndexName  = "idempotency_keys_purge_after"
	Operations = "idempotency_operations"
)

// required are the columns that package idempotency needs, by the name of the table.
var required = map[string][]Column{
	Name: {
		{Name: "id", Type: "text"},
		{Name: "scope", Type: "text"},
		{Name: "fingerprint", Type: "bytea"},
		{Name: "result", Type: "bytea"},
		{Name: "origin", Type: "text"},
		{Name: "completed_at", Type: "timestamptz"},
		{Name: "expires_at", Type: "timestamptz"},
		{Name: "purge_after", Type: "timestamptz"},
	},
	Operations: {
		{Name: "id", Type: "text"},
		{Name: "scope", Type: "text"},
		{Name: "number", Type: "uuid"},
		{Name: "started_at", Type: "timestamptz"},
		{Name: "progressed_at", Type: "timestamptz"},
		{Name: "due_at", Type: "timestamptz"},
		{Name: "attempts", Type: "int4"},
		{Name: "name", Type: "text"},
		{Name: "fingerprint", Type: "bytea"},
		{Name: "error", Type: "text"},
		{Name: "input", Type: "bytea"},
		{Name: "labels", Type: "_text"},
		{Name: "results", Type: "_bytea"},
	},
}

// A Table is a relation of a name that was asked for.
type Table struct {
	name        string
	Kind        string // pg_class.relkind
	Persistence string // pg_class.relpersistence
	Strangers   []Stranger
	Columns     []Column
	Indexes     []Index
}

type Column struct {
	Name      string
	Type      string // as pg_type has it, in pg_catalog without the schema
	NoDefault bool   // not null, and without a default
	Folding   bool   // its collation is nondeterministic: different texts can be equal
}

// An Index is on columns in that order. An expression's name is empty.
type Index struct {
	Name      string
	Columns   []string
	Unique    bool // also an exclusion constraint, which refuses rows as well
	Primary   bool
	Valid     bool
	Immediate bool
	Partial   bool
	Folding   bool // by a nondeterministic collation
	Included  int  // columns that are not part of the key
}

// A Querier is a connection, a pool or a transaction.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Begin(ctx context.Context) (pgx.Tx, error)
}

// ErrMissing says that there is no relation of that name.
var ErrMissing = errors.New("missing")

// strangersSQL finds whom a relation obeys, and keeps those who could thereby get rights
// of the current role: see Stranger. Each operator and function is exactly one of
// pg_catalog, as in describeSQL.
//
// That is the owner of the table, of its schema, of its children and of the tables that a
// cascade changes with it, since that fires their triggers: an owner can put there whatever
// they like, and the owner of a schema can put another table there. It is also the owner
// of everything that something on these tables uses: the function of a trigger, of a rule,
// a policy, a default, a constraint, an index, the type of a column. The planner itself
// runs functions in the expressions of indexes, partitions and statistics. What is used
// uses other things in turn, and has parts (deptype a and i): an operator has a function, a
// domain has constraints, a view has a rule.
//
// Nothing says who has created a trigger, and its condition can run SQL by PostgreSQL's
// own functions (query_to_xml): so a trigger is also that of all who may create one. Who
// may refer to the table can do it later. Everything else can only be put there by the
// owner.
//
// pg_depend has what is used. Its owner is where it is described: pg_shdepend lacks what
// a predefined role owns. pg_database_owner is the owner of the database, the only
// member that it can have. From PostgreSQL 18 on, pg_constraint has each NOT NULL too
// ('n'), which runs nothing; nor does a default that is a constant and no expression.
//
// An owner of the schema who may create schemas could have made this one, under a name
// that is in the search_path ("$user"), and so is no host; nor if a member of it may, but
// for the members of the database's owner.
//
// friends are the roles that the current one is a member of by the will of somebody who
// could act as it anyway: on PostgreSQL 14 a role can make everybody a member of itself,
// and who administers a role can make everybody a member of that. A grantor that is
// dropped (up to PostgreSQL 15) has not done it for that.
const strangersSQL = `
with recursive friends (oid) as (
	select oid from pg_roles where rolname = current_user
	union
	select m.roleid from friends f
	join pg_roles r on r.oid = f.oid and left(r.rolname::text, 3) <> 'pg_'
	join pg_auth_members m on m.member = f.oid
	left join pg_roles g on g.oid = m.grantor
	where g.oid is null or g.rolsuper or pg_has_role(g.oid, f.oid, 'member'::text)
		or g.rolcreaterole and current_setting('server_version_num'::text)::int4 < 160000
), parts (oid, kind, name, owner, locked) as (
	select c.oid, 'table', c.relname, c.relowner, true
	union
	select x.oid, l.kind, coalesce(l.name, x.relname), x.relowner, p.locked and l.kind = 'child'::text from parts p join (
		select i.inhparent, i.inhrelid, 'child', null::name from pg_inherits i
		union all
		select k.confrelid, k.conrelid, 'foreign key', k.conname from pg_constraint k
		where k.contype = 'f' and (k.confdeltype in ('c', 'n', 'd') or k.confupdtype in ('c', 'n', 'd'))
	) l (part, oid, kind, name) on l.part = p.oid join pg_class x on x.oid = l.oid
), things (class, oid, part, kind, name, inert) as (
	select 'pg_class'::regclass::oid, x.oid, 0, case p.kind when 'table' then 'parent or type' else p.kind end, p.name,
		p.kind = 'table' and x.relkind = 'r' and not x.relispartition
	from parts p join pg_class x on x.oid = p.oid
	union all
	select 'pg_class'::regclass::oid, a.attrelid, a.attnum::int4, 'column', a.attname, true from pg_attribute a where a.attrelid = any(array(select oid from parts)) and a.attnum > 0
	union all
	select 'pg_trigger'::regclass::oid, t.oid, 0, 'trigger', t.tgname, false from pg_trigger t where t.tgrelid = any(array(select oid from parts))
	union all
	select 'pg_rewrite'::regclass::oid, r.oid, 0, 'rule', r.rulename, false from pg_rewrite r where r.ev_class = any(array(select oid from parts))
	union all
	select 'pg_policy'::regclass::oid, l.oid, 0, 'policy', l.polname, false from pg_policy l where l.polrelid = any(array(select oid from parts))
	union all
	select 'pg_attrdef'::regclass::oid, f.oid, 0, 'default', a.attname, f.adbin::text like '{CONST %'::text from pg_attrdef f join pg_attribute a on a.attrelid = f.adrelid and a.attnum = f.adnum where f.adrelid = any(array(select oid from parts))
	union all
	select 'pg_constraint'::regclass::oid, k.oid, 0, 'constraint', k.conname, k.contype in ('p', 'n') from pg_constraint k where k.conrelid = any(array(select oid from parts))
	union all
	select 'pg_class'::regclass::oid, x.oid, 0, 'index', x.relname, i.indexprs is null and i.indpred is null from pg_index i join pg_class x on x.oid = i.indexrelid where i.indrelid = any(array(select oid from parts))
	union all
	select 'pg_statistic_ext'::regclass::oid, e.oid, 0, 'statistics', e.stxname, false from pg_statistic_ext e where e.stxrelid = any(array(select oid from parts))
), uses (class, oid, kind, name) as (
	select d.refclassid, d.refobjid, t.kind, t.name
	from things t join pg_depend d on d.classid = t.class and d.objid = t.oid and d.objsubid = t.part
	where not exists (select from things t where t.class = d.refclassid and t.oid = d.refobjid)
	union
	select s.class, s.oid, u.kind, u.name
	from uses u cross join lateral (
		select d.refclassid, d.refobjid from pg_depend d where d.classid = u.class and d.objid = u.oid
		union all
		select d.classid, d.objid from pg_depend d where d.refclassid = u.class and d.refobjid = u.oid and d.deptype in ('a', 'i')
	) s (class, oid)
	where not exists (select from things t where t.class = s.class and t.oid = s.oid)
), obeyed (kind, name, owner, privilege, schema, grantor, later) as materialized (
	select p.kind, p.name, p.owner, null, null, null::oid, false from parts p
	union
	select 'schema', n.nspname, n.nspowner, null, null, null, false
	union
	select 'right', x.relname, g.grantee, lower(g.privilege_type), s.nspname, nullif(g.grantor, x.relowner),
		x.locked and (g.privilege_type = 'REFERENCES' or not exists (select from pg_trigger t where t.tgrelid = x.oid and not t.tgisinternal))
	from (
		select x.*, exists (select from parts p where p.oid = x.oid and p.locked) as locked from pg_class x
		where x.oid = any(array(select oid from parts)) or x.oid = any(array(select oid from uses where class = 'pg_class'::regclass::oid))
	) x join pg_namespace s on s.oid = x.relnamespace
	cross join lateral (select x.relacl union all select a.attacl from pg_attribute a where a.attrelid = x.oid) acls (acl)
	cross join lateral aclexplode(acls.acl) g
	where g.privilege_type in ('TRIGGER', 'REFERENCES')
	union
	select u.kind, u.name, case u.class
		when 'pg_class'::regclass::oid then (select relowner from pg_class x where x.oid = u.oid)
		when 'pg_proc'::regclass::oid then (select proowner from pg_proc x where x.oid = u.oid)
		when 'pg_type'::regclass::oid then (select typowner from pg_type x where x.oid = u.oid)
		when 'pg_operator'::regclass::oid then (select oprowner from pg_operator x where x.oid = u.oid)
		when 'pg_opclass'::regclass::oid then (select opcowner from pg_opclass x where x.oid = u.oid)
		when 'pg_opfamily'::regclass::oid then (select opfowner from pg_opfamily x where x.oid = u.oid)
		when 'pg_collation'::regclass::oid then (select collowner from pg_collation x where x.oid = u.oid)
		when 'pg_language'::regclass::oid then (select lanowner from pg_language x where x.oid = u.oid)
		when 'pg_ts_config'::regclass::oid then (select cfgowner from pg_ts_config x where x.oid = u.oid)
		when 'pg_ts_dict'::regclass::oid then (select dictowner from pg_ts_dict x where x.oid = u.oid)
		when 'pg_foreign_server'::regclass::oid then (select srvowner from pg_foreign_server x where x.oid = u.oid)
		when 'pg_foreign_data_wrapper'::regclass::oid then (select fdwowner from pg_foreign_data_wrapper x where x.oid = u.oid)
		end, null, null, null, false
	from uses u
)
select coalesce(pg_catalog.json_agg(pg_catalog.json_build_object('Kind', y.kind, 'Name', y.name, 'Role', coalesce(o.rolname::text, 'public'),
		'Host', not me.rolsuper and coalesce(host.landlord or host.becomes, false), 'Privilege', y.privilege, 'Schema', y.schema, 'Later', y.later,
		'Grantor', (select g.rolname from pg_roles g where g.oid = y.grantor),
		'Inert', y.kind in ('table', 'schema') and host.landlord and not exists (select from things where inert is not true)
	) order by y.kind <> 'table', y.kind, y.name, o.rolname), '[]')
from obeyed y
cross join lateral (select b.oid, b.datdba, case when y.owner = 'pg_database_owner'::regrole::oid then b.datdba else y.owner end from pg_database b where b.datname = current_database()) base (oid, datdba, owner)
join pg_roles me on me.rolname = current_user
left join pg_roles o on o.oid = base.owner
cross join lateral (select left(o.rolname::text, 3) = 'pg_', o.oid = any(array(select oid from friends))) pre (defined, friend)
cross join lateral (select
	not pre.defined and (o.oid = base.datdba or o.oid = n.nspowner and not exists (
		select from pg_roles r
		where not r.rolsuper and not pg_has_role(r.oid, base.datdba, 'member'::text)
			and pg_has_role(r.oid, o.oid, 'member'::text) and has_database_privilege(r.oid, base.oid, 'create'::text))),
	not pre.defined and pre.friend and pg_has_role(o.oid, case when current_setting('server_version_num'::text)::int4 < 160000 then 'member'::text else 'set'::text end)
) host (landlord, becomes)
where y.owner is not null and (o.oid = me.oid or o.rolsuper or (not me.rolsuper and not pre.defined and pre.friend and pg_has_role(o.oid, 'usage'::text))) is not true`

// describeSQL reads the catalog alone, which every role may: it runs nothing of what it
// describes. Each operator and function of it is exactly one of pg_catalog, whatever else
// the search_path has: polymorphic functions are qualified for that. format_type would quote as the session
// is told to (quote_all_identifiers). A long name is cut off as in any statement.
const describeSQL = `
select c.relkind::text, c.relpersistence::text, (` + strangersSQL + `),
	(select coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
			'Name', a.attname, 'NoDefault', a.attnotnull and not a.atthasdef and a.attidentity = '',
			'Folding', exists (select from pg_collation l where l.oid = a.attcollation and not l.collisdeterministic),
			'Type', case when s.nspname = 'pg_catalog' then t.typname::text else s.nspname::text || '.' || t.typname::text end
		) order by a.attnum), '[]')
	from pg_attribute a join pg_type t on t.oid = a.atttypid join pg_namespace s on s.oid = t.typnamespace
	where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
	(select coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
			'Name', x.relname, 'Unique', i.indisunique or i.indisexclusion, 'Primary', i.indisprimary,
			'Valid', i.indisvalid, 'Immediate', i.indimmediate, 'Partial', i.indpred is not null,
			'Included', i.indnatts - i.indnkeyatts,
			'Folding', exists (select from pg_collation l where l.oid = any(i.indcollation::oid[]) and not l.collisdeterministic),
			'Columns', array(
				select coalesce(a.attname::text, '')
				from pg_catalog.unnest(i.indkey::smallint[]) with ordinality k (number, place)
				left join pg_attribute a on a.attrelid = c.oid and a.attnum = k.number
				order by k.place)
		) order by x.relname), '[]')
	from pg_index i join pg_class x on x.oid = i.indexrelid
	where i.indrelid = c.oid),
	(` + givenSQL + `)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1::text::name and c.relname = $2::text::name`

// Describe returns ErrMissing when there is no relation of that name in schema. Ask it
// before any statement on a relation that somebody else could have made.
func Describe(ctx context.Context, q Querier, schema, name string, options ...any) (t Table, err error) {
	t.name = name
	args := append(options, schema, name)
	login, err := t.read(ctx, q, args)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Table{}, ErrMissing
	case err == nil && login != "":
		err = t.describeToLogin(ctx, q, login, args)
	}
	return t, err
}

// read returns also what givenSQL does.
func (t *Table) read(ctx context.Context, q Querier, args []any) (login string, err error) {
	err = q.QueryRow(ctx, describeSQL, args...).Scan(&t.Kind, &t.Persistence, &t.Strangers, &t.Columns, &t.Indexes, &login)
	return login, err
}

const schemaSQL = `
select coalesce((
	select n.nspname::text
	from pg_catalog.unnest(current_schemas(false)) with ordinality p (schema, place)
	join pg_namespace n on n.nspname = p.schema
	join pg_class c on c.relnamespace = n.oid
	where c.relname = $1::text and n.oid <> pg_my_temp_schema()
	order by p.place
	limit 1), '')`

// Schema finds the first schema of the search_path that has a relation of our name, as
// a Store does. Where there is none it returns no text.
func Schema(ctx context.Context, q Querier) (schema string, err error) {
	err = q.QueryRow(ctx, schemaSQL, Name).Scan(&schema)
	return schema, err
}

// A Stranger is a role that the table obeys and the current role does not: neither this
// role, nor one whose rights it has as a member, nor a superuser. What a stranger has put
// on the table would run with the rights of the current role. Membership means trust:
// each member of the owner is trusted by all the others. But members of a predefined role
// (pg_monitor) did not choose each other, and a superuser, who has the rights of all
// roles, counts as a member of none.
type Stranger struct {
	Kind string // table, schema, child, what is of that role: trigger, rule, policy, ...; or right, of Privilege on Name
	Name string
	Role string // public is everybody

	// Of a right: trigger or references, where Name is, and who has given it, if it was not the
	// owner.
	Privilege, Schema, Grantor string

	// The owner of the database, or of a schema that it cannot have made itself, or a role
	// that the current one can become without having its rights. Those who are no
	// superusers trust it with calls and with looking, but not with what only an owner does.
	Host bool

	// The owner of the schema or of the database, as of a Host, whose table can run nothing:
	// it has no trigger, no expression but constants, no child and so on. It is trusted by
	// superusers with no more than that: the owner can change it at any time, unless the
	// table is locked.
	Inert bool

	// The role that has logged in, if it is to this one that Role is a stranger: see givenSQL.
	Login string

	// There is nothing yet that whoever has the right could have made. They are strangers
	// only to who writes rows later, and holds no lock that keeps them from making it.
	Later bool
}

// Stranger returns the first one, or nil if the table can be trusted.
func (t Table) Stranger() *Stranger {
	return t.stranger(func(s Stranger) bool { return s.Kind != "schema" && !s.Host && !s.Inert && !s.Later })
}

// StrangerByName is Stranger for who names the table in statements that follow: the owner
// of the schema can put another table in its place, even if it is locked, for the schema
// itself can be renamed.
func (t Table) StrangerByName() *Stranger {
	return t.stranger(func(s Stranger) bool { return !s.Host && !s.Inert && !s.Later })
}

// StrangerUnlessLocked is Stranger where a lock can keep the owner from changing the table.
func (t Table) StrangerUnlessLocked() *Stranger {
	return t.stranger(func(s Stranger) bool { return s.Kind != "schema" && !s.Host && !s.Later })
}

// StrangerToWriters is StrangerByName for who writes rows and has not locked the table: a
// trigger can still be created before the rows are written.
func (t Table) StrangerToWriters() *Stranger {
	return t.stranger(func(s Stranger) bool { return !s.Host && !s.Inert })
}

// StrangerToOwners is Stranger for what only an owner of the table does, under a lock.
func (t Table) StrangerToOwners() *Stranger {
	return t.stranger(func(s Stranger) bool { return s.Kind != "schema" && !s.Later })
}

func (t Table) stranger(is func(Stranger) bool) *Stranger {
	if i := slices.IndexFunc(t.Strangers, is); i >= 0 {
		return &t.Strangers[i]
	}
	return nil
}

// Found says what is so, of the table of that name.
func (s *Stranger) Found(table string) string {
	what := fmt.Sprintf("%s belongs to role %q", table, s.Role)
	switch s.Kind {
	case "table":
	case "schema":
		what = fmt.Sprintf("%s can be replaced by role %q, the owner of the schema", table, s.Role)
	case "parent or type":
		what = fmt.Sprintf("%s has a parent or a type of role %q", table, s.Role)
	case "right":
		what = fmt.Sprintf("%s gives role %q the right %s on %q", table, s.Role, s.Privilege, s.Name)
		if !s.Later {
			what += ", which has a trigger"
		}
	default:
		what = fmt.Sprintf("%s has the %s %q of role %q", table, s.Kind, s.Name, s.Role)
	}
	if s.Login != "" {
		return what + fmt.Sprintf(", to whom the login %q is a stranger, although a setting of the database or of the login has given the session another role: what they have put there could reset that, and run with the rights of the login", s.Login)
	}
	return what + ", who is no superuser, and of whom the current role is no member (a superuser is taken for a member of none, and nobody for one of a predefined role): what they have put there would run with the rights of this role"
}

// Remedy says what to do.
func (s *Stranger) Remedy() string {
	role := pgx.Identifier{s.Role}.Sanitize()
	if s.Login != "" {
		return "log in as the role that is to be used, or take the setting away: alter database, or alter role, ... reset role (see pg_db_role_setting)"
	}
	switch s.Kind {
	case "table":
		return fmt.Sprintf("if that is the right owner, connect as role %q, or as a member of it that is no superuser; or, if it also owns the schema, let neither it nor its members create others (revoke create on database); else drop or rename the table, and let only trusted roles create in the schema", s.Role)
	case "schema":
		return fmt.Sprintf("connect as role %q, or as a member of it that is no superuser, or make a trusted role the owner of the schema", s.Role)
	case "right":
		if s.Role == "public" {
			role = "public"
		}
		on := pgx.Identifier{s.Schema, s.Name}.Sanitize()
		if s.Grantor != "" { // what was passed on is taken away with the option to do so
			return fmt.Sprintf("drop the triggers that are not yours, and revoke grant option for trigger, references on table %s from %s cascade", on, pgx.Identifier{s.Grantor}.Sanitize())
		}
		return fmt.Sprintf("drop the triggers that are not yours, and revoke trigger, references on table %s from %s cascade", on, role)
	}
	return "drop it, or make the owner of the table the owner of the function, the type or the table behind it"
}

// IsTable is true for a partitioned table too, or one that Citus distributes.
func (t Table) IsTable() bool { return t.Kind == "r" || t.Kind == "p" }

// Missing names the columns that are not there.
func (t Table) Missing() (names []string) {
	for _, want := range required[t.name] {
		if t.column(want.Name) == nil {
			names = append(names, want.Name)
		}
	}
	return names
}

// Mistyped names the columns of another type, with the one they need.
func (t Table) Mistyped() (names []string) {
	for _, want := range required[t.name] {
		if c := t.column(want.Name); c != nil && c.Type != want.Type {
			names = append(names, c.Name+" "+want.Type)
		}
	}
	return names
}

// Folding names the columns of the key that do not tell all texts apart: the call of one
// key would get the result of another.
func (t Table) Folding() (names []string) {
	for _, c := range t.Columns {
		if c.Folding && (c.Name == "id" || c.Name == "scope") {
			names = append(names, c.Name)
		}
	}
	return names
}

// Foreign names the columns that a claim would have to fill, and does not.
func (t Table) Foreign() (names []string) {
	for _, c := range t.Columns {
		ours := slices.ContainsFunc(required[t.name], func(r Column) bool { return r.Name == c.Name })
		if c.NoDefault && !ours {
			names = append(names, c.Name)
		}
	}
	return names
}

func (t Table) column(name string) *Column {
	i := slices.IndexFunc(t.Columns, func(c Column) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &t.Columns[i]
}

// Arbiters are the indexes that keep a call from running twice: unique on id and
// scope, in any order.
func (t Table) Arbiters() (found []Index) {
	for _, i := range t.Indexes {
		if i.arbitrates() {
			found = append(found, i)
		}
	}
	return found
}

func (i Index) arbitrates() bool {
	return i.Unique && i.Valid && i.Immediate && !i.Partial && !i.Folding && i.Included == 0 && len(i.Columns) == 2 &&
		slices.Contains(i.Columns, "id") && slices.Contains(i.Columns, "scope")
}

// Obstacles are the other unique indexes: a claim that they refuse is an error.
func (t Table) Obstacles() (found []Index) {
	for _, i := range t.Indexes {
		if i.Unique && !i.arbitrates() {
			found = append(found, i)
		}
	}
	return found
}

// PurgeIndex is the one that the purge goes by, if it is there.
func (t Table) PurgeIndex() *Index {
	for _, i := range t.Indexes {
		if i.Valid && !i.Partial && i.Columns[0] == "purge_after" {
			return &i
		}
	}
	return nil
}

// Literal is text as a constant of SQL. One with a backslash is written as E'...', which
// means the same whatever standard_conforming_strings says: where that is off, a
// backslash would escape the quote behind it.
//
// A backslash is written by its number. Where client_encoding is SJIS, BIG5, GBK or
// GB18030, a backslash can be the second half of the character before it, and the second
// one of a pair would then escape the quote. No quote can be a second half.
func Literal(text string) string {
	quoted := "'" + strings.ReplaceAll(text, "'", "''") + "'"
	if strings.Contains(text, `\`) {
		return " E" + strings.ReplaceAll(quoted, `\`, `\134`)
	}
	return quoted
}
