// Package keytable describes the table of a database as it is, and says what
// package idempotency needs of it.
package keytable

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Name of the table, in whatever schema it is.
const Name = "idempotency_keys"

// required are the columns that package idempotency needs.
var required = []Column{
	{Name: "id", Type: "text"},
	{Name: "scope", Type: "text"},
	{Name: "fingerprint", Type: "bytea"},
	{Name: "result", Type: "bytea"},
	{Name: "origin", Type: "text"},
	{Name: "completed_at", Type: "timestamptz"},
	{Name: "expires_at", Type: "timestamptz"},
	{Name: "purge_after", Type: "timestamptz"},
}

// A Table is a relation of that name.
type Table struct {
	Kind        string // pg_class.relkind
	Persistence string // pg_class.relpersistence
	Owner       string
	Trusted     bool // the owner: see trustedSQL
	Columns     []Column
	Indexes     []Index
}

type Column struct {
	Name      string
	Type      string // as pg_type has it, in pg_catalog without the schema
	NoDefault bool   // not null, and without a default
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
	Included  int // columns that are not part of the key
}

// A Querier is a connection, a pool or a transaction.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// ErrMissing says that there is no relation of that name.
var ErrMissing = errors.New("missing")

// trustedSQL is true for an owner of a relation who can do to the current role no
// more than they could anyway: the role itself or one that it is a member of, a
// superuser, the owner of the schema or of the database. Anybody else may have made
// the table first, to read what is recorded in it, and to have their functions run.
// A superuser counts as a member of every role, so that says nothing about theirs.
const trustedSQL = `(select o.rolsuper or o.rolname = current_user or o.oid = n.nspowner
		or o.oid = (select datdba from pg_database where datname = current_database())
		or (pg_has_role(o.oid, 'member'::text) and not (select rolsuper from pg_roles where rolname = current_user))
	from pg_roles o where o.oid = c.relowner)`

// describeSQL reads the catalog alone, which every role may. Each operator and
// function of it is exactly one of pg_catalog, whatever else the search_path has:
// polymorphic functions are qualified for that. format_type would quote as the session
// is told to (quote_all_identifiers).
const describeSQL = `
select c.relkind::text, c.relpersistence::text, pg_get_userbyid(c.relowner)::text, ` + trustedSQL + `,
	(select coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
			'Name', a.attname, 'NoDefault', a.attnotnull and not a.atthasdef and a.attidentity = '',
			'Type', case when s.nspname = 'pg_catalog' then t.typname::text else s.nspname::text || '.' || t.typname::text end
		) order by a.attnum), '[]')
	from pg_attribute a join pg_type t on t.oid = a.atttypid join pg_namespace s on s.oid = t.typnamespace
	where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
	(select coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
			'Name', x.relname, 'Unique', i.indisunique or i.indisexclusion, 'Primary', i.indisprimary,
			'Valid', i.indisvalid, 'Immediate', i.indimmediate, 'Partial', i.indpred is not null,
			'Included', i.indnatts - i.indnkeyatts,
			'Columns', array(
				select coalesce(a.attname::text, '')
				from pg_catalog.unnest(i.indkey::smallint[]) with ordinality k (number, place)
				left join pg_attribute a on a.attrelid = c.oid and a.attnum = k.number
				order by k.place)
		) order by x.relname), '[]')
	from pg_index i join pg_class x on x.oid = i.indexrelid
	where i.indrelid = c.oid)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1::text and c.relname = $2::text`

// Describe returns ErrMissing when there is no such relation in schema.
func Describe(ctx context.Context, q Querier, schema string, options ...any) (t Table, err error) {
	args := append(options, schema, Name)
	err = q.QueryRow(ctx, describeSQL, args...).Scan(&t.Kind, &t.Persistence, &t.Owner, &t.Trusted, &t.Columns, &t.Indexes)
	if errors.Is(err, pgx.ErrNoRows) {
		return Table{}, ErrMissing
	}
	return t, err
}

const ownerSQL = `
select c.relkind::text, pg_get_userbyid(c.relowner)::text, ` + trustedSQL + `
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1::text and c.relname = $2::text`

// Owned describes no more than the kind and the owner of a relation of any name.
func Owned(ctx context.Context, q Querier, schema, name string) (t Table, err error) {
	err = q.QueryRow(ctx, ownerSQL, schema, name).Scan(&t.Kind, &t.Owner, &t.Trusted)
	if errors.Is(err, pgx.ErrNoRows) {
		return Table{}, ErrMissing
	}
	return t, err
}

// IsTable is true for a partitioned table too, or one that Citus distributes.
func (t Table) IsTable() bool { return t.Kind == "r" || t.Kind == "p" }

// Missing names the columns that are not there.
func (t Table) Missing() (names []string) {
	for _, want := range required {
		if t.column(want.Name) == nil {
			names = append(names, want.Name)
		}
	}
	return names
}

// Mistyped names the columns of another type, with the one they need.
func (t Table) Mistyped() (names []string) {
	for _, want := range required {
		if c := t.column(want.Name); c != nil && c.Type != want.Type {
			names = append(names, c.Name+" "+want.Type)
		}
	}
	return names
}

// Foreign names the columns that a claim would have to fill, and does not.
func (t Table) Foreign() (names []string) {
	for _, c := range t.Columns {
		ours := slices.ContainsFunc(required, func(r Column) bool { return r.Name == c.Name })
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
	return i.Unique && i.Valid && i.Immediate && !i.Partial && i.Included == 0 && len(i.Columns) == 2 &&
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
func Literal(text string) string {
	quoted := "'" + strings.ReplaceAll(text, "'", "''") + "'"
	if strings.Contains(text, `\`) {
		return " E" + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
}
