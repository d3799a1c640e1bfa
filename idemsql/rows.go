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
	fields := r.rows.FieldDescriptions()
	for i, src := range r.rows.RawValues() {
		var err error
		if dest[i], err = r.value(&fields[i], src); err != nil {
			return fmt.Errorf("idemsql: column %q: %w", fields[i].Name, err)
		}
	}
	return nil
}

// value decodes a column in the format that it came in, which pgx's query exec
// mode decides.
func (r *rows) value(field *pgconn.FieldDescription, src []byte) (driver.Value, error) {
	if src == nil {
		return nil, nil
	}
	switch field.DataTypeOID {
	case pgtype.BoolOID:
		return decode[bool](r.types, field, src)
	case pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID:
		return decode[int64](r.types, field, src)
	case pgtype.Float4OID:
		v, err := decode[float32](r.types, field, src)
		return float64(v), err
	case pgtype.Float8OID:
		return decode[float64](r.types, field, src)
	case pgtype.ByteaOID, pgtype.JSONOID, pgtype.JSONBOID, pgtype.XMLOID:
		return decode[[]byte](r.types, field, src)
	case pgtype.OIDOID, pgtype.XIDOID, pgtype.CIDOID:
		return decodeValuer[pgtype.Uint32](r.types, field, src)
	case pgtype.DateOID:
		return decodeValuer[pgtype.Date](r.types, field, src)
	case pgtype.TimestampOID:
		return decodeValuer[pgtype.Timestamp](r.types, field, src)
	case pgtype.TimestamptzOID:
		return decodeValuer[pgtype.Timestamptz](r.types, field, src)
	}
	return decode[string](r.types, field, src)
}

func decode[T any](types *pgtype.Map, field *pgconn.FieldDescription, src []byte) (v T, err error) {
	err = types.Scan(field.DataTypeOID, field.Format, src, &v)
	return v, err
}

// decodeValuer is for types with values that no Go type of database/sql has, such
// as infinity, which becomes text.
func decodeValuer[T driver.Valuer](types *pgtype.Map, field *pgconn.FieldDescription, src []byte) (driver.Value, error) {
	v, err := decode[T](types, field, src)
	if err != nil {
		return nil, err
	}
	return v.Value()
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
