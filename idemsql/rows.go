package idemsql

import (
	"database/sql/driver"
	"fmt"
	"io"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// inBinary are the types that are asked for in PostgreSQL's binary format. All
// others come as text, which is what database/sql gets of them.
var inBinary = pgx.QueryResultFormatsByOID{
	pgtype.BoolOID:        pgx.BinaryFormatCode,
	pgtype.ByteaOID:       pgx.BinaryFormatCode,
	pgtype.CIDOID:         pgx.BinaryFormatCode,
	pgtype.DateOID:        pgx.BinaryFormatCode,
	pgtype.Float4OID:      pgx.BinaryFormatCode,
	pgtype.Float8OID:      pgx.BinaryFormatCode,
	pgtype.Int2OID:        pgx.BinaryFormatCode,
	pgtype.Int4OID:        pgx.BinaryFormatCode,
	pgtype.Int8OID:        pgx.BinaryFormatCode,
	pgtype.OIDOID:         pgx.BinaryFormatCode,
	pgtype.TimestampOID:   pgx.BinaryFormatCode,
	pgtype.TimestamptzOID: pgx.BinaryFormatCode,
	pgtype.XIDOID:         pgx.BinaryFormatCode,
}

// rows are the answer to a query. Their values and column types are those of
// pgx's stdlib; TestValuesAreThoseOfStdlib compares them.
type rows struct {
	conn  *conn
	rows  pgx.Rows
	types *pgtype.Map
	ahead bool // the first row has been read ahead
	more  bool // there was one

	decode []decoder // of the columns, once there is a row
}

func (r *rows) Columns() []string {
	fields := r.rows.FieldDescriptions()
	names := make([]string, len(fields))
	for i, field := range fields {
		names[i] = field.Name
	}
	return names
}

// Close reads what has not been read. When database/sql closes rows that were left
// open it drops the error, so the conn keeps it.
func (r *rows) Close() error {
	r.rows.Close()
	if err := r.rows.Err(); err != nil {
		r.conn.unread = err
	}
	return r.rows.Err()
}

func (r *rows) Next(dest []driver.Value) error {
	if !r.ahead {
		r.more = r.rows.Next()
	}
	r.ahead = false
	if !r.more {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return io.EOF
	}
	r.prepare()
	for i, src := range r.rows.RawValues() {
		if src == nil {
			dest[i] = nil
			continue
		}
		var err error
		if dest[i], err = r.decode[i](src); err != nil {
			return fmt.Errorf("idemsql: column %q: %w", r.field(i).Name, err)
		}
	}
	return nil
}

// prepare plans once how the values of each column are decoded.
func (r *rows) prepare() {
	if r.decode != nil {
		return
	}
	fields := r.rows.FieldDescriptions()
	r.decode = make([]decoder, len(fields))
	for i := range fields {
		r.decode[i] = newDecoder(r.types, &fields[i])
	}
}

// A decoder makes a value of database/sql from one of PostgreSQL, not null.
type decoder func(src []byte) (driver.Value, error)

// newDecoder looks at the type of a column, and at the format in which pgx's query
// exec mode lets it come.
func newDecoder(types *pgtype.Map, field *pgconn.FieldDescription) decoder {
	switch field.DataTypeOID {
	case pgtype.BoolOID:
		return plain[bool](types, field)
	case pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID:
		return plain[int64](types, field)
	case pgtype.Float4OID:
		return converted(types, field, func(v float32) (driver.Value, error) { return float64(v), nil })
	case pgtype.Float8OID:
		return plain[float64](types, field)
	case pgtype.ByteaOID, pgtype.JSONOID, pgtype.JSONBOID, pgtype.XMLOID:
		return plain[[]byte](types, field)
	case pgtype.OIDOID, pgtype.XIDOID, pgtype.CIDOID:
		return converted(types, field, pgtype.Uint32.Value)
	case pgtype.DateOID: // infinity, which time.Time does not have, becomes text
		return converted(types, field, pgtype.Date.Value)
	case pgtype.TimestampOID:
		return converted(types, field, pgtype.Timestamp.Value)
	case pgtype.TimestamptzOID:
		return converted(types, field, pgtype.Timestamptz.Value)
	}
	return plain[string](types, field)
}

func plain[T any](types *pgtype.Map, field *pgconn.FieldDescription) decoder {
	return converted(types, field, func(v T) (driver.Value, error) { return v, nil })
}

func converted[T any](types *pgtype.Map, field *pgconn.FieldDescription, convert func(T) (driver.Value, error)) decoder {
	v := new(T)
	plan := types.PlanScan(field.DataTypeOID, field.Format, v)
	return func(src []byte) (driver.Value, error) {
		if err := plan.Scan(src, v); err != nil {
			return nil, err
		}
		return convert(*v)
	}
}

func (r *rows) field(i int) pgconn.FieldDescription { return r.rows.FieldDescriptions()[i] }

func (r *rows) ColumnTypeDatabaseTypeName(i int) string {
	oid := r.field(i).DataTypeOID
	if known, ok := r.types.TypeForOID(oid); ok {
		return strings.ToUpper(known.Name)
	}
	return strconv.FormatUint(uint64(oid), 10)
}

// modifierHeader is what PostgreSQL adds to the length or precision in the
// modifier of most types.
const modifierHeader = 4

func (r *rows) ColumnTypeLength(i int) (length int64, ok bool) {
	switch field := r.field(i); field.DataTypeOID {
	case pgtype.TextOID, pgtype.ByteaOID:
		return math.MaxInt64, true
	case pgtype.VarcharOID, pgtype.BPCharOID:
		return int64(field.TypeModifier - modifierHeader), true
	case pgtype.VarbitOID:
		return int64(field.TypeModifier), true
	}
	return 0, false
}

func (r *rows) ColumnTypePrecisionScale(i int) (precision, scale int64, ok bool) {
	field := r.field(i)
	if field.DataTypeOID != pgtype.NumericOID {
		return 0, 0, false
	}
	packed := field.TypeModifier - modifierHeader
	return int64(packed >> 16 & 0xffff), int64(packed & 0xffff), true
}

func (r *rows) ColumnTypeScanType(i int) reflect.Type {
	switch r.field(i).DataTypeOID {
	case pgtype.BoolOID:
		return reflect.TypeFor[bool]()
	case pgtype.Int2OID:
		return reflect.TypeFor[int16]()
	case pgtype.Int4OID:
		return reflect.TypeFor[int32]()
	case pgtype.Int8OID:
		return reflect.TypeFor[int64]()
	case pgtype.Float4OID:
		return reflect.TypeFor[float32]()
	case pgtype.Float8OID, pgtype.NumericOID:
		return reflect.TypeFor[float64]()
	case pgtype.DateOID, pgtype.TimestampOID, pgtype.TimestamptzOID:
		return reflect.TypeFor[time.Time]()
	case pgtype.ByteaOID:
		return reflect.TypeFor[[]byte]()
	}
	return reflect.TypeFor[string]()
}
