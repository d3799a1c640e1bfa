package idempotency

import (
	"cmp"
	"context"
	"fmt"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/keytable"
)

// A table is the one table that a Store uses. Without Config.Schema, the first call
// looks it up on its connection, and from then on every statement names its
// schema: what a function does to the search_path of its transaction changes
// nothing. A connection whose search_path leads to another table is refused, since
// what one of its calls records would not be found by the next.
type table struct {
	schema  string // Config.Schema
	current atomic.Pointer[statements]
}

// A querier is a connection, a pool or a transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// statements returns the statements on the table. Where there is none, they name
// no schema, so that PostgreSQL's own error says that the table is missing.
func (t *table) statements(ctx context.Context, q querier) (*statements, error) {
	sql := t.current.Load()
	if sql != nil && (t.schema != "" || !sql.missing.Load()) {
		return sql, nil
	}
	former := ""
	if sql != nil {
		former = sql.table
	}
	found, err := lookUpTable(ctx, q, former)
	schema := cmp.Or(t.schema, found.schema)
	switch {
	case err != nil:
		return nil, err
	case found.remains: // it is not given up for another one of that name
		sql.missing.Store(false)
		return sql, nil
	case schema == "":
		return newStatements("", false, false), nil
	}
	made := newStatements(schema, t.schema != "", false)
	if found.citus {
		exists, distributed, err := isDistributed(ctx, q, made.table)
		switch {
		case err != nil:
			return nil, err
		case !exists: // it is yet to be made, and distributed
			return made, nil
		case distributed:
			made = newStatements(schema, t.schema != "", true)
		}
	}
	t.current.CompareAndSwap(sql, made)
	return t.current.Load(), nil
}

// missed is called when PostgreSQL has said that the table is not there: it may have
// moved to another schema. It reports whether it is worth while to ask again.
func (t *table) missed() bool {
	sql := t.current.Load()
	if t.schema != "" || sql == nil {
		return false
	}
	sql.missing.Store(true)
	return true
}

// refuse says why a session must not be used whose search_path leads to another table.
// It does not mind a temporary table, which is in the way of the session's own
// statements, and not of ours.
func (sql *statements) refuse(ctx context.Context, q querier) error {
	found, err := lookUpTable(ctx, q, "")
	if err != nil {
		return err
	}
	if found.schema == "" || found.schema == sql.schema {
		return nil
	}
	return fmt.Errorf("the search_path of this connection leads to the table %s, and this Store uses %s: set Config.Schema, in a Store for each schema",
		pgx.Identifier{found.schema, "idempotency_keys"}.Sanitize(), sql.table)
}

// lookUpTableSQL finds the first schema of the search_path that has the table,
// whatever kind of relation it is, and never the temporary one. Names are qualified
// where a temporary table, or a function for exactly these types, could hide them.
const lookUpTableSQL = `
select coalesce((
	select n.nspname::text
	from pg_catalog.unnest(current_schemas(false)) with ordinality as path (schema, place)
	join pg_catalog.pg_namespace n on n.nspname = path.schema
	join pg_catalog.pg_class c on c.relnamespace = n.oid
	where c.relname = 'idempotency_keys'::name and n.oid <> pg_my_temp_schema()
	order by path.place
	limit 1), ''::text), coalesce(to_regclass($1::text) is not null, false),
	` + keytable.CitusSQL

// A lookUp is the answer to lookUpTableSQL.
type lookUp struct {
	schema  string // or no text
	remains bool   // the former table is there
	citus   bool   // the extension is loaded: see citus.go
}

func lookUpTable(ctx context.Context, q querier, former string) (found lookUp, err error) {
	var table *string // to_regclass takes no empty name
	if former != "" {
		table = &former
	}
	err = q.QueryRow(ctx, lookUpTableSQL, table).Scan(&found.schema, &found.remains, &found.citus)
	return found, err
}
