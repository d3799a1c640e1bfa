package idempotency_test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/columns"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// A ride is a row of the table charges.
type ride struct {
	ID     int64  `json:"id"`
	Key    string `json:"key"`
	Amount int    `json:"amount"`
}

const rideSQL = `insert into charges (key, amount) values ($1, $2) returning id, key, amount`

// book calls QueryRow with the key of b.
func (b *bundle) book(amount int) (ride, bool, error) {
	b.Helper()
	return idempotency.QueryRow[ride](context.Background(), b.store, b.key, rideSQL, b.key.ID, amount)
}

func (b *bundle) books(amount int, replayed bool) ride {
	b.Helper()
	got, again, err := b.book(amount)
	if err != nil || again != replayed || got.Key != b.key.ID || got.Amount != amount {
		b.Errorf("QueryRow = %+v, replayed %v, %v; want amount %d, replayed %v", got, again, err, amount, replayed)
	}
	return got
}

// nothingKept checks that there is neither an effect nor a record of b's key.
func (b *bundle) nothingKept(what string) {
	b.Helper()
	if charges, records := query[int](b, "select count(*) from charges where key = $1", b.key.ID), query[int](b, "select count(*) from idempotency_keys where id = $1", b.key.ID); charges+records != 0 {
		b.Errorf("%s: %d charges and %d records", what, charges, records)
	}
}

func TestStatementTakesEffectOnceAndItsRowIsReplayed(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	first := b.books(7, false)
	b.effects(1)
	if again := b.books(7, true); again != first {
		t.Errorf("the replay of a known key is %v, want %v", again, first)
	}
	b.unknown()
	if again := b.books(7, true); again != first {
		t.Errorf("the replay of an unknown key is %v, want %v", again, first)
	}
	b.exec("update idempotency_keys set expires_at = now(), purge_after = now()")
	if again := b.books(7, false); again == first {
		t.Errorf("the call after the retention is %v", again)
	}
	if n := query[int](b, "select count(*) from charges"); n != 2 {
		t.Errorf("%d charges", n)
	}
}

func TestRecordOfAStatementIsAsThatOfDo(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{Retention: time.Hour, Trace: func(ctx context.Context, operation string) (context.Context, string) {
		return ctx, "trace of " + operation
	}})
	b.key.Fingerprint = idempotency.FingerprintOf([]byte("body"))
	before := query[time.Time](b, "select clock_timestamp()")
	b.books(7, false)
	rec, err := b.store.Get(t.Context(), b.key)
	if err != nil {
		t.Fatal(err)
	}
	after := query[time.Time](b, "select clock_timestamp()")
	if rec.Key != b.key || rec.Origin != "trace of QueryRow" || string(rec.Result) != `{"id":1,"key":"key-1","amount":7}` {
		t.Errorf("got %+v, %s", rec, rec.Result)
	}
	if rec.CreatedAt.Before(before) || rec.CompletedAt.Before(rec.CreatedAt) || rec.CompletedAt.After(after) || rec.ExpiresAt.Sub(rec.CompletedAt) != time.Hour {
		t.Errorf("created %v, completed %v, expires %v", rec.CreatedAt, rec.CompletedAt, rec.ExpiresAt)
	}
	_, _, err = idempotency.QueryRow[ride](t.Context(), b.store, idempotency.Key{Scope: b.key.Scope, ID: b.key.ID}, rideSQL, b.key.ID, 7)
	b.wantErr(err, idempotency.ErrKeyReused)
	b.unknown()
	_, _, err = idempotency.QueryRow[ride](t.Context(), b.store, idempotency.Key{Scope: b.key.Scope, ID: b.key.ID}, rideSQL, b.key.ID, 7)
	b.wantErr(err, idempotency.ErrKeyReused)
	b.effects(1)
}

func TestRecordsOfDoAndOfStatementsReplayEachOther(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	want := ride{ID: 9, Key: "by Do", Amount: 3}
	do := func() (ride, bool, error) {
		return idempotency.Do(t.Context(), b.store, b.key, func(context.Context, pgx.Tx) (ride, error) { return want, nil })
	}
	if _, _, err := do(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got, replayed, err := b.book(1); got != want || !replayed || err != nil {
			t.Errorf("QueryRow = %v, %v, %v", got, replayed, err)
		}
		b.unknown()
	}
	b.key.ID = "other"
	want = b.books(1, false)
	for range 2 {
		if got, replayed, err := do(); got != want || !replayed || err != nil {
			t.Errorf("Do = %v, %v, %v", got, replayed, err)
		}
		b.unknown()
	}
}

func TestQueryReturnsAnyNumberOfRowsInTheirOrder(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for n := range 4 {
		b.key.ID = fmt.Sprint(n)
		for range 2 {
			rows, _, err := idempotency.Query[ride](t.Context(), b.store, b.key, "insert into charges (key, amount) select $1, $2 - g from generate_series(1, $2) g returning id, key, amount -- all", b.key.ID, n)
			if err != nil || rows == nil || len(rows) != n {
				t.Fatalf("%d: %v, %v", n, rows, err)
			}
			for i, row := range rows {
				if row.Amount != n-1-i {
					t.Errorf("row %d of %d is %+v", i, n, row)
				}
			}
		}
		if got := query[int](b, "select count(*) from charges where key = $1", b.key.ID); got != n {
			t.Errorf("%d charges, want %d", got, n)
		}
	}
	ids, _, err := idempotency.Query[*int](t.Context(), b.store, idempotency.Key{Scope: "s", ID: "null"}, "values (1), (null), (3)")
	if err != nil || len(ids) != 3 || *ids[0] != 1 || ids[1] != nil || *ids[2] != 3 {
		t.Errorf("%v, %v", ids, err)
	}
}

func TestStatementsOfEachFormAreWrapped(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("insert into charges (key, amount) values ('old', 1), ('old', 2); create function ids() returns setof bigint language sql volatile as 'select id from charges order by id'")
	for i, sql := range []string{
		"select 7",
		"  select 7 ; \n",
		"select 7 -- and a comment",
		"select 7 /* idempotency_keys :statement $9 */",
		"values (7)",
		"table seven",
		"with x as (select 7 as n) select n from x",
		"select 7 from charges limit 1 for update",
		"update charges set amount = 7 where amount = 1 returning amount",
		"delete from charges where amount = 7 returning amount",
		"insert into charges (key, amount) values ('new', 7) returning amount",
		"select case when ids > 0 then 7 end from ids() limit 1",
		"select (select 7) as idempotency_row",
		"select 7 as value",
	} {
		if sql == "table seven" {
			b.exec("create table seven as select 7 as n")
		}
		key := idempotency.Key{Scope: "forms", ID: fmt.Sprint(i)}
		for again := range 2 {
			got, replayed, err := idempotency.QueryRow[int](t.Context(), b.store, key, sql)
			if got != 7 || replayed != (again == 1) || err != nil {
				t.Errorf("%s: %d, %v, %v", sql, got, replayed, err)
			}
		}
	}
	type row struct {
		Row   int    `json:"idempotency_row"`
		Value string `json:"value"`
		Name  string `json:"$a :name"`
	}
	got, _, err := idempotency.QueryRow[row](t.Context(), b.store, b.key, `select 1 as idempotency_row, 'v' as value, ':id' as "$a :name"`)
	if got != (row{1, "v", ":id"}) || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestWhatCannotBeWrappedIsRefusedAndNothingIsKept(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("create procedure booked() language sql as $$ insert into charges (key, amount) values ('key-1', 1) $$")
	for sql, says := range map[string]string{
		"insert into charges (key, amount) values ('key-1', 1) returning id; select 1":                            "not one statement",
		"with c as (insert into charges (key, amount) values ('key-1', 1) returning amount) select amount from c": "cannot be a part of another",
		"insert into charges (key, amount) values ('key-1', 1)":                                                   "returns no columns",
		"create table idempotency_effect ()":                                                                      "returns no columns",
		"call booked()":                                                                                           "returns no columns",
		"":                                                                                                        "returns no columns",
		" ; ":                                                                                                     "returns no columns",
		"explain analyze insert into charges (key, amount) values ('key-1', 1)": "cannot be a part of another",
		"show search_path":          "cannot be a part of another",
		"select 1 into temporary x": "returns no columns",
		"insert into charges (key, amount) values ('key-1', $1) returning id": "1 parameters, and 0 arguments",
	} {
		_, _, err := idempotency.QueryRow[int](t.Context(), b.store, b.key, sql)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", sql, err, says)
		}
		b.nothingKept(sql)
	}
	b.books(1, false)
}

type embedded struct {
	ID int64 `json:"id"`
}

// What is refused here names the column or the field, and is not executed.
func TestColumnsThatDoNotFitAreRefusedAndNothingIsKept(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("create type mood as enum ('good', 'bad')")
	type id struct {
		ID int64 `json:"id"`
	}
	type tagged struct {
		ID  int64  `json:"id"`
		Key string `db:"booking_key"`
	}
	type quoted struct {
		ID int64 `json:"id,string"`
	}
	for _, c := range []struct {
		returning string
		call      func(sql string) error
		says      string
	}{
		{"id, amount", rowOf[id](b), `column "amount" has no field`},
		{"id", rowOf[ride](b), "field Key of"},
		{"id, amount", rowOf[int64](b), "2 columns"},
		{"id, 1", rowOf[id](b), "without a name"},
		{"id, amount as id", rowOf[id](b), "two columns"},
		{`id, id as "ID"`, rowOf[id](b), "both read into"},
		{"id, key as booking_key", rowOf[tagged](b), "has the tag db"},
		{"id", rowOf[quoted](b), `column "id"`},
		{"id, amount", rowOf[embedded](b), `"amount"`},
		{"id", rowOf[map[int]any](b), "keys of map[int]"},
		{"current_date", rowOf[time.Time](b), "of type date"},
		{"localtimestamp", rowOf[time.Time](b), "no time zone"},
		{"localtime", rowOf[time.Time](b), "of type time"},
		{"interval '1 day'", rowOf[string](b), "interval"},
		{"array[interval '1 day']", rowOf[[]string](b), "interval"},
		{"decode('aa', 'hex')", rowOf[[]byte](b), "base64"},
		{"decode('aa', 'hex')", rowOf[string](b), "base64"},
		{"id", rowOf[any](b), "loses digits"},
		{"id", rowOf[map[string]any](b), "loses digits"},
		{"array[id]", rowOf[[]any](b), "loses digits"},
		{"1.5::numeric", rowOf[any](b), "loses digits"},
		{"id", rowOf[float64](b), "loses digits"},
		{"id", rowOf[int32](b), "int8"},
		{"id", rowOf[uint64](b), "int8"},
		{"1.5::numeric", rowOf[int](b), "numeric"},
		{"1::float8", rowOf[float32](b), "float8"},
		{"amount", rowOf[string](b), "select it as text"},
		{"key", rowOf[int](b), "of type text"},
		{"true", rowOf[string](b), "of type bool"},
		{"array[amount]", rowOf[int](b), "int4[]"},
		{"'good'::mood", rowOf[int](b), "mood"},
	} {
		err := c.call("insert into charges (key, amount) values ('key-1', 1) returning " + c.returning)
		if !errors.Is(err, idempotency.ErrUndecodable) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "nothing of this call was kept") {
			t.Errorf("%s: %v, want %q", c.returning, err, c.says)
		}
		b.nothingKept(c.returning)
	}
}

// rowOf calls QueryRow for a T.
func rowOf[T any](b *bundle) func(sql string) error {
	return func(sql string) error {
		_, _, err := idempotency.QueryRow[T](context.Background(), b.store, b.key, sql)
		return err
	}
}

type uuid [16]byte

func (u *uuid) UnmarshalText(text []byte) error {
	digits, err := hex.DecodeString(strings.ReplaceAll(string(text), "-", ""))
	if err == nil && copy(u[:], digits) != len(u) {
		err = errors.New("not 16 bytes")
	}
	return err
}

// Each value is the same in the first call and in each replay, and the same bytes are
// stored, whatever the settings of the session are.
func TestValuesOfAStatementDoNotDependOnTheSession(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	type everything struct {
		Small   int16            `json:"small"`
		Big     *int64           `json:"big"`
		Decimal json.Number      `json:"decimal"`
		Real    float64          `json:"real"`
		Text    string           `json:"text"`
		Truth   bool             `json:"truth"`
		At      time.Time        `json:"at"`
		Day     string           `json:"day"`
		Bytes   []byte           `json:"bytes"`
		Doc     json.RawMessage  `json:"doc"`
		List    []int32          `json:"list"`
		Texts   []string         `json:"texts"`
		None    *string          `json:"none"`
		Zero    string           `json:"zero"`
		Times   map[string]int32 `json:"times"`
		ID      uuid             `json:"uuid"`
	}
	const sql = `select 7::int2 as small, 9223372036854775807 as big, 12345678901234567890.50 as decimal, 0.1::float8 as real, E'\u00fc "\n' as text, true as truth,
		timestamptz '2026-11-27 21:05:00.123456+00' as at, date '2026-11-27' as day, encode(decode(repeat('ff', 60), 'hex'), 'base64') as bytes,
		'{"a": [1,  2]}'::json as doc, array[1,null,3] as list, array['x','y'] as texts, null::text as none, null::text as zero, '{"a": 1}'::jsonb as times, '11111111-1111-4111-8111-111111111111'::uuid as uuid`
	var first *everything
	var stored string
	for i, settings := range []string{"", "set datestyle = 'German, DMY'", "set timezone = 'Asia/Kolkata'", "set bytea_output = 'escape'; set intervalstyle = 'iso_8601'", "set quote_all_identifiers = on; set extra_float_digits = 3"} {
		pool := b.anotherPool(func(cfg *pgxpool.Config) {
			cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
				_, err := conn.Exec(ctx, settings, pgx.QueryExecModeSimpleProtocol)
				return err
			}
		})
		store := b.storeOn(pool, idempotency.Config{})
		key := idempotency.Key{Scope: "values", ID: fmt.Sprint(i)}
		for range 2 {
			got, _, err := idempotency.QueryRow[everything](t.Context(), store, key, sql)
			if err != nil {
				t.Fatalf("%s: %v", settings, err)
			}
			if first == nil {
				first = &got
				stored = query[string](b, "select convert_from(result, 'UTF8') from idempotency_keys where id = $1", key.ID)
			}
			if fmt.Sprintf("%v %v", got.Big != nil && *got.Big == math.MaxInt64, strip(got)) != fmt.Sprintf("true %v", strip(*first)) || !got.At.Equal(first.At) || len(got.Bytes) != 60 {
				t.Errorf("%s: %+v, want %+v", settings, got, *first)
			}
		}
		again := query[string](b, "select convert_from(result, 'UTF8') from idempotency_keys where id = $1", key.ID)
		if again != stored {
			t.Errorf("%s: stored %s, want %s", settings, again, stored)
		}
	}
}

// strip leaves out what has no stable text: pointers, and the time's location.
func strip(v any) string {
	doc, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	var fields map[string]any
	if err := json.Unmarshal(doc, &fields); err != nil {
		return string(doc)
	}
	delete(fields, "at")
	return fmt.Sprint(fields)
}

// Where the column's type does not say what a value can be, the value is read before
// COMMIT.
func TestValueThatCannotBeReadKeepsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for name, c := range map[string]struct {
		returning string
		call      func(string) error
	}{
		"json into another shape":    {`'[1]'::jsonb as doc`, rowOf[struct{ Doc map[string]int }](b)},
		"json with a large number":   {`'{"n": 9223372036854775807}'::jsonb as doc`, rowOf[struct{ Doc any }](b)},
		"an array of arrays":         {`array[array[1], array[2]]`, rowOf[[]int](b)},
		"text that is no Base64":     {`'x y'::text`, rowOf[[]byte](b)},
		"Base64 with a blank":        {`'YWJj YWJj'::text`, rowOf[[]byte](b)},
		"a text that a type refuses": {`'no uuid'::text`, rowOf[uuid](b)},
	} {
		err := c.call("insert into charges (key, amount) values ('key-1', 1) returning " + c.returning)
		if !errors.Is(err, idempotency.ErrUndecodable) || !strings.Contains(err.Error(), "nothing of this call was kept") {
			t.Errorf("%s: %v", name, err)
		}
		b.nothingKept(name)
	}
}

func TestInfinityIsAnErrorThatSaysThatTheOperationIsRecorded(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for range 2 {
		_, _, err := idempotency.QueryRow[time.Time](t.Context(), b.store, b.key, "insert into charges (key, amount) values ('key-1', 1) returning timestamptz 'infinity'")
		if !errors.Is(err, idempotency.ErrUndecodable) || !strings.Contains(err.Error(), "effect") || strings.Contains(err.Error(), "nothing of this call") {
			t.Errorf("got %v", err)
		}
	}
	b.effects(1)
}

func TestTimeOfAStatementIsReadInEveryTimeZone(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	want := []time.Time{{}, time.Date(1880, 2, 3, 4, 5, 6, 7000, time.UTC), time.Date(2026, 11, 27, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 23, 0, 0, 0, time.UTC)}
	for i, zone := range []string{"UTC", "America/New_York", "Europe/Berlin", "Asia/Kolkata"} {
		store := b.storeOn(b.anotherPool(param("timezone", zone), pgtest.Direct), idempotency.Config{})
		for j, at := range want {
			key := idempotency.Key{Scope: zone, ID: fmt.Sprint(i, j)}
			for range 2 {
				got, _, err := idempotency.QueryRow[time.Time](t.Context(), store, key, "select $1::timestamptz", at)
				if !got.Equal(at) || err != nil {
					t.Errorf("%s: %v, %v; want %v", zone, got, err, at)
				}
			}
		}
		list, _, err := idempotency.QueryRow[[]time.Time](t.Context(), store, idempotency.Key{Scope: zone, ID: "list"}, "select array[$1::timestamptz, null]", want[2])
		if len(list) != 2 || !list[0].Equal(want[2]) || err != nil {
			t.Errorf("%s: %v, %v", zone, list, err)
		}
	}
}

// A schema's name is no part of the text in which ours are put in.
func TestStatementInASchemaOfAnyName(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.anotherTable("t$1")
	for _, schema := range []string{"t:id", ":statement", ":scope :value", "$1", ":table"} {
		b.anotherTable(schema)
		store := b.storeOn(b.pool, idempotency.Config{Schema: schema})
		b.key.ID = schema
		for again := range 2 {
			_, replayed, err := idempotency.QueryRow[ride](t.Context(), store, b.key, rideSQL, b.key.ID, 7)
			if replayed != (again == 1) || err != nil {
				t.Errorf("%s: replayed %v, %v", schema, replayed, err)
			}
			store.Forget(b.key)
		}
		if n := query[int](b, "select count(*) from charges where key = $1", schema); n != 1 {
			t.Errorf("%s: %d charges", schema, n)
		}
		if n := query[int](b, "select count(*) from "+pgx.Identifier{schema, "idempotency_keys"}.Sanitize()); n != 1 {
			t.Errorf("%s: %d records", schema, n)
		}
	}
}

func TestStatementWhoseTableWasAlteredKeepsItsMeaningOrKeepsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	type account struct {
		ID  int32 `json:"id"`
		Bal int32 `json:"bal"`
	}
	b.exec("create table accounts (id int, bal int); insert into accounts values (1, 0)")
	add := func(id string, n int64) (account, error) {
		got, _, err := idempotency.QueryRow[account](t.Context(), b.store, idempotency.Key{Scope: "s", ID: id}, "update accounts set bal = bal + $1 returning *", n)
		return got, err
	}
	if got, err := add("before", 2); got != (account{1, 2}) || err != nil {
		t.Fatal(got, err)
	}
	b.exec("alter table accounts alter column bal type bigint")
	if _, err := add("larger", 1<<40); err == nil {
		t.Error("a value that is too large was read")
	}
	if n := query[int64](b, "select bal from accounts"); n != 2 {
		t.Errorf("the balance is %d", n)
	}
	b.exec("alter table accounts alter column bal type int")
	if _, err := add("again", 1); err != nil {
		t.Error(err)
	}
	b.exec("alter table accounts rename column bal to amount")
	got, _, err := idempotency.QueryRow[account](t.Context(), b.store, idempotency.Key{Scope: "s", ID: "renamed"}, "update accounts set id = id + 1 returning *")
	if err == nil && got.Bal != 3 {
		t.Errorf("after the column was renamed: %+v", got)
	}
}

func TestTypesOfTheUsersWithNamesOfPostgreSQLsAreNotTakenForThem(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("create type circle as (r int); create table _events (n int); insert into _events values (7)")
	_, _, err := idempotency.QueryRow[string](t.Context(), b.store, b.key, "insert into charges (key, amount) values ('key-1', 1) returning row(1)::public.circle")
	if !errors.Is(err, idempotency.ErrUndecodable) {
		t.Errorf("got %v", err)
	}
	b.nothingKept("a composite type")
	event, _, err := idempotency.QueryRow[struct{ N int }](t.Context(), b.store, b.key, "select n from _events e")
	if event.N != 7 || err != nil {
		t.Errorf("%+v, %v", event, err)
	}
	row, _, err := idempotency.QueryRow[struct{ E struct{ N int } }](t.Context(), b.store, idempotency.Key{Scope: "s", ID: "row"}, "select e from _events e")
	if row.E.N != 7 || err != nil {
		t.Errorf("%+v, %v", row, err)
	}
	oid, _, err := idempotency.QueryRow[string](t.Context(), b.store, idempotency.Key{Scope: "s", ID: "oid"}, "select 16384::oid")
	if oid != "16384" || err != nil {
		t.Errorf("an oid: %q, %v", oid, err)
	}
}

// What internal/columns takes for the form of a type is what PostgreSQL writes.
func TestExamplesOfTypesAreOfTheFormThatPostgreSQLWrites(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for column, examples := range columns.Examples() {
		for _, example := range examples {
			var text string
			if err := json.Unmarshal([]byte(example), &text); err != nil {
				text = example
			}
			written := query[string](b, "select to_json($1::text::"+pgx.Identifier{column}.Sanitize()+")::text", text)
			if (written[0] == '"') != (example[0] == '"') {
				t.Errorf("%s: PostgreSQL writes %s, and the example is %s", column, written, example)
			}
		}
	}
}

func TestErrorOfAStatementKeepsNothingAndTheNextCallRuns(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{MaxResult: 200})
	b.exec("create table once (id int primary key); create table late (id int, constraint late_u unique (id) deferrable initially deferred); insert into late values (1)")
	for name, c := range map[string]struct {
		sql   string
		is    error
		state string
	}{
		"no row":               {"update charges set amount = 1 where id = -1 returning key", pgx.ErrNoRows, ""},
		"two rows":             {"insert into charges (key, amount) select 'key-1', g from generate_series(1, 2) g returning key", pgx.ErrTooManyRows, ""},
		"two rows of a select": {"select 'x' from generate_series(1, 2)", pgx.ErrTooManyRows, ""},
		"too large":            {"insert into charges (key, amount) values ('key-1', 1) returning repeat('x', 300)", idempotency.ErrTooLarge, ""},
		"just too large":       {"insert into charges (key, amount) values ('key-1', 1) returning repeat('x', 199)", idempotency.ErrTooLarge, ""},
		"an error of its own":  {"insert into charges (key, amount) values ('key-1', 1 / (length('a') - 1)) returning key", nil, "22012"},
		"no such table":        {"insert into nothere values (1) returning 'x'", nil, "42P01"},
		"a syntax error":       {"insert in charges", nil, "42601"},
		"at COMMIT":            {"insert into late values (1) returning 'x'", nil, "23505"},
		"not one's type":       {"select $1::int::text", nil, ""},
	} {
		for range 2 {
			var args []any
			if strings.Contains(c.sql, "$1") {
				args = []any{"x"}
			}
			_, _, err := idempotency.QueryRow[string](t.Context(), b.store, b.key, c.sql, args...)
			if err == nil || c.is != nil && !errors.Is(err, c.is) || c.state != "" && sqlState(err) != c.state {
				t.Errorf("%s: %v", name, err)
			}
			b.nothingKept(name)
		}
	}
	got, replayed, err := idempotency.QueryRow[string](t.Context(), b.store, b.key, "insert into charges (key, amount) values ('key-1', 1) returning repeat('x', 198)")
	if len(got) != 198 || replayed || err != nil {
		t.Errorf("of the largest size: %d, %v, %v", len(got), replayed, err)
	}
}

// received counts what the connections of a pool read.
type received struct {
	net.Conn
	bytes *atomic.Int64
}

func (r received) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.bytes.Add(int64(n))
	return n, err
}

func TestResultThatIsTooLargeIsNotSent(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	var bytes atomic.Int64
	pool := pgtest.Pool(t, b.pool, func(cfg *pgxpool.Config) {
		dial := cfg.ConnConfig.DialFunc
		cfg.ConnConfig.TLSConfig, cfg.ConnConfig.Fallbacks = nil, nil
		cfg.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			return received{conn, &bytes}, err
		}
	})
	store, err := idempotency.NewWithConfig(pool, idempotency.Config{MaxResult: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{ // in one round trip, and by itself
		"select repeat('x', 1000000)",
		"select to_json(repeat('x', 1000000))",
	} {
		if _, _, err := idempotency.QueryRow[string](t.Context(), store, b.key, sql); !errors.Is(err, idempotency.ErrTooLarge) || !strings.Contains(err.Error(), "1000002 bytes") {
			t.Errorf("%s: %v", sql, err)
		}
	}
	if n := bytes.Load(); n < 1000 || n > 100_000 {
		t.Errorf("%d bytes came", n)
	}
	for _, sql := range []string{"select repeat('x', 998)", "select to_json(repeat('x', 998))"} { // 1000 with the quotes
		if got, _, err := idempotency.QueryRow[string](t.Context(), store, idempotency.Key{Scope: "s", ID: sql}, sql); len(got) != 998 || err != nil {
			t.Errorf("%s: %d bytes, %v", sql, len(got), err)
		}
	}
}

func TestOwnConstraintHidesNoReplay(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("create table once (id int primary key)")
	insert := func() (int, bool, error) {
		return idempotency.QueryRow[int](t.Context(), b.store, b.key, "insert into once values (1) returning id")
	}
	if got, replayed, err := insert(); got != 1 || replayed || err != nil {
		t.Fatal(got, replayed, err)
	}
	b.unknown()
	if got, replayed, err := insert(); got != 1 || !replayed || err != nil {
		t.Errorf("the replay: %d, %v, %v", got, replayed, err)
	}
	b.exec("drop table once")
	b.unknown()
	if got, replayed, err := insert(); got != 1 || !replayed || err != nil {
		t.Errorf("the replay without the table: %d, %v, %v", got, replayed, err)
	}
	b.key.ID = "other"
	b.exec("create table once (id int primary key); insert into once values (1)")
	if _, _, err := insert(); sqlState(err) != "23505" {
		t.Errorf("another key: %v", err)
	}
}

func TestSmallestAndLargestValuesOfATypeAreRead(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for i, c := range []struct{ sql, want string }{
		{"select -9223372036854775808", "-9223372036854775808"},
		{"select 9223372036854775807", "9223372036854775807"},
	} {
		got, _, err := idempotency.QueryRow[int64](t.Context(), b.store, idempotency.Key{Scope: "s", ID: fmt.Sprint(i)}, c.sql)
		if fmt.Sprint(got) != c.want || err != nil {
			t.Errorf("%s: %d, %v", c.sql, got, err)
		}
	}
}

// The same text is another statement for another type, and for any number of rows.
func TestTextOfAStatementIsUsedWithSeveralTypes(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	const sql = "select 7 as n"
	key := func(id string) idempotency.Key { return idempotency.Key{Scope: "s", ID: id} }
	for range 2 { // executed, and replayed
		if got, _, err := idempotency.QueryRow[int](t.Context(), b.store, key("row"), sql); got != 7 || err != nil {
			t.Error(got, err)
		}
		if got, _, err := idempotency.Query[int](t.Context(), b.store, key("rows"), sql); !slices.Equal(got, []int{7}) || err != nil {
			t.Error(got, err)
		}
		if got, _, err := idempotency.QueryRow[struct{ N int }](t.Context(), b.store, key("struct"), sql); got.N != 7 || err != nil {
			t.Error(got, err)
		}
	}
}

// numeric into float64 is not proven to be readable, so that the statement takes the way
// of Do.
func TestQueryThatReturnsNoRowHasAnEmptyResult(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for _, sql := range []string{"select 1::numeric where false", "select 1::float8 where false"} {
		for range 2 {
			got, _, err := idempotency.Query[float64](t.Context(), b.store, idempotency.Key{Scope: "s", ID: sql}, sql)
			if len(got) != 0 || err != nil {
				t.Errorf("%s: %v, %v", sql, got, err)
			}
		}
	}
}

func TestStatementThatIsNotGivenItsArgumentsOrReturnsNothingIsRefusedInWords(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for _, c := range []struct {
		sql  string
		args []any
		say  string
	}{
		{"select $1::int", nil, "has 1 parameters, and 0 arguments were given"},
		{"select 1", []any{1}, "has 0 parameters, and 1 arguments were given"},
		{"insert into charges (key, amount) values ('a', 1)", nil, "returns no columns: add RETURNING"},
	} {
		_, _, err := idempotency.QueryRow[int](t.Context(), b.store, b.key, c.sql, c.args...)
		if err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: %v", c.sql, err)
		}
	}
	b.effects(0)
}

func TestArgumentsOfAStatementStayTheCallers(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	args := make([]any, 0, 20)
	args = append(args, b.key.ID, 7)
	if _, _, err := idempotency.QueryRow[ride](t.Context(), b.store, b.key, rideSQL, args...); err != nil {
		t.Fatal(err)
	}
	for _, arg := range args[len(args):cap(args)] {
		if arg != nil {
			t.Fatalf("the call has written %v behind its arguments", arg)
		}
	}
}

// A column that has become text since the statement was described is cast back, or refused
// before the commit: it is never recorded in another form.
func TestColumnWhoseTypeChangesBetweenTwoCallsIsRecordedInItsFirstForm(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("create table prices (cents int); insert into prices values (5)")
	price := func(id string) (any, error) {
		got, _, err := idempotency.QueryRow[json.RawMessage](t.Context(), b.store, idempotency.Key{Scope: "s", ID: id}, "select cents from prices")
		return string(got), err
	}
	if got, err := price("before"); got != "5" || err != nil {
		t.Fatal(got, err)
	}
	b.exec("alter table prices alter column cents type text")
	if got, err := price("as text"); got != "5" || err != nil {
		t.Errorf("as text: %v, %v", got, err)
	}
}

func TestNumberOfTextsThatAStoreRemembersIsBounded(t *testing.T) {
	t.Parallel()
	if kept, after := idempotency.RememberedTexts(1100); kept != 1000 || after != 999 {
		t.Errorf("%d are kept, and %d when one is forgotten", kept, after)
	}
}

// cached skips what holds only where pgx prepares statements once.
func (b *bundle) cached() {
	b.Helper()
	if mode := b.pool.Config().ConnConfig.DefaultQueryExecMode; mode != pgx.QueryExecModeCacheStatement {
		b.Skipf("of pgx's default mode, and this is %v", mode)
	}
}

func TestStatementCostsOneRoundTrip(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	for name, cfg := range map[string]idempotency.Config{
		"of its own transaction":       {},
		"with TxOptions":               {TxOptions: pgx.TxOptions{IsoLevel: pgx.RepeatableRead}},
		"serializable":                 {TxOptions: pgx.TxOptions{IsoLevel: pgx.Serializable}},
		"of a session of serializable": {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			b.cached()
			opts := []pgtest.Option{pgtest.MaxConns(1)}
			strict := cfg.TxOptions.IsoLevel == pgx.Serializable || serializable(b) && cfg.TxOptions.IsoLevel == ""
			if name == "of a session of serializable" {
				opts, strict = append(opts, param("default_transaction_isolation", "serializable"), pgtest.Direct), true
			}
			store, proxy := b.through(cfg, opts...)
			b.store = store
			call := func(i int) {
				b.key.ID = fmt.Sprint(i)
				if _, _, err := b.book(7); err != nil {
					t.Fatal(err)
				}
			}
			if got := roundTrips(t, proxy, call); got != 1 {
				t.Errorf("a first call: %d round trips", got)
			}
			if got := roundTrips(t, proxy, call); got != 1 {
				t.Errorf("a replay of a known key: %d round trips", got)
			}
			want := 1
			switch {
			case strict:
				want = 3 // and Do's claim, with its ROLLBACK in the background
				if cfg.TxOptions.IsoLevel != "" {
					want++
				}
			case cfg.TxOptions.IsoLevel != "":
				want = 2 // and a ROLLBACK
			}
			if got := roundTrips(t, proxy, func(i int) {
				b.key.ID = fmt.Sprint(i)
				b.unknown()
				call(i)
				time.Sleep(50 * time.Millisecond)
			}); got != want {
				t.Errorf("a replay of another key: %d round trips, want %d", got, want)
			}
		})
	}
}

// errors are those that the server sends through a proxy.
func serverErrors(proxy *pgproxy.Proxy) *atomic.Int64 {
	var n atomic.Int64
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if m.FromServer && m.Type == 'E' {
			n.Add(1)
		}
		return pgproxy.Pass
	})
	return &n
}

func TestDuplicateOfAStatementLeavesNoErrorInTheLogIfItsKeyIsKnownAndElseOneInWords(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	store, proxy := b.through(idempotency.Config{})
	b.store = store
	n := serverErrors(proxy)
	b.books(7, false)
	b.books(7, true)
	if serializable(b) {
		n.Add(-1) // which said that it is
	}
	if n.Load() != 0 {
		t.Errorf("%d errors", n.Load())
	}
	b.unknown()
	b.books(7, true)
	if n.Load() > 1 {
		t.Errorf("%d errors of an unknown key", n.Load())
	}
	tx := b.begin(pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if _, err := tx.Exec(t.Context(), "select set_config('idempotency.seqscan', 'on', true)"); err != nil {
		t.Fatal(err)
	}
	_, err := tx.Exec(t.Context(), strings.Replace(idempotency.GuardSQL, "coalesce(to_regclass('search_path idempotency_keys'::text)::oid = 'idempotency_keys'::regclass::oid, true)", "true", 1), b.key.ID, b.key.Scope, idempotency.LockID(b.key))
	if err == nil || !strings.Contains(err.Error(), "the key was called before, or is in progress") {
		t.Errorf("the guard: %v", err)
	}
}

func TestStatementsStayPreparedAfterADuplicateAndTheirNumberIsBounded(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.cached()
	store, proxy := b.through(idempotency.Config{}, pgtest.MaxConns(1))
	pool := idempotency.PoolOf(store)
	ours := func() (n int) {
		if err := pool.QueryRow(t.Context(), "select count(*) from pg_prepared_statements where name like 'idempotency%'").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	b.store = store
	b.books(7, false)
	b.unknown()
	b.books(7, true) // the guard fails
	before := proxy.RoundTrips()
	b.key.ID = "another"
	b.books(7, false)
	if got := proxy.RoundTrips() - before; got != 1 && !serializable(b) {
		t.Errorf("after a duplicate, a call has cost %d round trips", got)
	}
	for i := range 300 {
		key := idempotency.Key{Scope: "texts", ID: fmt.Sprint(i)}
		if got, _, err := idempotency.QueryRow[int](t.Context(), store, key, fmt.Sprintf("select %d", i)); got != i || err != nil {
			t.Fatal(got, err)
		}
	}
	if n := ours(); n > 200 || n < 100 {
		t.Errorf("%d statements of ours are prepared", n)
	}
	b.key.ID = "the first text again"
	b.books(7, false)
}

func TestStatementsThatSomebodyHasDeallocatedArePreparedAgain(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.cached()
	store, proxy := b.through(idempotency.Config{}, pgtest.MaxConns(1))
	b.store = store
	b.books(7, false)
	conn, err := idempotency.PoolOf(store).Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "deallocate all", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	if err := conn.Conn().DeallocateAll(t.Context()); err != nil { // pgx's own forgets them
		t.Fatal(err)
	}
	conn.Release()
	b.key.ID = "2"
	b.books(7, false)
	conn, err = idempotency.PoolOf(store).Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "deallocate all", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	conn.Release()
	for i := range 5 { // pgx's own statements of Do's way fail too, until it forgets them
		b.key.ID = fmt.Sprint("after-", i)
		b.book(7)
	}
	before := proxy.RoundTrips()
	b.key.ID = "3"
	b.books(7, false)
	if got := proxy.RoundTrips() - before; got != 1 && !serializable(b) {
		t.Errorf("%d round trips", got)
	}
}

// Four processes, as it were, and a gate in each.
func TestStatementsOfParallelDuplicatesTakeEffectOnce(t *testing.T) {
	t.Parallel()
	cfg := idempotency.Config{Wait: time.Minute}
	b := setup(t, cfg, pgtest.MaxConns(4))
	stores := []*idempotency.Store{b.store}
	for range 3 {
		stores = append(stores, b.storeOn(b.anotherPool(pgtest.MaxConns(4)), cfg))
	}
	for k := range 25 {
		var wg sync.WaitGroup
		var ids sync.Map
		key := idempotency.Key{Scope: "customer-1", ID: fmt.Sprint("key-", k)}
		for c := range 12 {
			wg.Go(func() {
				var got ride
				var err error
				if c%3 == 2 { // Do beside them
					got, _, err = idempotency.Do(t.Context(), stores[c%4], key, func(ctx context.Context, tx pgx.Tx) (r ride, err error) {
						err = tx.QueryRow(ctx, rideSQL, key.ID, 7).Scan(&r.ID, &r.Key, &r.Amount)
						return r, err
					})
				} else {
					got, _, err = idempotency.QueryRow[ride](t.Context(), stores[c%4], key, rideSQL, key.ID, 7)
				}
				if err != nil {
					t.Error(err)
				}
				ids.Store(got.ID, true)
			})
		}
		wg.Wait()
		answers := 0
		ids.Range(func(any, any) bool { answers++; return true })
		if n := query[int](b, "select count(*) from charges where key = $1", key.ID); n != 1 || answers != 1 {
			t.Errorf("%s: %d effects, %d answers", key.ID, n, answers)
		}
	}
}

func TestStatementWaitsForACallInProgressAndGetsItsResult(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	entered, release := make(chan struct{}), make(chan struct{})
	go func() {
		idempotency.Do(context.Background(), b.storeOn(b.anotherPool(), idempotency.Config{}), b.key, func(ctx context.Context, tx pgx.Tx) (ride, error) {
			close(entered)
			<-release
			return ride{ID: 5, Key: b.key.ID, Amount: 7}, nil
		})
	}()
	receive(b, entered)
	time.AfterFunc(100*time.Millisecond, func() { close(release) })
	if got := b.books(7, true); got.ID != 5 {
		t.Errorf("got %v", got)
	}
	short := b.storeOn(b.pool, idempotency.Config{Wait: -1})
	held := b.begin(pgx.TxOptions{})
	b.key.ID = "held"
	b.locks(held)
	_, _, err := idempotency.QueryRow[ride](t.Context(), short, b.key, rideSQL, b.key.ID, 7)
	b.wantErr(err, idempotency.ErrInProgress)
}

// What the statement has returned is known before its COMMIT is.
func TestStatementThatFailsAtItsCommitAnswersNobody(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	for name, options := range map[string]pgx.TxOptions{"batch": {}, "with a COMMIT of its own": {AccessMode: pgx.ReadWrite}} {
		b := setup(t, idempotency.Config{})
		b.exec(`create function refuse() returns trigger language plpgsql as $$ begin
				raise exception 'refused at COMMIT' using errcode = 'check_violation';
			end $$;
			create constraint trigger refused after insert on charges deferrable initially deferred for each row execute function refuse()`)
		pool := b.anotherPool(pgtest.MaxConns(1))
		b.store = b.storeOn(pool, idempotency.Config{TxOptions: options})
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		calls := make(chan outcome, 4)
		for range cap(calls) {
			go func() {
				got, replayed, err := b.book(7)
				calls <- outcome{got.Amount, replayed, err}
			}()
		}
		b.joined(cap(calls) - 1) // before the first one sends anything, so that they may have its answer
		conn.Release()
		for range cap(calls) {
			if got := receive(b, calls); sqlState(got.err) != "23514" {
				t.Errorf("%s: %+v", name, got)
			}
		}
		b.nothingKept(name)
	}
}

// Each message of the batch is lost once, or its answer is.
func TestFaultAtEveryMessageOfAStatementHasOneEffect(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	inserted := func(then byte) func() func(pgproxy.Message) bool {
		return func() func(pgproxy.Message) bool {
			var seen atomic.Bool
			return func(m pgproxy.Message) bool {
				if m.FromServer && m.Tag == "SELECT 1" {
					seen.Store(true)
				}
				return m.FromServer && m.Type == then && seen.Load()
			}
		}
	}
	for name, match := range map[string]func() func(pgproxy.Message) bool{
		"ahead":     func() func(pgproxy.Message) bool { return bound("idempotency.seqscan") },
		"guard":     func() func(pgproxy.Message) bool { return sent("pg_try_advisory") },
		"statement": func() func(pgproxy.Message) bool { return sent("insert into charges") },
		"sync": func() func(pgproxy.Message) bool {
			return func(m pgproxy.Message) bool { return !m.FromServer && m.Type == 'S' }
		},
		"answer": inserted('C'),
		"ready":  inserted('Z'),
	} {
		for _, verdict := range []pgproxy.Verdict{pgproxy.Drop, pgproxy.PassAndCut, pgproxy.CutClient} {
			if verdict == pgproxy.CutClient && name != "answer" && name != "ready" {
				// PostgreSQL would wait for the rest of the batch: a client that is gone closes
				// the connection, and one that is cut off in the middle of a message holds its
				// key until TCP gives up, as it does in a batch of Do.
				continue
			}
			t.Run(fmt.Sprint(name, " ", verdict), func(t *testing.T) {
				t.Parallel()
				b := setup(t, idempotency.Config{})
				store, proxy := b.through(idempotency.Config{})
				for _, warm := range []bool{false, true} {
					if warm {
						idempotency.QueryRow[ride](t.Context(), store, idempotency.Key{Scope: "w", ID: "w"}, rideSQL, "w", 1)
					}
					matches := match()
					var once atomic.Bool
					proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
						if matches(m) && once.CompareAndSwap(false, true) {
							return verdict
						}
						return pgproxy.Pass
					})
					key := idempotency.Key{Scope: "customer-1", ID: fmt.Sprint("warm ", warm)}
					got, _, err := idempotency.QueryRow[ride](t.Context(), store, key, rideSQL, key.ID, 7)
					proxy.SetRule(nil)
					if err != nil && !errors.Is(err, idempotency.ErrOutcomeUnknown) {
						t.Errorf("warm %v: %v", warm, err)
					}
					again, _, err2 := idempotency.QueryRow[ride](t.Context(), b.store, key, rideSQL, key.ID, 7)
					if err2 != nil || err == nil && again != got {
						t.Errorf("warm %v: %v, then %v, %v", warm, got, again, err2)
					}
					if n := query[int](b, "select count(*) from charges where key = $1", key.ID); n != 1 {
						t.Errorf("warm %v: %d effects", warm, n)
					}
				}
			})
		}
	}
}

// The batch that was lost arrives after all, when the call has made sure of the key and
// its own second run has failed.
func TestStatementThatMayStillArriveIsOfUnknownOutcome(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("create table open (yes bool); insert into open values (false)")
	var event idempotency.Event
	store, proxy := b.through(idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) { event = e }})
	const sql = "insert into charges (key, amount) select $1, 1 / (case when yes then 1 else 0 end) from open returning id, key, amount"
	var once atomic.Bool
	matches := bound("insert into charges")
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if matches(m) && once.CompareAndSwap(false, true) {
			return pgproxy.Drop
		}
		return pgproxy.Pass
	})
	_, _, err := idempotency.QueryRow[ride](t.Context(), store, b.key, sql, b.key.ID)
	if !once.Load() {
		t.Fatal("the batch did not pass")
	}
	b.wantErr(err, idempotency.ErrOutcomeUnknown)
	if sqlState(err) != "22012" {
		t.Errorf("the error does not say how the second run ended: %v", err)
	}
	if event.Outcome != "outcome_unknown" || event.InDoubt != "unknown" || event.Operation != "QueryRow" {
		t.Errorf("event %+v", event)
	}
	proxy.SetRule(nil)
	b.exec("update open set yes = true")
	if got, _, err := idempotency.QueryRow[ride](t.Context(), store, b.key, sql, b.key.ID); err != nil || got.Amount != 1 {
		t.Errorf("the next call: %v, %v", got, err)
	}
	b.effects(1)
}

func TestContextThatEndsWhileTheStatementRunsCancelsIt(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	pool := b.anotherPool(pgtest.MaxConns(1))
	b.store = b.storeOn(pool, idempotency.Config{})
	b.books(7, false)
	made := pool.Stat().NewConnsCount()
	for name, end := range map[string]func() (context.Context, context.CancelFunc){
		"cancelled": func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(200*time.Millisecond, cancel)
			return ctx, cancel
		},
		"deadline": func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), 200*time.Millisecond)
		},
	} {
		ctx, cancel := end()
		b.key.ID = name
		start := time.Now()
		_, _, err := idempotency.QueryRow[ride](ctx, b.store, b.key, "insert into charges (key, amount) select $1, length(pg_sleep(30)::text) returning id, key, amount", b.key.ID)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
		b.wantErr(err, ctx.Err())
		if errors.Is(err, idempotency.ErrOutcomeUnknown) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
		b.nothingKept(name)
		b.books(7, false)
	}
	if n := pool.Stat().NewConnsCount(); n != made {
		t.Errorf("%d connections were lost", n-made)
	}
}

// A statement that PostgreSQL does not cancel is in doubt after a second, and its end is
// found out by claiming the key.
func TestContextThatEndsWhileTheAnswerIsLostIsFoundOut(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	store, proxy := b.through(idempotency.Config{})
	idempotency.QueryRow[ride](t.Context(), store, idempotency.Key{Scope: "w", ID: "w"}, rideSQL, "w", 1)
	ctx, cancel := context.WithCancel(t.Context())
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if m.Type == pgproxy.CancelRequest {
			return pgproxy.Drop
		}
		if m.FromServer && m.Tag == "SELECT 1" { // what is behind it waits
			cancel()
			time.Sleep(3 * time.Second)
		}
		return pgproxy.Pass
	})
	defer proxy.SetRule(nil)
	got, replayed, err := idempotency.QueryRow[ride](ctx, store, b.key, rideSQL, b.key.ID, 7)
	if err != nil && !errors.Is(err, idempotency.ErrOutcomeUnknown) || err == nil && (!replayed || got.Amount != 7) {
		t.Errorf("%v, %v, %v", got, replayed, err)
	}
	proxy.SetRule(nil)
	if _, _, err := b.book(7); err != nil {
		t.Error(err)
	}
	b.effects(1)
}

func TestStatementsOfDistinctKeysDoNotFailEachOther(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	for _, level := range []string{"read committed", "repeatable read", "serializable"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			var runs, calls atomic.Int64
			b := setup(t, idempotency.Config{})
			pool := b.anotherPool(param("default_transaction_isolation", level), pgtest.MaxConns(8))
			store := b.storeOn(pool, idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) {
				runs.Add(int64(e.Runs))
				if e.Operation == "QueryRow" {
					calls.Add(1)
				}
			}})
			var wg sync.WaitGroup
			for w := range 8 {
				wg.Go(func() {
					for i := range 40 {
						key := idempotency.Key{Scope: "s", ID: fmt.Sprintf("%06d", w*1000+i)}
						if _, _, err := idempotency.QueryRow[int](t.Context(), store, key, "select $1::int", 7); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			if runs.Load() != 320 || calls.Load() != 320 {
				t.Errorf("%d runs of %d calls", runs.Load(), calls.Load())
			}
		})
	}
}

func TestTriggerThatChangesOrDropsTheRecordOfAStatementIsAnError(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for name, body := range map[string]string{
		"drops it":                "return null;",
		"changes the result":      "new.result := '9'; return new;",
		"drops the result":        "new.result := null; return new;",
		"changes the fingerprint": "new.fingerprint := 'x'; return new;",
		"changes the origin":      "new.origin := 'x'; return new;",
		"prolongs the retention":  "new.expires_at := new.expires_at + interval '1 day'; return new;",
		"puts the purge off":      "new.purge_after := new.purge_after + interval '1 second'; return new;",
	} {
		if citusTexts && name == "puts the purge off" {
			continue // only the coordinator could tell
		}
		b.exec("create or replace function spoil() returns trigger language plpgsql as $$ begin if new.completed_at is null then return new; end if; " + body + " end $$")
		b.exec("create trigger spoil before insert or update on idempotency_keys for each row execute function spoil()")
		b.key.ID = name
		if _, _, err := b.book(7); err == nil || !strings.Contains(err.Error(), "trigger") {
			t.Errorf("%s: %v", name, err)
		}
		b.nothingKept(name)
		b.exec("drop trigger spoil on idempotency_keys")
		b.books(7, false)
	}
}

func TestStatementOnAConnectionThatLeadsToAnotherTableIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.books(7, false)
	b.anotherTable("tenant_b")
	b.exec("grant usage on schema tenant_b to public")
	pool := b.anotherPool(param("search_path", "public"), pgtest.MaxConns(1), pgtest.Direct)
	store := b.storeOn(pool, idempotency.Config{})
	if _, _, err := idempotency.QueryRow[ride](t.Context(), store, idempotency.Key{Scope: "s", ID: "1"}, rideSQL, "1", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), "set search_path = tenant_b, public"); err != nil {
		t.Fatal(err)
	}
	_, _, err := idempotency.QueryRow[ride](t.Context(), store, b.key, rideSQL, b.key.ID, 1)
	if err == nil || !strings.Contains(err.Error(), "tenant_b") {
		t.Errorf("got %v", err)
	}
	b.effects(1)
	b.key.ID = "of no record"
	if _, _, err := idempotency.QueryRow[ride](t.Context(), store, b.key, rideSQL, b.key.ID, 1); err == nil || !strings.Contains(err.Error(), "tenant_b") {
		t.Errorf("a new key: %v", err)
	}
	b.nothingKept("a new key")
}

func TestNullIsTheZeroValueOrNil(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for range 2 {
		n, _, err := idempotency.QueryRow[int](t.Context(), b.store, idempotency.Key{Scope: "s", ID: "int"}, "select null::int")
		if n != 0 || err != nil {
			t.Errorf("an int: %d, %v", n, err)
		}
		p, _, err := idempotency.QueryRow[*int](t.Context(), b.store, idempotency.Key{Scope: "s", ID: "pointer"}, "select null::int")
		if p != nil || err != nil {
			t.Errorf("a pointer: %v, %v", p, err)
		}
	}
}

func TestStatementSeesTheSettingsOfItsSessionAndLeavesThem(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for _, seqscan := range []string{"on", "off"} {
		pool := b.anotherPool(param("enable_seqscan", seqscan), pgtest.MaxConns(1), pgtest.Direct)
		store := b.storeOn(pool, idempotency.Config{})
		show := func() (s [3]string) {
			err := pool.QueryRow(t.Context(), "select current_setting('enable_seqscan'), current_setting('client_connection_check_interval'), coalesce(current_setting('idempotency.seqscan', true), '')").Scan(&s[0], &s[1], &s[2])
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		before := show()
		for i := range 3 {
			key := idempotency.Key{Scope: seqscan, ID: fmt.Sprint(i)}
			for range 2 {
				got, _, err := idempotency.QueryRow[string](t.Context(), store, key, "select current_setting('enable_seqscan')")
				if got != seqscan || err != nil {
					t.Errorf("enable_seqscan is %s in the statement, %v; want %s", got, err, seqscan)
				}
				store.Forget(key)
			}
		}
		if after := show(); after[0] != before[0] || after[1] != before[1] || after[2] != "" {
			t.Errorf("the session has %v, and had %v", after, before)
		}
	}
}

func TestStatementRunsWithTheTransactionsOptions(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for i, c := range []struct {
		opts pgx.TxOptions
		want string
	}{
		{pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, "repeatable read off"},
		{pgx.TxOptions{IsoLevel: pgx.Serializable, AccessMode: pgx.ReadWrite, DeferrableMode: pgx.Deferrable}, "serializable on"},
		{pgx.TxOptions{BeginQuery: "begin isolation level repeatable read deferrable;", CommitQuery: "end"}, "repeatable read on"},
	} {
		store := b.storeOn(b.pool, idempotency.Config{TxOptions: c.opts})
		for range 3 {
			key := idempotency.Key{Scope: "s", ID: fmt.Sprint(i)}
			got, _, err := idempotency.QueryRow[string](t.Context(), store, key, "select current_setting('transaction_isolation') || ' ' || current_setting('transaction_deferrable')")
			if got != c.want || err != nil {
				t.Errorf("%+v: %q, %v; want %q", c.opts, got, err, c.want)
			}
			store.Forget(key)
		}
	}
}

func TestEventOfAStatementSaysHowItWent(t *testing.T) {
	t.Parallel()
	var events []idempotency.Event
	b := setup(t, idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) { events = append(events, e) }})
	b.exec("create table late (id int, constraint late_u unique (id) deferrable initially deferred); insert into late values (1)")
	b.books(7, false)
	b.books(7, true)
	b.unknown()
	b.books(7, true)
	b.wantKnown("it was seen recorded", true)
	b.key.ID = "fails"
	idempotency.Query[int](t.Context(), b.store, b.key, "select 1 / (random() * 0)::int")
	idempotency.Query[int](t.Context(), b.store, b.key, "insert into late values (1) returning id")
	for i, want := range []struct {
		operation, outcome string
		runs               int
		failed             bool
	}{{"QueryRow", "executed", 1, false}, {"QueryRow", "replayed", 0, false}, {"QueryRow", "replayed", 0, false}, {"Query", "failed", 2, true}, {"Query", "failed", 2, true}} {
		e := events[i]
		if (serializable(b) || citusTexts) && want.failed {
			e.Runs = want.runs
		}
		if e.Operation != want.operation || e.Outcome != want.outcome || e.Runs != want.runs || (e.Err != nil) != want.failed || e.Duration <= 0 || e.InDoubt != "" {
			t.Errorf("event %+v, want %+v", e, want)
		}
	}
}

// Waiters that came before the statement was sent get its answer: that of an execution,
// and that of a duplicate.
func TestWaitersOfAStatementGetItsAnswerWithoutAQuery(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	for name, recorded := range map[string]bool{"executed": false, "replayed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, idempotency.Config{})
			b.cached()
			if recorded {
				b.books(7, false)
			}
			store, proxy := b.through(idempotency.Config{Wait: time.Minute}, pgtest.MaxConns(1))
			b.store = store
			for i := range 2 { // the statements are prepared
				key := idempotency.Key{Scope: "s", ID: fmt.Sprint("prepares ", i)}
				if _, _, err := idempotency.QueryRow[ride](t.Context(), store, key, rideSQL, key.ID, 7); err != nil {
					t.Fatal(err)
				}
			}
			held, err := idempotency.PoolOf(store).Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			answers := make(chan ride, 11)
			call := func() {
				got, _, err := idempotency.QueryRow[ride](t.Context(), store, b.key, rideSQL, b.key.ID, 7)
				if err != nil {
					t.Error(err)
				}
				answers <- got
			}
			go call()
			b.eventually("the leader waits for the connection", func() bool { return idempotency.PoolOf(store).Stat().EmptyAcquireCount() > 0 })
			for range 10 {
				go call()
			}
			b.joined(10)
			before := proxy.RoundTrips()
			held.Release()
			first := receive(b, answers)
			for range 10 {
				if got := receive(b, answers); got != first {
					t.Errorf("%+v and %+v", got, first)
				}
			}
			if got := proxy.RoundTrips() - before; got > 1 && !serializable(b) {
				t.Errorf("%d round trips for eleven calls", got)
			}
			b.effects(1)
		})
	}
}

// An ERROR at COMMIT proves an abort only if PostgreSQL says so in so many words. This one
// is found out, and not run again.
func TestErrorOfTheCommitOfAStatementIsFoundOut(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	var event idempotency.Event
	b := setup(t, idempotency.Config{
		TxOptions: pgx.TxOptions{IsoLevel: pgx.ReadCommitted},
		Observe:   func(_ context.Context, e idempotency.Event) { event = e },
	})
	b.exec(`create function refuse() returns trigger language plpgsql as $$ begin raise exception 'at the commit'; end $$;
		create constraint trigger refuse after insert on charges deferrable initially deferred for each row execute function refuse()`, pgx.QueryExecModeSimpleProtocol)
	_, _, err := idempotency.QueryRow[ride](t.Context(), b.store, b.key, rideSQL, b.key.ID, 7)
	if sqlState(err) != "P0001" || event.InDoubt != "aborted" || event.Runs != 1 {
		t.Errorf("%v, %+v", err, event)
	}
	b.effects(0)
}

// What is used stays prepared, however many others come and go.
func TestStatementsThatAreUsedAreNotPreparedAgain(t *testing.T) {
	onOneServer(t, "a statement takes the way of Do")
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.cached()
	store, proxy := b.through(idempotency.Config{}, pgtest.MaxConns(1))
	var prepared atomic.Int64
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if m.Type == 'P' && !m.FromServer && strings.Contains(m.SQL, "idempotency.seqscan") && strings.Contains(m.SQL, "client_connection_check_interval") {
			prepared.Add(1)
		}
		return pgproxy.Pass
	})
	for i := range 600 {
		key := idempotency.Key{Scope: "texts", ID: fmt.Sprint(i)}
		if _, _, err := idempotency.QueryRow[int](t.Context(), store, key, fmt.Sprintf("select %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := prepared.Load(); n != 1 && !serializable(b) {
		t.Errorf("the first statement of each call was prepared %d times", n)
	}
}
