package doctor

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// childrenSQL names the tables that inherit from the table, and are no partitions of it.
const childrenSQL = `
select coalesce(pg_catalog.json_agg(pg_catalog.json_build_array(n.nspname, k.relname) order by n.nspname, k.relname), '[]')
from pg_class c join pg_namespace p on p.oid = c.relnamespace
join pg_inherits i on i.inhparent = c.oid
join pg_class k on k.oid = i.inhrelid and not k.relispartition
join pg_namespace n on n.oid = k.relnamespace
where p.nspname = $1::text and c.relname = 'idempotency_keys'`

// checkChildren: the unique index of a table does not hold for those that inherit from
// it, although their rows are read with its own.
func checkChildren(ctx context.Context, p *patient) error {
	if p.table == nil {
		return nil
	}
	var children [][]string
	if err := p.query(ctx, "looking for tables that inherit", childrenSQL, []any{p.table.schema}, &children); err != nil {
		return err
	}
	for _, child := range children {
		name := pgx.Identifier(child).Sanitize()
		p.find(Error, "inheritance", fmt.Sprintf("%s inherits from %s, whose unique index does not hold for it: a key with a row there is run again", name, p.table.name),
			fmt.Sprintf("alter table %s no inherit %s; to divide the table, partition it by hash of its id or its scope", name, p.table.name))
	}
	return nil
}

// A publication sends the records to other servers.
type publication struct {
	Name     string
	Changes  bool // updates or deletes, and not only inserts
	Nameless bool // has a table in which it could not name the row that has changed
	Wanted   bool
}

const publicationsSQL = partsSQL + `
select coalesce(pg_catalog.json_agg(pg_catalog.json_build_object('Name', p.pubname, 'Changes', p.pubupdate or p.pubdelete,
		'Nameless', t.nameless, 'Wanted', coalesce(obj_description(p.oid, 'pg_publication'::name), '') like '%' || $2::text || '%') order by p.pubname), '[]')
from pg_publication p join (
	select s.pubname, bool_or(case c.relreplident
		when 'f' then false
		when 'n' then true
		when 'i' then not exists (select from pg_index i where i.indrelid = c.oid and i.indisreplident and i.indisvalid)
		else not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary and i.indisvalid) end) as nameless
	from pg_publication_tables s join pg_namespace n on n.nspname = s.schemaname join pg_class c on c.relnamespace = n.oid and c.relname = s.tablename
	where c.oid in (select oid from parts)
	group by s.pubname) t on t.pubname = p.pubname`

// checkPublications: PostgreSQL refuses an update of a published row that it could not
// name to the subscribers, and each call makes one.
func checkPublications(ctx context.Context, p *patient) error {
	if p.table == nil {
		return nil
	}
	var sent []publication
	if err := p.query(ctx, "looking for publications", publicationsSQL, []any{p.table.schema, wanted}, &sent); err != nil {
		return err
	}
	var names []string
	for _, each := range sent {
		name := pgx.Identifier{each.Name}.Sanitize()
		if each.Changes && each.Nameless {
			p.find(Error, "publication", fmt.Sprintf("the publication %s sends the changes of %s, which has no replica identity: calls fail", name, p.table.name),
				"alter table "+p.table.name+" add primary key (id, scope), or replica identity full; or take the table out of the publication")
		}
		if !each.Wanted {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		all := strings.Join(names, ", ")
		p.find(Note, "publication", fmt.Sprintf("%s is published, by %s: its subscribers get the results, and know nothing of calls in progress, so a program that calls there runs a key again", p.table.name, all),
			fmt.Sprintf("take it out of the publication; if it is for reading only: comment on publication %s is '%s'", names[0], wanted))
	}
	return nil
}
