package doctor

import (
	"context"
	"fmt"
	"strings"

	"github.com/pgidem/idempotency/internal/keytable"
)

// placementSQL is asked only where Citus is loaded: elsewhere there is no such catalog. A
// partkey is a node tree, with the number of the column. Tables of reference (repmodel t)
// are on all nodes.
const placementSQL = `
with placed as (
	select n.nspname::text as schema, c.relname::text as name, p.partmethod::text as method, p.colocationid::bigint as colocation,
		coalesce(a.attname::text, ''::text) as by
	from pg_catalog.pg_dist_partition p
	join pg_class c on c.oid = p.logicalrelid::oid
	join pg_namespace n on n.oid = c.relnamespace
	left join pg_attribute a on a.attrelid = c.oid
		and a.attnum = pg_catalog.substring(p.partkey::text, ':varattno ([0-9]+)'::text)::smallint
	where p.repmodel <> 't'::"char"
), keys as (
	select * from placed where schema = $1::text and name = 'idempotency_keys'::text
)
select coalesce((select method from keys), ''::text), coalesce((select by from keys), ''::text),
	coalesce((select p.colocation = k.colocation from placed p, keys k where p.schema = $1::text and p.name = 'idempotency_operations'::text), false),
	array(select pg_catalog.format('%I.%I'::text, p.schema, p.name) from placed p, keys k where p.colocation <> k.colocation order by 1 limit 6::bigint)`

// checkCitus looks at where Citus keeps the rows.
func checkCitus(ctx context.Context, p *patient) error {
	var loaded bool
	if err := p.query(ctx, "asking for Citus", `select `+keytable.CitusSQL, nil, &loaded); err != nil || !loaded || p.table == nil {
		return err
	}
	var method, by string
	var operations bool
	var elsewhere []string
	if err := p.query(ctx, "asking where Citus keeps the tables", placementSQL, []any{p.table.schema}, &method, &by, &operations, &elsewhere); err != nil {
		return err
	}
	p.checkPlacement(method, by, operations)
	if method != "" && len(elsewhere) > 0 {
		if len(elsewhere) > 5 {
			elsewhere[5] = "and others"
		}
		p.find(Note, "citus", fmt.Sprintf("%s %s not placed with %s: a function that writes to them commits in two phases, and after a crash in between its effect shows up to a minute before its key", strings.Join(elsewhere, ", "), isOrAre(elsewhere), p.table.name),
			"distribute them by the same scope, with colocate_with => '"+p.table.name+"'; or let it be, where two phases are fast enough")
	}
	return nil
}

func isOrAre(names []string) string {
	if len(names) == 1 {
		return "is"
	}
	return "are"
}

func (p *patient) checkPlacement(method, by string, operations bool) {
	byScope := "select create_distributed_table('" + p.table.name + "', 'scope')"
	switch {
	case method == "":
		p.find(Note, "citus", p.table.name+" is not distributed: all keys are on the coordinator, and a function that writes to distributed tables commits in two phases", byScope)
		return
	case method == "h" && by != "scope":
		p.find(Error, "citus", fmt.Sprintf("%s is distributed by %s: calls name the node of a key by its scope", p.table.name, by),
			"undistribute it, and "+byScope)
	case !operations:
		name := p.table.sibling(keytable.Operations)
		p.find(Warning, "citus", name+" is not placed with "+p.table.name+": procedures fail, since they read both in one statement",
			"select create_distributed_table('"+name+"', 'scope', colocate_with => '"+p.table.name+"')")
	}
	if level := p.cfg.TxOptions.IsoLevel; level == "serializable" || level == "repeatable read" {
		p.find(Warning, "citus", fmt.Sprintf("Config.TxOptions asks for %s, and Citus gives it on each node for itself: what a function reads on two nodes can be of two moments", level),
			"use read committed")
	}
}
