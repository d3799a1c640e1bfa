package keytable

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// An Open schema is one in which strangers can make what they like.
type Open struct {
	Schema string
	Owner  string // if that is a stranger
	Others string // that may create in it, quoted, with commas
}

// openSchemasSQL judges the owners of the schemas p, and who may create in them, as
// strangersSQL does those of tables. A landlord is nobody to be afraid of, not even for a
// superuser: what the doctor says of that one is that it should be another role.
var openSchemasSQL = `
select coalesce(pg_catalog.json_agg(pg_catalog.json_build_object('Schema', x.schema, 'Owner', x.owner, 'Others', x.others) order by x.place), '[]')
from (
	select n.nspname::text as schema, p.place,
		string_agg(o.rolname::text, ''::text) filter (where y.owns) as owner,
		string_agg(coalesce(quote_ident(o.rolname::text), 'public'), ', '::text order by o.rolname) filter (where not y.owns) as others
	from p join pg_namespace n on n.nspname = p.name
	cross join lateral (
		select n.nspowner, true
		union all
		select a.grantee, false from aclexplode(n.nspacl) a where a.privilege_type = 'CREATE' and a.grantee <> n.nspowner
	) y (owner, owns)
	` + judgeSQL + `
	where ` + obeysSQL + ` is not true and coalesce(host.landlord or not me.rolsuper and host.becomes, false) is not true
	group by n.nspname, p.place) x`

var openInPathSQL = `
with recursive ` + friendsSQL + `, p (name, place) as (
	select name, place from pg_catalog.unnest(current_schemas(false)) with ordinality u (name, place)
)` + openSchemasSQL

var openSQLOfOne = `
with recursive ` + friendsSQL + `, p (name, place) as (
	select $1::text::name, 1::bigint
)` + openSchemasSQL

// OpenInPath returns the schemas of the search_path in which strangers can plant
// operators and functions.
func OpenInPath(ctx context.Context, q Querier, options ...any) (open []Open, err error) {
	err = q.QueryRow(ctx, openInPathSQL, options...).Scan(&open)
	return open, err
}

// StrangerOfSchema returns the owner of a schema if that is a stranger, who could put
// another table in the place of one that is made there; and no text if the schema is
// missing.
func StrangerOfSchema(ctx context.Context, q Querier, schema string) (owner string, err error) {
	var open []Open
	err = q.QueryRow(ctx, openSQLOfOne, schema).Scan(&open)
	if err != nil || len(open) == 0 {
		return "", err
	}
	return open[0].Owner, nil
}

// Holds reports whether there is a relation of that name in the schema.
func Holds(ctx context.Context, q Querier, schema, name string) (bool, error) {
	var kind string
	err := q.QueryRow(ctx, kindSQL, schema, name).Scan(&kind)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

const kindSQL = `
select c.relkind::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1::text::name and c.relname = $2::text::name`
