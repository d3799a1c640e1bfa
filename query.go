package idempotency

import (
	"context"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency/internal/bytea"
	"github.com/pgidem/idempotency/internal/columns"
	"github.com/pgidem/idempotency/internal/kept"
)

// An operation is one SQL statement, as its caller gave it.
type operation struct {
	store   *Store
	element reflect.Type // of a row
	many    bool
	sql     string
	args    []any
}

// A statement is the work of a caller whose operation is one statement. V is the type of
// a row, or a slice of it.
type statement[V any] struct {
	operation
	value V
}

// oneStatement is a work that shoot can make in one round trip.
type oneStatement interface {
	work
	effect(ctx context.Context, conn *pgx.Conn, sql *statements) (*effect, error)
	arguments() []any
	forget(*statements)
	executed(stored []byte) error
}

func (o *operation) arguments() []any { return o.args[:len(o.args):len(o.args)] }

// execute runs the statement in a transaction that has claimed the key.
func (w *statement[V]) execute(ctx context.Context, tx pgx.Tx) ([]byte, error) {
	sql, err := w.store.table.statements(ctx, tx)
	if err != nil {
		return nil, err
	}
	e, err := w.effect(ctx, tx.Conn(), sql)
	if err != nil {
		return nil, err
	}
	var n, size int64
	var stored bytea.Bytes
	if err := tx.QueryRow(ctx, e.alone, append(w.arguments(), w.store.cfg.MaxResult)...).Scan(&n, &size, &stored); err != nil {
		return nil, err
	}
	switch {
	case !w.many && n == 0:
		return nil, pgx.ErrNoRows
	case !w.many && n > 1:
		return nil, pgx.ErrTooManyRows
	}
	if err := checkSize(int(size), w.store.cfg.MaxResult); err != nil {
		return nil, err
	}
	if err := w.read(stored); err != nil {
		return nil, undecodable(kept.Advised(err))
	}
	if err := kept.CheckNumbers[V](stored); err != nil {
		return nil, undecodable(err)
	}
	return stored, nil
}

func (w *statement[V]) read(stored []byte) error { return decodeInto(stored, &w.value) }

func (w *statement[V]) decode(stored []byte) error { return replayInto(stored, &w.value) }

// executed reads what this call has committed.
func (w *statement[V]) executed(stored []byte) error {
	if err := w.read(stored); err != nil {
		return fmt.Errorf("%w: the operation has taken effect and is recorded, and its value cannot be read as %v: %w", ErrUndecodable, reflect.TypeFor[V](), kept.Advised(err))
	}
	return nil
}

func (w *statement[V]) values(replayed bool, err error) (V, bool, error) {
	return valuesOf(w.value, replayed, err)
}

// An effect is a caller's statement with ours around it.
type effect struct {
	oneShot      bool  // what it returns can be read, whatever it is
	shot, strict named // with its record: strict is for SERIALIZABLE
	alone        string
}

// maxEffects is how many texts a Store remembers.
const maxEffects = 1000

// effects are those of one table.
type effects struct {
	known sync.Map // of effectKey
	n     atomic.Int64
}

type effectKey struct {
	element reflect.Type
	many    bool
	sql     string
}

func (o *operation) key() effectKey { return effectKey{o.element, o.many, o.sql} }

// effect asks PostgreSQL for the columns of the statement, once, and builds the texts.
// Nothing is executed.
func (o *operation) effect(ctx context.Context, conn *pgx.Conn, sql *statements) (*effect, error) {
	key := o.key()
	if known, ok := sql.effects.known.Load(key); ok {
		return known.(*effect), nil
	}
	text := strings.TrimRight(o.sql, "; \t\r\n")
	described, err := conn.PgConn().Prepare(ctx, "", text, nil)
	if err != nil {
		return nil, notOne(err)
	}
	if len(described.ParamOIDs) != len(o.args) {
		return nil, fmt.Errorf("idempotency: the statement has %d parameters, and %d arguments were given", len(described.ParamOIDs), len(o.args))
	}
	if len(described.Fields) == 0 {
		return nil, fmt.Errorf("idempotency: the statement returns no columns: add RETURNING, or use Do for one that is no SELECT, VALUES, INSERT, UPDATE, DELETE or MERGE")
	}
	if _, err := conn.PgConn().Prepare(ctx, "", "with idempotency_effect as (\n"+text+"\n) select 1", nil); err != nil {
		return nil, notAPart(err)
	}
	cols, err := columnsOf(ctx, conn, described.Fields)
	if err != nil {
		return nil, err
	}
	compared := make([]columns.Column, len(cols))
	for i, c := range cols {
		compared[i] = c.Column
	}
	fit, err := columns.Match(o.element, compared)
	if err != nil {
		return nil, undecodable(err)
	}
	e := newEffect(sql, text, len(o.args), o.many, fit, cols)
	sql.effects.remember(key, e)
	return e, nil
}

func (all *effects) remember(key effectKey, e *effect) {
	if all.n.Load() >= maxEffects {
		return
	}
	if _, had := all.known.LoadOrStore(key, e); !had {
		all.n.Add(1)
	}
}

// forget is called when the statement has failed: its table can have been altered.
func (o *operation) forget(sql *statements) {
	if _, had := sql.effects.known.LoadAndDelete(o.key()); had {
		sql.effects.n.Add(-1)
	}
}

// notOne explains the error of a text of several statements.
func notOne(err error) error {
	if sqlState(err) == "42601" && strings.Contains(err.Error(), "multiple commands") {
		return fmt.Errorf("idempotency: the operation is not one statement: use Do for several: %w", err)
	}
	return err
}

// notAPart explains the error of a statement that is one, but not when it is a part of ours.
func notAPart(err error) error {
	if sqlState(err) == "" {
		return err
	}
	return fmt.Errorf("idempotency: the statement cannot be a part of another: it has to be a SELECT, VALUES, INSERT, UPDATE, DELETE or MERGE that returns rows, without a WITH that changes data: use Do for others: %w", err)
}

// typesSQL names types, with their schemas.
const typesSQL = `
select t.oid, n.nspname::text, t.typname::text, t.typtype = 'e'::"char"
from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid = t.typnamespace
where t.oid = any($1::oid[])`

// A column is one of a statement's result, with the name of its type in SQL.
type column struct {
	columns.Column
	typeSQL string
}

func columnsOf(ctx context.Context, conn *pgx.Conn, fields []pgconn.FieldDescription) ([]column, error) {
	oids := make([]uint32, len(fields))
	for i, f := range fields {
		oids[i] = f.DataTypeOID
	}
	// In a mode that every pooler lets through.
	rows, err := conn.Query(ctx, typesSQL, pgx.QueryExecModeExec, oids)
	if err != nil {
		return nil, err
	}
	types := map[uint32]column{}
	var oid uint32
	var schema, name string
	var enum bool
	_, err = pgx.ForEachRow(rows, []any{&oid, &schema, &name, &enum}, func() error {
		c := column{columns.Column{Type: name, Enum: enum}, pgx.Identifier{schema, name}.Sanitize()}
		if schema != "pg_catalog" {
			c.Type = schema + "." + name
		}
		types[oid] = c
		return nil
	})
	all := make([]column, len(fields))
	for i, f := range fields {
		all[i] = types[f.DataTypeOID]
		all[i].Name = f.Name
	}
	return all, err
}

// valueSQL is the column's value as it becomes JSON. A time is written in UTC: the offset
// of the session's zone can have seconds, which RFC 3339 has not. Other types are cast to
// what they were when the statement was described, so that a column that was altered since
// is the same, or an error before the commit.
func (c column) valueSQL(ref string) string {
	switch {
	case c.Type == "timestamptz":
		return `case when ` + ref + ` >= '0001-01-01 00:00:00+00'::timestamptz and ` + ref + ` < '10000-01-01 00:00:00+00'::timestamptz
			then to_char(timezone('UTC'::text, ` + ref + `), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'::text) else ` + ref + `::text end`
	case c.Known():
		return ref + "::" + c.typeSQL
	}
	return ref
}

// newEffect puts a caller's statement into ours. The caller's text is put in last, so that
// nothing in it is taken for a name of ours.
func newEffect(sql *statements, text string, args int, many bool, fit columns.Fit, cols []column) *effect {
	names, values := make([]string, len(cols)), make([]string, len(cols))
	for i, c := range cols {
		names[i] = pgx.Identifier{"value"}.Sanitize()
		if fit.Object {
			names[i] = pgx.Identifier{c.Name}.Sanitize()
		}
		values[i] = c.valueSQL("idempotency_row."+names[i]) + " as " + names[i]
	}
	alias := " (" + strings.Join(names, ", ") + ")" // the names of columns can change meanwhile
	row := "(select idempotency_object from (select " + strings.Join(values, ", ") + ") idempotency_object)"
	if !fit.Object {
		row = "(select " + values[0] + ")"
	}
	value := oneValueSQL
	if many {
		value = manyValueSQL
	}
	value = strings.NewReplacer(":row", row, ":readable", readableSQL(fit, names)).Replace(value)
	ours := []string{":table", sql.table, ":alias", alias, ":statement", text, ":value", value, ":max", "$" + strconv.Itoa(args+1)}
	for i, name := range []string{":id", ":scope", ":fingerprint", ":retention", ":origin", ":limit"} {
		ours = append(ours, name, "$"+strconv.Itoa(args+i+1))
	}
	with := strings.NewReplacer(ours...).Replace
	return &effect{
		oneShot: fit.Proven,
		shot:    newNamed(with(strings.Replace(effectSQL, ":conflict", "", 1))),
		strict:  newNamed(with(strings.Replace(effectSQL, ":conflict", strictConflictSQL, 1))),
		alone:   with(aloneSQL),
	}
}

// readableSQL is true for a row whose values can be read where the columns' types alone do
// not say so.
func readableSQL(fit columns.Fit, names []string) string {
	all := []string{"true"}
	for _, i := range fit.Flat {
		all = append(all, "coalesce(pg_catalog.array_ndims(idempotency_row."+names[i]+") = 1, true)")
	}
	for _, i := range fit.Base64 {
		// encoding/base64 passes over line ends, which encode() writes.
		all = append(all, `coalesce(translate(idempotency_row.`+names[i]+`::text, chr(10) || chr(13), ''::text) ~ '^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$'::text, true)`)
	}
	return strings.Join(all, " and ")
}
