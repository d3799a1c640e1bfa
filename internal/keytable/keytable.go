// Package keytable describes the tables of a database as they are, and says what
// package idempotency needs of them, and who could get the rights of those who use them.
package keytable

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Name of the table of the keys, in whatever schema it is, of the index that the purge
// goes by, of the table of the procedures' operations, and of the record of the migrations.
const (
	Name       = "idempotency_keys"
	IndexName  = "idempotency_keys_purge_after"
	Operations = "idempotency_operations"
	Migrations = "idempotency_migrations"
)

// required are the columns that package idempotency needs, by the name of the table.
var required = map[string][]Column{
	Name: {
		{Name: "id", Type: "text"},
		{Name: "scope", Type: "text"},
		{Name: "fingerprint", Type: "bytea"},
		{Name: "result", Type: "bytea"},
		{Name: "origin", Type: "text"},
		{Name: "completed_at", Type: "timestamptz"},
		{Name: "expires_at", Type: "timestamptz"},
		{Name: "purge_after", Type: "timestamptz"},
	},
	Operations: {
		{Name: "id", Type: "text"},
		{Name: "scope", Type: "text"},
		{Name: "number", Type: "uuid"},
		{Name: "started_at", Type: "timestamptz"},
		{Name: "progressed_at", Type: "timestamptz"},
		{Name: "due_at", Type: "timestamptz"},
		{Name: "attempts", Type: "int4"},
		{Name: "name", Type: "text"},
		{Name: "fingerprint", Type: "bytea"},
		{Name: "error", Type: "text"},
		{Name: "input", Type: "bytea"},
		{Name: "labels", Type: "_text"},
		{Name: "results", Type: "_bytea"},
	},
	Migrations: {
		{Name: "version", Type: "int8"},
		{Name: "dirty", Type: "bool"},
	},
}

// A Table is a relation of a name that was asked for.
type Table struct {
	name        string
	Kind        string // pg_class.relkind
	Persistence string // pg_class.relpersistence
	Strangers   []Stranger
	Columns     []Column
	Indexes     []Index
}

type Column struct {
	Name      string
	Type      string // as pg_type has it, in pg_catalog without the schema
	NoDefault bool   // not null, and without a default
	Folding   bool   // its collation is nondeterministic: different texts can be equal
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
	Folding   bool // by a nondeterministic collation
	Included  int  // columns that are not part of the key
}

// A Querier is a connection, a pool or a transaction.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Begin(ctx context.Context) (pgx.Tx, error)
}

// ErrMissing says that there is no relation of that name.
var ErrMissing = errors.New("missing")

// describeSQL reads the catalog alone, which every role may: it runs nothing of what it
// describes. Each operator and function of it is exactly one of pg_catalog, whatever else
// the search_path has: polymorphic functions are qualified for that. format_type would quote as the session
// is told to (quote_all_identifiers). A long name is cut off as in any statement.
var describeSQL = `
select c.relkind::text, c.relpersistence::text, (` + strangersSQL + `),
	(select coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
			'Name', a.attname, 'NoDefault', a.attnotnull and not a.atthasdef and a.attidentity = '',
			'Folding', exists (select from pg_collation l where l.oid = a.attcollation and not l.collisdeterministic),
			'Type', case when s.nspname = 'pg_catalog' then t.typname::text else s.nspname::text || '.' || t.typname::text end
		) order by a.attnum), '[]')
	from pg_attribute a join pg_type t on t.oid = a.atttypid join pg_namespace s on s.oid = t.typnamespace
	where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
	(select coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
			'Name', x.relname, 'Unique', i.indisunique or i.indisexclusion, 'Primary', i.indisprimary,
			'Valid', i.indisvalid, 'Immediate', i.indimmediate, 'Partial', i.indpred is not null,
			'Included', i.indnatts - i.indnkeyatts,
			'Folding', exists (select from pg_collation l where l.oid = any(i.indcollation::oid[]) and not l.collisdeterministic),
			'Columns', array(
				select coalesce(a.attname::text, '')
				from pg_catalog.unnest(i.indkey::smallint[]) with ordinality k (number, place)
				left join pg_attribute a on a.attrelid = c.oid and a.attnum = k.number
				order by k.place)
		) order by x.relname), '[]')
	from pg_index i join pg_class x on x.oid = i.indexrelid
	where i.indrelid = c.oid),
	(` + givenSQL + `)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1::text::name and c.relname = $2::text::name`

// Describe returns ErrMissing when there is no relation of that name in schema. Ask it
// before any statement on a relation that somebody else could have made.
func Describe(ctx context.Context, q Querier, schema, name string, options ...any) (t Table, err error) {
	t.name = name
	args := append(options, schema, name, chooses(q))
	login, err := t.read(ctx, q, args)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Table{}, ErrMissing
	case err == nil && login != "":
		err = t.describeToLogin(ctx, q, login, args)
	}
	if !t.Fits() {
		for i := range t.Strangers {
			t.Strangers[i].Inert = false
		}
	}
	return t, err
}

// read returns also what givenSQL does.
func (t *Table) read(ctx context.Context, q Querier, args []any) (login string, err error) {
	err = q.QueryRow(ctx, describeSQL, args...).Scan(&t.Kind, &t.Persistence, &t.Strangers, &t.Columns, &t.Indexes, &login)
	return login, err
}

const schemaSQL = `
select coalesce((
	select n.nspname::text
	from pg_catalog.unnest(current_schemas(false)) with ordinality p (schema, place)
	join pg_namespace n on n.nspname = p.schema
	join pg_class c on c.relnamespace = n.oid
	where c.relname = $1::text and n.oid <> pg_my_temp_schema()
	order by p.place
	limit 1), '')`

// Schema finds the first schema of the search_path that has a relation of our name, as
// a Store does. Where there is none it returns no text.
func Schema(ctx context.Context, q Querier) (schema string, err error) {
	err = q.QueryRow(ctx, schemaSQL, Name).Scan(&schema)
	return schema, err
}

// IsTable is true for a partitioned table too, or one that Citus distributes.
func (t Table) IsTable() bool { return t.Kind == "r" || t.Kind == "p" }

// Fits reports whether the columns are there, with the types they need. Where they are not, a
// statement of ours can run what somebody has planted: an operator for another type is an
// exact match, and x.id without a column id is the call of a function id(x).
func (t Table) Fits() bool { return len(t.Missing())+len(t.Mistyped()) == 0 }

// Unfit says what is wrong with the columns, or nothing.
func (t Table) Unfit() string {
	if missing := t.Missing(); len(missing) > 0 {
		return "it has no column " + strings.Join(missing, ", ")
	}
	if wrong := t.Mistyped(); len(wrong) > 0 {
		return "it needs " + strings.Join(wrong, ", ")
	}
	return ""
}

// Missing names the columns that are not there.
func (t Table) Missing() (names []string) {
	for _, want := range required[t.name] {
		if t.column(want.Name) == nil {
			names = append(names, want.Name)
		}
	}
	return names
}

// Mistyped names the columns of another type, with the one they need.
func (t Table) Mistyped() (names []string) {
	for _, want := range required[t.name] {
		if c := t.column(want.Name); c != nil && c.Type != want.Type {
			names = append(names, c.Name+" "+want.Type)
		}
	}
	return names
}

// Folding names the columns of the key that do not tell all texts apart: the call of one
// key would get the result of another.
func (t Table) Folding() (names []string) {
	for _, c := range t.Columns {
		if c.Folding && (c.Name == "id" || c.Name == "scope") {
			names = append(names, c.Name)
		}
	}
	return names
}

// Foreign names the columns that a claim would have to fill, and does not.
func (t Table) Foreign() (names []string) {
	for _, c := range t.Columns {
		ours := slices.ContainsFunc(required[t.name], func(r Column) bool { return r.Name == c.Name })
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
	return i.Unique && i.Valid && i.Immediate && !i.Partial && !i.Folding && i.Included == 0 && len(i.Columns) == 2 &&
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
//
// A backslash is written by its number. Where client_encoding is SJIS, BIG5, GBK or
// GB18030, a backslash can be the second half of the character before it, and the second
// one of a pair would then escape the quote. No quote can be a second half.
func Literal(text string) string {
	quoted := "'" + strings.ReplaceAll(text, "'", "''") + "'"
	if strings.Contains(text, `\`) {
		return " E" + strings.ReplaceAll(quoted, `\`, `\134`)
	}
	return quoted
}
