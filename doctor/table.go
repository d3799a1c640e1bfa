package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/keytable"
)

// A table is the one that calls use.
type table struct {
	keytable.Table
	schema, name string // the name is qualified and quoted
}

// trusted: its rows may be read. To read those of another runs their policies, and what
// else they have put there.
func (t *table) trusted() bool { return t.StrangerByName(keytable.Reading) == nil }

// sibling names another table in the same schema.
func (t *table) sibling(name string) string { return pgx.Identifier{t.schema, name}.Sanitize() }

// placeSQL looks where a Store would: in the named schema, or along the
// search_path.
const placeSQL = `
select coalesce(
		nullif($1::text, ''),
		(select n.nspname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
		where c.oid = to_regclass('idempotency_keys'::text)::oid),
		''),
	current_setting('search_path'::text),
	array(
		select n.nspname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
		where c.relname = 'idempotency_keys' and c.relkind in ('r', 'p')
		order by 1)`

const migrate = `run "idempotency migrate up" or migrations.Up on this database and schema`

func checkTable(ctx context.Context, p *patient) error {
	var schema, path string
	var places []string
	if err := p.query(ctx, "looking for the table", placeSQL, []any{p.cfg.Schema}, &schema, &path, &places); err != nil {
		return err
	}
	found, err := keytable.Describe(ctx, p.pool, schema, keytable.Name, pgx.QueryExecModeExec)
	switch {
	case errors.Is(err, keytable.ErrMissing):
		p.missing(schema, path, places)
		return nil
	case err != nil:
		return fmt.Errorf("looking at the table: %w", err)
	}
	t := &table{found, schema, pgx.Identifier{schema, keytable.Name}.Sanitize()}
	if p.checkColumns(t) {
		p.table = t
	}
	return nil
}

func (p *patient) missing(schema, path string, places []string) {
	where := fmt.Sprintf("in schema %q", schema)
	if schema == "" {
		where = "along the search_path, " + path
	}
	remedy := migrate
	if len(places) > 0 {
		remedy = fmt.Sprintf("there is one in schema %q: name it in Config.Schema (-schema), or put it into the search_path, and give the role usage of it; or %s", places[0], migrate)
	}
	p.find(Error, "table", "there is no table idempotency_keys "+where, remedy)
}

// checkColumns reports whether the table can be used.
func (p *patient) checkColumns(t *table) bool {
	bad := func(names []string, found, remedy string) {
		if len(names) > 0 {
			p.find(Error, "columns", fmt.Sprintf(found, t.name, strings.Join(names, ", ")), remedy)
		}
	}
	if !t.IsTable() {
		p.find(Error, "table", t.name+" is not a table", "move it out of the way, then "+migrate)
		return false
	}
	bad(t.Missing(), "%s is of another version: it has no column %s", migrate)
	bad(t.Mistyped(), "%s was not made by this package: it needs %s", "move the table out of the way, then "+migrate)
	bad(t.Folding(), "for a nondeterministic collation different keys are equal, and calls of one get the result of the other: %s has it on column %s",
		`alter table `+t.name+` alter column id type text collate "C", alter column scope type text collate "C"`)
	bad(t.Foreign(), "%s has a column that is required and that no call fills: %s", "drop the column, or give it a default")
	if t.Persistence == "u" {
		p.find(Error, "unlogged", t.name+" is unlogged: a crash of the server empties it, and every retry runs again",
			"alter table "+t.name+" set logged")
	}
	return len(t.Missing())+len(t.Mistyped())+len(t.Folding()) == 0
}

func checkIndexes(_ context.Context, p *patient) error {
	t := p.table
	if t == nil {
		return nil
	}
	arbiters := t.Arbiters()
	switch {
	case len(arbiters) == 0:
		p.find(Error, "unique index", t.name+" has no valid unique index on id and scope, so calls fail",
			"alter table "+t.name+" add primary key (id, scope); or reindex the one that is there, if it is invalid")
	case len(arbiters) > 1:
		p.find(Warning, "second unique index", fmt.Sprintf("%s has %d unique indexes on id and scope: each call pays for all of them", t.name, len(arbiters)),
			"drop all but the primary key")
	case arbiters[0].Columns[0] != "id":
		p.find(Warning, "unique index", fmt.Sprintf("the unique index %s leads with the scope: time-ordered ids are then scattered over it, which costs write-ahead log and memory", arbiters[0].Name),
			"make the primary key anew, on (id, scope)")
	}
	for _, i := range t.Obstacles() {
		if !i.Valid && len(arbiters) == 0 {
			continue // it may be the one that is missing
		}
		if !i.Valid {
			p.find(Warning, "second unique index", "the unique index "+i.Name+" is invalid: it was not built to its end", "drop it")
			continue
		}
		p.find(Error, "second unique index", fmt.Sprintf("there is another unique index or exclusion constraint, %s: calls with different keys fail each other on it", i.Name), "drop it")
	}
	if t.PurgeIndex() == nil {
		p.find(Warning, "purge index", t.name+" has no valid index on purge_after: each batch of a purge reads the whole table",
			"create index concurrently on "+t.name+" (purge_after); or "+migrate)
	}
	return nil
}

// privilegesSQL names what the role lacks. It looks the table up by itself: a name
// in a schema that the role may not use is an error.
const privilegesSQL = `
select current_user::text,
	(select rolsuper from pg_roles where rolname = current_user),
	has_schema_privilege(n.oid, 'usage'::text),
	array(
		select privilege from pg_catalog.unnest($2::text[]) with ordinality p (privilege, place)
		where not has_table_privilege(c.oid, privilege) and not ($3::boolean and not exists (
			select from pg_attribute a
			where a.attrelid = c.oid and a.attnum > 0::smallint and not a.attisdropped and a.attname <> 'result'::name
				and not has_column_privilege(c.oid, a.attnum, privilege)))
		order by place),
	has_any_column_privilege(c.oid, 'select'::text),
	(select bool_or(has_function_privilege(f.oid, 'execute'::text)) from pg_proc f
	where f.proname = 'pg_logical_emit_message' and f.proargtypes[2] = 'text'::regtype::oid)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1::text and c.relname = 'idempotency_keys'`

func checkPrivileges(ctx context.Context, p *patient) error {
	t := p.table
	if t == nil {
		return nil
	}
	var role string
	var super, usage, looks, emits bool
	var lacks []string
	err := p.query(ctx, "looking at the role's privileges", privilegesSQL, []any{t.schema, p.role.privileges, p.role.sparing}, &role, &super, &usage, &lacks, &looks, &emits)
	if err != nil {
		return err
	}
	name := pgx.Identifier{role}.Sanitize()
	if !usage {
		p.find(Error, "privileges", fmt.Sprintf("role %s may not use schema %s", name, t.schema),
			fmt.Sprintf("grant usage on schema %s to %s", pgx.Identifier{t.schema}.Sanitize(), name))
	}
	needs := strings.Join(p.role.privileges, ", ")
	if len(lacks) > 0 {
		remedy := fmt.Sprintf("grant %s on %s to %s", needs, t.name, name)
		if p.role.calls && looks {
			remedy += "; of a role that only looks ask doctor.CheckReader, or idempotency doctor -reader"
		}
		p.find(Error, "privileges", fmt.Sprintf("role %s lacks %s on %s", name, strings.Join(lacks, ", "), t.name), remedy)
	}
	if p.role.calls && !emits {
		p.find(Warning, "privileges", fmt.Sprintf("role %s may not call pg_logical_emit_message, by which a call whose COMMIT was in doubt makes sure of it", name),
			"grant execute on function pg_logical_emit_message to "+name)
	}
	if p.role.calls {
		if err := p.checkProcedures(ctx, name); err != nil {
			return err
		}
	}
	if super {
		p.find(Note, "privileges", fmt.Sprintf("role %s is a superuser, and needs far less", name),
			fmt.Sprintf("use a role with usage of schema %s and %s on %s", pgx.Identifier{t.schema}.Sanitize(), needs, t.name))
	}
	return nil
}

const procedurePrivilegesSQL = `
select array(
	select privilege from pg_catalog.unnest($2::text[]) with ordinality p (privilege, place)
	where not has_table_privilege(c.oid, privilege)
	order by place)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1::text and c.relname = 'idempotency_operations'`

// checkProcedures is no more than a note: nothing says whether the program has procedures.
func (p *patient) checkProcedures(ctx context.Context, role string) error {
	var lacks []string
	err := p.query(ctx, "looking at the role's privileges for procedures", procedurePrivilegesSQL, []any{p.table.schema, p.role.privileges}, &lacks)
	if errors.Is(err, pgx.ErrNoRows) { // before the migration that makes the table
		return nil
	}
	if len(lacks) > 0 {
		table := p.table.sibling(keytable.Operations)
		p.find(Note, "privileges", fmt.Sprintf("role %s lacks %s on %s: it cannot run procedures", role, strings.Join(lacks, ", "), table),
			fmt.Sprintf("if the program has any, grant %s on %s to %s", strings.Join(p.role.privileges, ", "), table, role))
	}
	return err
}
