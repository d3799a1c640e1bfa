package pgtest

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// plantedSQL makes operators and functions that PostgreSQL prefers to its own
// wherever a statement relies on an implicit cast: for pg_catalog's names, with
// argument types that pg_catalog does not have. Whoever may create in a schema
// of the search_path can do that. Each of them raises an error.
//
// A function's signatures are pg_catalog's with one argument exchanged, or, where
// they are polymorphic, with every polymorphic argument made concrete.
const plantedSQL = `
do $plant$
declare
	operands regtype[] := array['bool', '"char"', 'int2', 'int4', 'int8', 'oid', 'float8', 'numeric', 'text', 'varchar', 'name', 'bytea',
		'timestamptz', 'interval', 'regclass', 'regtype'];
	types regtype[] := operands || array['timestamp', 'json', 'xid', 'inet', 'text[]', 'int2[]']::regtype[];
	ours oid := 'pg_catalog'::regnamespace;
	body text := 'language plpgsql as $f$ begin raise exception ''what somebody has planted runs''; end $f$';
	op text;
	a regtype;
	b regtype;
	f record;
begin
	foreach a in array operands loop
		foreach b in array operands loop
			execute format('create function planted.trap(%s, %s) returns bool %s', a, b, body);
			foreach op in array array['=', '<>', '<', '<=', '>', '>=', '+', '-', '*', '/', '||', '&', '|', '#', '<<', '>>', '~~', '!~~', '~', '!~'] loop
				if not exists (select from pg_operator where oprname = op and oprleft = a and oprright = b and oprnamespace = ours) then
					execute format('create operator planted.%s (leftarg = %s, rightarg = %s, function = planted.trap)', op, a, b);
				end if;
			end loop;
		end loop;
	end loop;
	for f in
		with own as (
			select p.oid, p.proname, string_to_array(p.proargtypes::text, ' ')::oid[] as args,
				array(select t.typtype = 'p' from unnest(p.proargtypes::oid[]) with ordinality x (oid, place) join pg_type t using (oid) order by place) as loose,
				case when r.typtype = 'p' then 'text' else format_type(p.prorettype, null) end as returns
			from pg_proc p join pg_type r on r.oid = p.prorettype
			where p.pronamespace = ours and p.pronargs > 0 and p.prokind <> 'p' and p.proname = any($names$)
		), traps as (
			select distinct o.proname, o.returns, array(
				select case when o.loose[i] or (not true = any(o.loose) and i = at) then t.type else o.args[i] end
				from generate_subscripts(o.args, 1) i order by i) as args
			from own o, generate_subscripts(o.args, 1) at, unnest(types::oid[]) t (type)
		)
		select distinct on (proname, args) proname, returns, (select string_agg(format_type(x, null), ', ' order by place) from unnest(args) with ordinality y (x, place)) as list
		from traps where not exists (select from own where own.proname = traps.proname and own.args = traps.args)
	loop
		execute format('create function planted.%I(%s) returns %s %s', f.proname, f.list, f.returns, body);
	end loop;
end $plant$`

// plantLimit is for some ten thousand statements.
const plantLimit = 3 * time.Minute

// called finds what could be the call of a function in a statement.
var called = regexp.MustCompile(`\b([a-z][a-z0-9_]*)\(`)

// Plant puts operators and functions into a schema, and that schema into the
// search_path of pool's database, which new sessions have: a statement of which
// one is not resolved exactly in pg_catalog then fails. The sources, patterns of
// files, are where the statements of the test stand; the functions are those that
// they call. Grant usage of schema planted to a role that is to be caught by them.
func Plant(t testing.TB, pool *pgxpool.Pool, sources ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), plantLimit)
	defer cancel()
	var names []string
	for _, pattern := range sources {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("pgtest: no source %s (%v)", pattern, err)
		}
		for _, name := range files {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal("pgtest: ", err)
			}
			for _, m := range called.FindAllStringSubmatch(string(text), -1) {
				names = append(names, "'"+m[1]+"'")
			}
		}
	}
	slices.Sort(names)
	list := "array[" + strings.Join(slices.Compact(names), ", ") + "]::name[]"
	for _, sql := range []string{
		"create schema planted",
		strings.Replace(plantedSQL, "$names$", list, 1),
		"alter database " + pool.Config().ConnConfig.Database + " set search_path = public, planted",
		"grant usage on schema planted to public",
	} {
		if _, err := pool.Exec(ctx, sql); err != nil {
			t.Fatal("pgtest: planting: ", err)
		}
	}
}
