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
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/columns"
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
