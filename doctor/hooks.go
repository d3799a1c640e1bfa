package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/keytable"
)

// A hook is something on the table that acts when a call writes its row, or when a
// purge deletes it.
type hook struct {
	Kind   string // trigger, rule, foreign key
	Name   string
	When   string   // before insert or update, for example
	On     []string // the schema and the table that has it
	Refers bool     // a foreign key of another table
}

const wanted = keytable.Wanted

// partsSQL are the table and its partitions.
const partsSQL = `
with parts as (
	select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
	where n.nspname = $1::text and c.relname = 'idempotency_keys'
	union
	select p.relid::oid from pg_class c join pg_namespace n on n.oid = c.relnamespace, pg_partition_tree(c.oid::regclass) p
	where n.nspname = $1::text and c.relname = 'idempotency_keys'
)`

// hooksSQL leaves out what does not fire: disabled, or on a replica only. The
// triggers of partitions count; those that PostgreSQL makes for itself, for a foreign
// key or as a copy of the parent's, do not. No call truncates, and a rule on select
// makes a view.
const hooksSQL = partsSQL + `, hooks as (
	select 'trigger' as kind, t.tgname::text as name,
		case when (t.tgtype::int & 2) > 0 then 'before ' else 'after ' end || pg_catalog.concat_ws(' or ',
			case when (t.tgtype::int & 4) > 0 then 'insert' end, case when (t.tgtype::int & 16) > 0 then 'update' end, case when (t.tgtype::int & 8) > 0 then 'delete' end) as action,
		t.tgrelid as place, false as refers, obj_description(t.oid, 'pg_trigger'::name) as remark
	from pg_trigger t
	where t.tgrelid in (select oid from parts) and not t.tgisinternal and t.tgparentid = 0::oid and t.tgenabled in ('O', 'A') and (t.tgtype::int & 28) > 0
	union all
	select 'rule', r.rulename::text, 'on ' || case r.ev_type when '2' then 'update' when '3' then 'insert' else 'delete' end, r.ev_class, false, obj_description(r.oid, 'pg_rewrite'::name)
	from pg_rewrite r
	where r.ev_class in (select oid from parts) and r.ev_enabled in ('O', 'A') and r.ev_type in ('2', '3', '4')
	union all
	select 'foreign key', k.conname::text, '', k.conrelid, k.conrelid not in (select oid from parts),
		obj_description(k.oid, 'pg_constraint'::name)
	from pg_constraint k
	where k.contype = 'f' and k.conparentid = 0::oid and (k.conrelid in (select oid from parts) or k.confrelid in (select oid from parts))
)
select coalesce(pg_catalog.json_agg(pg_catalog.json_build_object('Kind', kind, 'Name', name, 'When', action, 'On', (
		select array[n.nspname::text, c.relname::text] from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = place),
		'Refers', refers) order by kind, name, place), '[]')
from hooks where coalesce(remark, '') not like '%' || $2::text || '%'`

// checkHooks names what can change or drop a record. A call finds out by itself what
// a trigger before its record, or a rule, has changed; a trigger that changes the row
// afterwards only shows here.
func checkHooks(ctx context.Context, p *patient) error {
	if p.table == nil {
		return nil
	}
	var hooks []hook
	if err := p.query(ctx, "looking for triggers and rules", hooksSQL, []any{p.table.schema, wanted}, &hooks); err != nil {
		return err
	}
	for _, h := range hooks {
		name := pgx.Identifier{h.Name}.Sanitize()
		table := pgx.Identifier(h.On).Sanitize()
		on := h.Kind + " " + name + " on " + table
		known := fmt.Sprintf("if it is yours and leaves the rows as they are: comment on %s is '%s'", on, wanted)
		switch {
		case h.Kind == "trigger":
			p.find(Warning, "trigger", fmt.Sprintf("the trigger %s, %s, can change or drop a record: calls fail, or a retry gets another result, or runs again", name, h.When),
				"drop "+on+"; "+known)
		case h.Kind == "rule":
			p.find(Warning, "rule", fmt.Sprintf("the rule %s, %s, can change or drop a record: calls fail, or run again", name, h.When),
				"drop "+on+"; "+known)
		case !h.Refers:
			p.find(Warning, "foreign key", fmt.Sprintf("the foreign key %s makes records depend on other rows: calls fail without these, and where it cascades records go with them", name),
				fmt.Sprintf("alter table %s drop constraint %s", table, name))
		default:
			p.find(Warning, "foreign key", fmt.Sprintf("the foreign key %s of %s refers to records: a purge fails at the first that is referred to, and so does Delete, or they take those rows with them", name, table),
				fmt.Sprintf("alter table %s drop constraint %s; and store the key's scope and id without it", table, name))
		}
	}
	return nil
}

// A policy is one of row-level security.
type policy struct {
	Name       string
	Command    string // r, a, w, d, or *
	Permissive bool
	Unlimited  bool // true for every row
	Applies    bool // to the current role
	Wanted     bool
}

const policiesSQL = `
select row_security_active(c.oid), (
	select coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
			'Name', l.polname, 'Command', l.polcmd, 'Permissive', l.polpermissive,
			'Unlimited', coalesce(pg_get_expr(l.polqual, l.polrelid), 'true') = 'true' and coalesce(pg_get_expr(l.polwithcheck, l.polrelid), 'true') = 'true',
			'Applies', 0::oid = any(l.polroles) or exists (select from pg_roles r where r.oid = any(l.polroles) and pg_has_role(r.oid, 'usage'::text)),
			'Wanted', coalesce(obj_description(l.oid, 'pg_policy'::name), '') like '%' || $2::text || '%'
		) order by l.polname), '[]')
	from pg_policy l where l.polrelid = c.oid)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1::text and c.relname = 'idempotency_keys' and c.relrowsecurity`

// commands are what calls and purges do, as pg_policy has them.
var commands = []struct{ letter, name string }{{"r", "select"}, {"a", "insert"}, {"w", "update"}, {"d", "delete"}}

// checkPolicies names the policies that can hide or refuse a record. Without one that
// permits a command, every row is hidden from it.
func checkPolicies(ctx context.Context, p *patient) error {
	if p.table == nil {
		return nil
	}
	var found []struct {
		Active   bool
		Policies []policy
	}
	query := "select coalesce((select pg_catalog.json_agg(pg_catalog.json_build_object('Active', x.active, 'Policies', x.policies)) from (" + policiesSQL + ") x (active, policies)), '[]')"
	if err := p.query(ctx, "looking for policies", query, []any{p.table.schema, wanted}, &found); err != nil || len(found) == 0 {
		return err // row-level security is off
	}
	var lacks []string
	for _, c := range commands {
		permitted := !found[0].Active
		for _, l := range found[0].Policies {
			permitted = permitted || l.Permissive && l.Applies && (l.Command == "*" || l.Command == c.letter)
		}
		if !permitted {
			lacks = append(lacks, c.name)
		}
	}
	if len(lacks) > 0 {
		p.find(Error, "policy", fmt.Sprintf("row-level security is on for %s, and no policy lets this role %s: calls fail, or wait for a record that they cannot see", p.table.name, strings.Join(lacks, ", ")),
			"create policy ... on "+p.table.name+" for all to this role; or alter table "+p.table.name+" disable row level security")
	}
	for _, l := range found[0].Policies {
		if l.Unlimited || l.Wanted {
			continue
		}
		name := pgx.Identifier{l.Name}.Sanitize()
		p.find(Warning, "policy", fmt.Sprintf("the policy %s can hide a record, or refuse it: a call that cannot see the record of its key does not get its result, and a purge passes it over", name),
			fmt.Sprintf("drop policy %s on %s; if every role sees all records of its own scopes: comment on policy %s on %s is '%s'", name, p.table.name, name, p.table.name, wanted))
	}
	return nil
}

// checkOwner: whom the table obeys can read what it records, and change it, and have
// functions run with the rights of this role, or who has a right to do so later. See
// keytable.Stranger.
func checkOwner(_ context.Context, p *patient) error {
	t := p.table
	switch {
	case t == nil:
	case !t.trusted():
		p.find(Error, "owner", t.StrangerByName(keytable.Reading).Found(t.name), t.StrangerByName(keytable.Reading).Remedy())
	case p.role.calls:
		if s := t.StrangerToCalls(); s != nil && s.Later {
			p.find(Warning, "owner", s.Found(t.name), s.Remedy())
		}
	}
	return nil
}

// errShadowed: nothing else can be asked without running what somebody may have planted.
var errShadowed = errors.New("pg_catalog is not the first of the search_path")

func checkCatalog(ctx context.Context, p *patient) error {
	path, err := keytable.Shadowing(ctx, p.pool, pgx.QueryExecModeExec)
	if err != nil {
		return fmt.Errorf("asking for the search_path: %w", err)
	}
	if path == "" {
		return nil
	}
	p.find(Error, "search_path", fmt.Sprintf("the search_path, %s, names pg_catalog behind another schema: operators and functions that somebody makes there, such as now() or =, run instead of PostgreSQL's in every statement, those of calls and of this doctor too, which has therefore looked no further", path),
		keytable.ShadowingRemedy)
	return errShadowed
}

// checkSearchPath: an operator or a function that somebody has planted there is
// preferred to PostgreSQL's own wherever the types fit better, in the application's
// statements too.
func checkSearchPath(ctx context.Context, p *patient) error {
	open, err := keytable.OpenInPath(ctx, p.pool, pgx.QueryExecModeExec)
	if err != nil {
		return fmt.Errorf("looking at the search_path: %w", err)
	}
	const instead = "or take it out of the search_path, and name the table's schema in Config.Schema (-schema)"
	for _, o := range open {
		schema := pgx.Identifier{o.Schema}.Sanitize()
		if o.Owner != "" {
			p.find(Warning, "search_path", fmt.Sprintf("schema %s is in the search_path, and belongs to role %q, to whom this role does not belong: functions and operators that it makes there can run with the rights of this role", schema, o.Owner),
				fmt.Sprintf("alter schema %s owner to a trusted role; let nobody but the owner of the database create schemas (revoke create on database); %s", schema, instead))
		}
		if o.Others != "" {
			p.find(Warning, "search_path", fmt.Sprintf("schema %s is in the search_path, and objects can be created in it by: %s: their functions and operators can run with the rights of this role", schema, o.Others),
				fmt.Sprintf("revoke create on schema %s from %s; %s", schema, o.Others, instead))
		}
	}
	return nil
}
