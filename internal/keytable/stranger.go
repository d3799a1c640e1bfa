package keytable

import (
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// A Stranger is a role that the table obeys and the current role does not: neither this
// role, nor one whose rights it has as a member, nor one that can become it by SET ROLE and
// so has its rights already, nor a superuser. What a stranger has put on the table would
// run with the rights of the current role. Membership means trust: each member of the owner
// is trusted by all the others. But members of a predefined role (pg_monitor) did not choose
// each other, and a superuser, who has the rights of all roles, counts as a member of none.
type Stranger struct {
	Kind string // table, schema, child, what is of that role: trigger, rule, policy, ...; right, of Privilege on Name; or condition, of the trigger Name
	Name string
	Role string // public is everybody

	// Of a right: trigger or references, and who has given it, if it was not the owner.
	Privilege, Grantor string

	On []string // of a right or a condition: the schema and the table

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
// of the schema can put another table in its place, even if this one is held, for the schema
// itself can be renamed. That is why a superuser writes to no table of another.
func (t Table) StrangerByName(use Use) *Stranger {
	return t.stranger(func(s Stranger) bool { return !s.Host && !s.Later && (use == Writing || !s.Inert) })
}

// StrangerUnlessLocked is Stranger where a lock can keep the owner from changing the table.
func (t Table) StrangerUnlessLocked() *Stranger {
	return t.stranger(func(s Stranger) bool { return s.Kind != "schema" && !s.Host && !s.Later })
}

// StrangerToCalls is Stranger for a program that writes rows and does not hold the table: a
// trigger can still be created before the rows are written.
func (t Table) StrangerToCalls() *Stranger {
	return t.stranger(func(s Stranger) bool { return !s.Host })
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
	case "condition":
		what = fmt.Sprintf("%s has the trigger %q, whose condition or arguments can run SQL, and nothing tells who has made it: everybody who once had the right trigger can have", table, s.Name)
	default:
		what = fmt.Sprintf("%s has the %s %q of role %q", table, s.Kind, s.Name, s.Role)
	}
	if s.Kind == "condition" {
		return what
	}
	if s.Login != "" {
		return what + fmt.Sprintf(", to whom the login %q is a stranger, although the session has another role, which a setting of the database or of the login has given, or a hook of the pool: what they have put there could reset that, and run with the rights of the login", s.Login)
	}
	return what + ", who is no superuser, and of whom the current role is no member (a superuser is taken for a member of none, and nobody for one of a predefined role): what they have put there would run with the rights of this role"
}

// Remedy says what to do.
func (s *Stranger) Remedy() string {
	if s.Kind == "condition" {
		trigger := fmt.Sprintf("trigger %s on %s", pgx.Identifier{s.Name}.Sanitize(), pgx.Identifier(s.On).Sanitize())
		return fmt.Sprintf("drop %s; if it is yours: as the owner of the table, comment on %[1]s is '%s', and again after each change of the trigger", trigger, Wanted)
	}
	if s.Login != "" {
		return "log in as the role that is to be used, or take the setting away: alter database, or alter role, ... reset role (see pg_db_role_setting)"
	}
	switch s.Kind {
	case "table":
		return fmt.Sprintf("if that is the right owner, connect as role %q, or as a member of it that is no superuser, or let it act as the role that asks (grant that to it); or, if it also owns the schema, let nobody but the owner of the database create schemas (revoke create on database); else drop or rename the table, and let only trusted roles create in the schema", s.Role)
	case "schema":
		return fmt.Sprintf("connect as role %q, or as a member of it that is no superuser, or make a trusted role the owner of the schema", s.Role)
	case "right":
		on := pgx.Identifier(s.On).Sanitize()
		if s.Grantor != "" { // what was passed on is taken away with the option to do so
			return fmt.Sprintf("drop the triggers that are not yours, and revoke grant option for trigger, references on table %s from %s cascade", on, pgx.Identifier{s.Grantor}.Sanitize())
		}
		// PostgreSQL takes "public" for everybody, also in quotes.
		return fmt.Sprintf("drop the triggers that are not yours, and revoke trigger, references on table %s from %s cascade", on, pgx.Identifier{s.Role}.Sanitize())
	}
	return "drop it, or make the owner of the table the owner of the function, the type or the table behind it"
}

// somebodysSQL is true for a trigger t that somebody has created, and PostgreSQL has not made
// for a constraint.
const somebodysSQL = `not exists (select from pg_constraint k where k.oid = t.tgconstraint and k.contype <> 't')`

// strangersSQL finds whom a relation obeys, and keeps those who could thereby get rights
// of the current role: see Stranger. Each operator and function is exactly one of
// pg_catalog, as in describeSQL.
//
// That is the owner of the table, of its children and of the tables that refer to it: an
// owner can put there whatever they like. A cascade fires triggers. A foreign key without
// one only looks, and with the rights of the owner of the table that refers to this one: but
// an expression of an index there can queue a deferred trigger, which runs at COMMIT with
// the rights of whoever deletes, or change the session's search_path. The owner of the
// schema can put another table there.
//
// It is also the owner of everything that something on these tables uses: the function of
// a trigger, of a rule, a policy, a default, a constraint, an index, the type of a column.
// The planner itself runs functions in the expressions of indexes, partitions and
// statistics. What is used uses other things in turn, and has parts (deptype a and i): an
// operator has a function, a domain has constraints, a view has a rule.
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
// The owner of the schema is no host where somebody else may create schemas, but for the
// database's owner and its members: they could have made this one, under a name that is in
// the search_path ("$user"), and have given it to a role whose members they were only then.
var strangersSQL = `
with recursive ` + friendsSQL + `, parts (oid, kind, name, owner, locked) as (
	select c.oid, 'table', c.relname, c.relowner, true
	union
	select x.oid, l.kind, coalesce(l.name, x.relname), x.relowner, p.locked and l.kind = 'child'::text from parts p join (
		select i.inhparent, i.inhrelid, 'child', null::name from pg_inherits i
		union all
		select k.confrelid, k.conrelid, 'foreign key', k.conname from pg_constraint k where k.contype = 'f'
	) l (part, oid, kind, name) on l.part = p.oid join pg_class x on x.oid = l.oid
), things (class, oid, part, kind, name, inert) as (
	select 'pg_class'::regclass::oid, x.oid, 0, case p.kind when 'table' then 'parent or type' else p.kind end, p.name,
		p.kind = 'table' and x.relkind = 'r'
	from parts p join pg_class x on x.oid = p.oid
	union all
	select 'pg_class'::regclass::oid, a.attrelid, a.attnum::int4, 'column', a.attname, true from pg_attribute a where a.attrelid = any(array(select oid from parts)) and a.attnum > 0
	union all
	select 'pg_trigger'::regclass::oid, t.oid, 0, 'trigger', t.tgname, false from pg_trigger t where t.tgrelid = any(array(select oid from parts)) and ` + somebodysSQL + `
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
		union all
		select 'pg_class'::regclass::oid, i.inhrelid from pg_inherits i where u.class = 'pg_class'::regclass::oid and i.inhparent = u.oid
	) s (class, oid)
	where not exists (select from things t where t.class = s.class and t.oid = s.oid)
), obeyed (kind, name, owner, privilege, place, grantor, later) as materialized (
	select p.kind, p.name, p.owner, null, null::oid, null::oid, false from parts p
	union
	select 'schema', n.nspname, n.nspowner, null, null, null, false
	union
	select 'right', x.relname, g.grantee, lower(g.privilege_type), x.oid, nullif(g.grantor, x.relowner),
		x.locked and (g.privilege_type = 'REFERENCES' or not exists (select from pg_trigger t where t.tgrelid = x.oid and ` + somebodysSQL + `))
	from (
		select x.*, exists (select from parts p where p.oid = x.oid and p.locked) as locked from pg_class x
		where x.oid = any(array(select oid from parts)) or x.oid = any(array(select oid from uses where class = 'pg_class'::regclass::oid))
	) x
	cross join lateral (select x.relacl union all select a.attacl from pg_attribute a where a.attrelid = x.oid) acls (acl)
	cross join lateral aclexplode(acls.acl) g
	where g.privilege_type in ('TRIGGER', 'REFERENCES') and g.grantee <> x.relowner
	union
	select 'condition', t.tgname, 0::oid, null, t.tgrelid, null, false
	from pg_trigger t
	where t.oid = any(array(select oid from things where class = 'pg_trigger'::regclass::oid union all select oid from uses where class = 'pg_trigger'::regclass::oid))
		and ` + somebodysSQL + ` and ` + openSQL + `
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
		'Host', not me.rolsuper and coalesce(host.landlord or host.becomes, false), 'Privilege', y.privilege, 'Later', y.later,
		'On', (select pg_catalog.json_build_array(s.nspname, x.relname) from pg_class x join pg_namespace s on s.oid = x.relnamespace where x.oid = y.place),
		'Grantor', (select g.rolname from pg_roles g where g.oid = y.grantor),
		'Inert', y.kind in ('table', 'schema') and host.landlord and not exists (select from things where inert is not true)
	) order by y.kind <> 'table', y.kind, y.name, o.rolname), '[]')
from obeyed y
` + judgeSQL + `
where y.owner is not null and ` + obeysSQL + ` is not true`
