package idemsql_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// What a *sql.Tx of ours says is compared with what one of pgx's stdlib says, on
// the same pool.

var execModes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement,
	pgx.QueryExecModeCacheDescribe,
	pgx.QueryExecModeDescribeExec,
	pgx.QueryExecModeExec,
	pgx.QueryExecModeSimpleProtocol,
}

// inEachMode runs a test on a pool for each query exec mode of pgx.
func inEachMode(t *testing.T, test func(t *testing.T, pool *pgxpool.Pool)) {
	t.Parallel()
	b := setup(t)
	b.exec(`create type mood as enum ('happy'); create type pair as (a int, b text); create domain posint as int check (value > 0)`)
	for _, mode := range execModes {
		t.Run(mode.String(), func(t *testing.T) {
			test(t, pgtest.Pool(t, b.pool, func(cfg *pgxpool.Config) { cfg.ConnConfig.DefaultQueryExecMode = mode }))
		})
	}
}

var typedQueries = []string{
	"select true, false, null::bool",
	"select 1::int2, -2::int4, 3::int8, 4::oid, '5'::xid, '6'::cid, '7'::xid8, null::int4, null::oid",
	"select 32767::int2, -2147483648::int4, 9223372036854775807::int8, 4294967295::oid",
	"select 1.1::float4, 1.1::float8, 'NaN'::float8, 'infinity'::float8, '-infinity'::float4, -0.0::float8",
	"select 12345.678::numeric(10,3), 'NaN'::numeric, 1e300::numeric, 0::numeric, null::numeric, 1::numeric(5,0)",
	"select 'a'::text, 'b'::varchar(7), 'v'::varchar, 'c'::char(3), 'd'::name, 'e'::\"char\", null::text, ''::text, 'unknown'",
	`select '\x00ff'::bytea, ''::bytea, null::bytea`,
	"select '2020-02-03'::date, '2020-02-03 04:05:06.789'::timestamp, '2020-02-03 04:05:06.789+02'::timestamptz, '04:05:06'::time, '04:05:06+02'::timetz",
	"select 'infinity'::date, '-infinity'::timestamp, 'infinity'::timestamptz, '4713-01-01 BC'::date, null::date, null::timestamptz",
	`select '{"a": 1}'::json, '{"a": 1}'::jsonb, '[1]'::jsonb, null::jsonb, 'null'::jsonb, '"s"'::json, '$.a'::jsonpath`,
	"select xmlelement(name a)",
	`select '{1,2}'::int[], '{a,"b c",null}'::text[], array['2020-01-01'::date], '{}'::int[], '{{1,2},{3,4}}'::int8[], null::int[]`,
	"select '{t,f}'::bool[], '{1.5}'::numeric[], '{2.5}'::float8[], array['2020-01-01'::timestamptz], array['6ba7b810-9dad-11d1-80b4-00c04fd430c8'::uuid], array['\\x01'::bytea]",
	"select '6ba7b810-9dad-11d1-80b4-00c04fd430c8'::uuid, '1.2.3.4/8'::inet, '::1'::inet, '1.2.3.0/24'::cidr, '08:00:2b:01:02:03'::macaddr, '08:00:2b:01:02:03:04:05'::macaddr8",
	"select '1 day 02:03:04'::interval, '[1,5)'::int4range, 'empty'::daterange, '{[1,3),[5,9)}'::int4multirange, '101'::bit(3), '10'::varbit(5), '10.50'::money",
	"select '(1,2)'::point, '((0,0),(1,1))'::box, '<(0,0),1>'::circle, '{1,2,3}'::line, '[(0,0),(1,1)]'::lseg, '((0,0),(1,1))'::path, '((0,0),(1,1))'::polygon",
	"select row(1,'a'), 'mood'::regtype, 'pg_class'::regclass, '1/2'::pg_lsn, '(1,2)'::tid, 'a'::tsvector, 'a & b'::tsquery, '1 2'::oidvector",
	"select 'happy'::mood, '{happy}'::mood[], row(1,'x')::pair, 7::posint, array[row(1,'x')::pair]",
	"select generate_series(1,3), repeat('x', 100)",
	"select null::text, g::float4, g::text::bytea from generate_series(1, 3) g",
	"select case when g <> 2 then g end, case when g <> 2 then 'x' end from generate_series(1, 3) g",
	"select 1/(2-g) from generate_series(1, 3) g",
	"select 1 as twice, 2 as twice, 3 as \"Upper\"",
	"select 1, 2 where false",
	"select",
	"insert into charges (account) values ('q') returning account, n",
	"update charges set account = 'x' where false",
	"show server_version_num",
	"select pg_sleep(0)",
	"", "-- nothing", ";",
}

// everything is all that database/sql can tell of an answer.
func everything(rows *sql.Rows, err error) string {
	if err != nil {
		return "error: " + err.Error()
	}
	defer rows.Close()
	var out strings.Builder
	types, err := rows.ColumnTypes()
	if err != nil {
		return "error: " + err.Error()
	}
	for _, c := range types {
		length, sized := c.Length()
		precision, scale, decimal := c.DecimalSize()
		nullable, known := c.Nullable()
		fmt.Fprintln(&out, c.Name(), c.DatabaseTypeName(), c.ScanType(), length, sized, precision, scale, decimal, nullable, known)
	}
	values, into := make([]any, len(types)), make([]any, len(types))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return out.String() + "error: " + err.Error()
		}
		for _, v := range values {
			fmt.Fprintf(&out, "%T %#v\n", v, v)
		}
	}
	fmt.Fprint(&out, "error: ", rows.Err(), ", more: ", rows.NextResultSet())
	return out.String()
}

func TestValuesAndColumnTypesAreThoseOfStdlib(t *testing.T) {
	inEachMode(t, func(t *testing.T, pool *pgxpool.Pool) {
		for _, query := range typedQueries {
			t.Run(query, func(t *testing.T) {
				same(t, pool, func(tx *sql.Tx) string { return everything(tx.QueryContext(t.Context(), query)) })
			})
		}
	})
}

// An AfterConnect can teach pgx types of the application.
func TestValuesOfRegisteredTypesAreThoseOfStdlib(t *testing.T) {
	inEachMode(t, func(t *testing.T, pool *pgxpool.Pool) {
		pool = pgtest.Pool(t, pool, func(cfg *pgxpool.Config) {
			cfg.ConnConfig.DefaultQueryExecMode = pool.Config().ConnConfig.DefaultQueryExecMode
			cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
				types, err := conn.LoadTypes(ctx, []string{"mood", "_mood", "pair", "_pair", "posint"})
				conn.TypeMap().RegisterTypes(types)
				conn.TypeMap().RegisterType(&pgtype.Type{Name: "numeric", OID: pgtype.NumericOID, Codec: pgtype.TextCodec{}})
				return err
			}
		})
		for _, query := range []string{
			"select 'happy'::mood, '{happy}'::mood[], row(1,'x')::pair, 7::posint, array[row(1,'x')::pair]",
			"select 1.5::numeric",
		} {
			same(t, pool, func(tx *sql.Tx) string { return everything(tx.QueryContext(t.Context(), query)) })
		}
	})
}

// cents is a type of an application, with a method for database/sql.
type cents int64

func (c cents) Value() (driver.Value, error) {
	if c < 0 {
		return nil, errors.New("negative")
	}
	return int64(c), nil
}

type color string

func TestArgumentsAreThoseOfStdlib(t *testing.T) {
	at := time.Date(2020, 2, 3, 4, 5, 6, 789000000, time.FixedZone("", 7200))
	text := "p"
	inEachMode(t, func(t *testing.T, pool *pgxpool.Pool) {
		for _, c := range []struct {
			query string
			args  []any
		}{
			{"select $1::int4[]", []any{[]int32{1, 2}}},
			{"select $1::text[]", []any{[]string{"a", "b c"}}},
			{"select $1::jsonb", []any{map[string]int{"a": 1}}},
			{"select $1::jsonb", []any{[]byte(`{"a":1}`)}},
			{"select $1::jsonb", []any{json.RawMessage(`{"a":1}`)}},
			{"select $1::jsonb", []any{nil}},
			{"select $1::timestamptz, $2::date, $3::timestamp", []any{at, at, at}},
			{"select $1::text, $2::text, $3::text", []any{&text, (*string)(nil), nil}},
			{"select $1::text, $2::text", []any{sql.NullString{String: "x", Valid: true}, sql.NullString{}}},
			{"select $1::int", []any{sql.Null[int]{V: 1, Valid: true}}},
			{"select $1::uuid", []any{[16]byte{1}}},
			{"select $1::uuid", []any{"6ba7b810-9dad-11d1-80b4-00c04fd430c8"}},
			{"select $1::int, $2::float8, $3::bool, $4::bytea", []any{7, 1.5, true, []byte{0}}},
			{"select $1::bytea, $2::bytea", []any{[]byte{}, []byte(nil)}},
			{"select $1::numeric, $2::numeric", []any{"1.5", 2}},
			{"select $1::int8, $2::text", []any{cents(5), color("red")}},
			{"select $1::int8", []any{cents(-5)}},
			{"select $1::int8", []any{(*cents)(nil)}},
			{"select $1::int8", []any{uint64(1 << 63)}},
			{"select $1::interval", []any{time.Minute}},
			{"select $1::int4range", []any{pgtype.Range[pgtype.Int4]{LowerType: pgtype.Unbounded, UpperType: pgtype.Unbounded, Valid: true}}},
			{"select @a::int", []any{pgx.NamedArgs{"a": 1}}},
			{"select $1::int", []any{sql.Named("x", 1)}},
			{"select $1::int", []any{pgx.QueryExecModeSimpleProtocol, 1}},
			{"select $1::int", []any{sql.Out{Dest: new(int)}}},
			{"select $1::int", []any{make(chan int)}},
			{"select $1::int", []any{"one"}},
			{"select $1::int", []any{1, 2}},
			{"select $1::int", nil},
			{"select 1/0", nil},
			{"selec", nil},
			{"select * from no_such_table", nil},
			{"select 1/(2-g) from generate_series(1, 3) g", nil},
			{"insert into charges (account, n) values ($1, $2)", []any{"a", 1}},
			{"select 1; select 2", nil},
		} {
			t.Run(fmt.Sprint(c.query, c.args), func(t *testing.T) {
				same(t, pool, func(tx *sql.Tx) string { return everything(tx.QueryContext(t.Context(), c.query, c.args...)) })
				same(t, pool, func(tx *sql.Tx) string { return effect(tx.ExecContext(t.Context(), c.query, c.args...)) })
			})
		}
	})
}

// effect is all that database/sql can tell of an execution.
func effect(result sql.Result, err error) string {
	if err != nil {
		return "error: " + err.Error()
	}
	n, err := result.RowsAffected()
	_, noID := result.LastInsertId()
	return fmt.Sprint(n, err, noID)
}

func TestErrorsCarryThePgErrorAsThoseOfStdlib(t *testing.T) {
	t.Parallel()
	b := setup(t)
	same(t, b.pool, func(tx *sql.Tx) string {
		_, err := tx.ExecContext(t.Context(), "insert into charges (account) values (null)")
		pgErr, ok := errors.AsType[*pgconn.PgError](err)
		if !ok {
			return "no PgError"
		}
		return pgErr.Code + pgErr.ColumnName + pgErr.TableName
	})
}

func TestPreparedStatementsGiveWhatThoseOfStdlibGive(t *testing.T) {
	inEachMode(t, func(t *testing.T, pool *pgxpool.Pool) {
		same(t, pool, func(tx *sql.Tx) string {
			var out strings.Builder
			one, err := tx.PrepareContext(t.Context(), "select $1::int + 1, $2::text")
			if err != nil {
				return err.Error()
			}
			two, err := tx.Prepare("insert into charges (account, n) values ($1, $2)")
			if err != nil {
				return err.Error()
			}
			for i := range 3 {
				fmt.Fprintln(&out, everything(one.QueryContext(t.Context(), i, "x")))
				fmt.Fprintln(&out, effect(two.ExecContext(t.Context(), "a", i)))
				fmt.Fprintln(&out, effect(tx.StmtContext(t.Context(), two).Exec("b", 10+i)))
			}
			fmt.Fprintln(&out, one.Close(), two.Close())
			_, err = one.Query(1, "x")
			fmt.Fprintln(&out, err)
			return out.String()
		})
	})
}

func TestErrorOfAPreparedStatementComesWithItsExecution(t *testing.T) {
	inEachMode(t, func(t *testing.T, pool *pgxpool.Pool) {
		for query, args := range map[string][]any{"selec": nil, "select $1::int": {1, 2}, "select $1::int, 1": nil} {
			got := ofOurs(t, pool, func(tx *sql.Tx) string {
				stmt, err := tx.PrepareContext(t.Context(), query)
				if err != nil {
					return "too early: " + err.Error()
				}
				return everything(stmt.QueryContext(t.Context(), args...))
			})
			if !strings.HasPrefix(got, "error: ") || strings.Contains(got, "<nil>") {
				t.Errorf("%s: %s", query, got)
			}
		}
	})
}

func TestNamedArgumentsThatPostgreSQLDoesNotHaveAreExplained(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, query := range []string{"select @amount::int", "select :amount", "select 'x' where 1 = @amount"} {
		got := ofOurs(t, b.pool, func(tx *sql.Tx) string {
			return everything(tx.QueryContext(t.Context(), query, sql.Named("amount", 1)))
		})
		if !strings.Contains(got, `"amount"`) || !strings.Contains(got, "write $1") || !strings.Contains(got, "pgx.NamedArgs") {
			t.Errorf("%s: %s", query, got)
		}
	}
	got := ofOurs(t, b.pool, func(tx *sql.Tx) string {
		return effect(tx.Exec("insert into charges (account, n) values ($1, @n)", "a", sql.Named("n", 1)))
	})
	if !strings.Contains(got, "write $2") {
		t.Error(got)
	}
}

func TestSavepointUndoesItsPart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.executes(func(ctx context.Context, tx *sql.Tx) (int64, error) {
		for _, sql := range []string{"savepoint s", "insert into charges (account) values ('undone')", "rollback to savepoint s"} {
			if _, err := tx.ExecContext(ctx, sql); err != nil {
				return 0, err
			}
		}
		return charge(ctx, tx)
	})
	if n := b.count("select count(*) from charges where account = 'undone'"); n != 0 {
		t.Error("the insert before ROLLBACK TO SAVEPOINT is there")
	}
	b.charges(1)
}
