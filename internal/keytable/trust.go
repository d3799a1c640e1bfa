package keytable

// before16 is true where a membership has no options, and no role can be a member of
// another without its rights.
const before16 = `current_setting('server_version_num'::text)::int4 < 160000`

// The modes of pg_has_role. On PostgreSQL 16, 'member' is true also for who may neither
// inherit the rights nor set the role, and so has nothing of it.
const (
	becomesMode = `case when ` + before16 + ` then 'member'::text else 'set'::text end`
	actsMode    = `case when ` + before16 + ` then 'member'::text else 'set, usage'::text end`
)

// acts is true if a role has the rights of another, or can give them to itself, since it
// acts for who administers the other. 'member with admin option' would also count who is a
// member of the administrator without its rights.
func acts(role, as string) string {
	return `(pg_has_role(` + role + `, ` + as + `, ` + actsMode + `)
		or exists (select from pg_auth_members a where a.roleid = ` + as + ` and a.admin_option and pg_has_role(` + role + `, a.member, ` + actsMode + `)))`
}

// friends are the roles that the current one is a member of by the will of somebody who
// could act as it anyway: on PostgreSQL 14 a role can make everybody a member of itself,
// and who administers a role can make everybody a member of that. A grantor that has been
// dropped since, as is possible up to PostgreSQL 15, is trusted: nobody can be found to ask.
// What such a membership gives is decided by itself, and not by pg_has_role, for which
// another one can add to it: PostgreSQL 16 makes who creates a role a member of it without
// its rights, and whoever administers the role can then add these. Before 16,
// pg_auth_members has no such options.
var friendsSQL = `friends (oid, inherits, becomes) as (
	select oid, true, true from pg_roles where rolname = current_user
	union
	select m.roleid, f.inherits and coalesce((pg_catalog.to_jsonb(m) ->> 'inherit_option'::text)::bool, r.rolinherit),
		f.becomes and coalesce((pg_catalog.to_jsonb(m) ->> 'set_option'::text)::bool, true)
	from friends f
	join pg_roles r on r.oid = f.oid and left(r.rolname::text, 3) <> 'pg_'
	join pg_auth_members m on m.member = f.oid
	left join pg_roles g on g.oid = m.grantor
	where g.oid is null or g.rolcreaterole and ` + before16 + ` or ` + acts("g.oid", "f.oid") + `
)`

// judgeSQL joins what is known of y.owner, a role that something in the schema n is of: o
// is that role, and me the current one. The owner of the schema is no landlord where
// somebody else may create schemas, but for the database's owner and who can act as it.
var judgeSQL = `cross join lateral (select b.oid, b.datdba, case when y.owner = 'pg_database_owner'::regrole::oid then b.datdba else y.owner end from pg_database b where b.datname = current_database()) base (oid, datdba, owner)
join pg_roles me on me.rolname = current_user
left join pg_roles o on o.oid = base.owner
cross join lateral (select left(o.rolname::text, 3) = 'pg_') pre (defined)
cross join lateral (select
	not pre.defined and (o.oid = base.datdba or o.oid = n.nspowner and not exists (
		select from pg_roles r
		where has_database_privilege(r.oid, base.oid, 'create'::text) and not ` + acts("r.oid", "base.datdba") + `
			and r.oid <> all(array(select oid from friends where inherits)))),
	not pre.defined and exists (select from friends f where f.oid = o.oid and f.becomes)
) host (landlord, becomes)`

// obeysSQL is true, behind judgeSQL, for who has the rights of the current role already,
// or is trusted with them. For pg_has_role, that role itself and superusers are members.
const obeysSQL = `(pg_has_role(o.oid, me.oid, ` + becomesMode + `)
	or (not me.rolsuper and not pre.defined and exists (select from friends f where f.oid = o.oid and f.inherits)))`

// Wanted in the comment of a trigger, a rule or a policy says that the owner of the table
// knows of it, and that it does no harm.
const Wanted = "idempotency: wanted"

// openSQL is true for a trigger t that can run whatever its maker likes, although all its
// functions are trusted: its condition calls a function or an operator that is not
// PostgreSQL's, or it gives arguments to the trigger's function. The right to make one can
// have been taken away since. So the owner of the table has to say in a comment, which
// nobody else can set, that it is wanted; and not before the trigger was changed for the
// last time: CREATE OR REPLACE TRIGGER needs no more than the right, and keeps the comment.
// The difference of two ages is right as long as they are less than 2^31 transactions
// apart. What is copied to a partition is as the trigger of the parent.
const openSQL = `(t.tgnargs > 0::smallint or t.tgqual::text ~ '[{]FUNCEXPR| :opnos? [^:]*[0-9]{5}'::text)
		and not exists (select from pg_trigger p where p.oid = t.tgparentid and p.tgrelid = any(array(select oid from parts)))
		and not exists (select from pg_description d
			where d.classoid = 'pg_trigger'::regclass::oid and d.objoid = t.oid and d.objsubid = 0 and d.description like '%` + Wanted + `%'::text
				and (age(t.xmin)::bigint - age(d.xmin)::bigint) & 2147483648::bigint = 0::bigint)`
