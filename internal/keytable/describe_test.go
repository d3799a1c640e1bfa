package keytable_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency/internal/keytable"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// describedAfter is the table after the statements, of which nothing stays.
func describedAfter(t *testing.T, sql string) keytable.Table {
	t.Helper()
	tx, err := pgtest.New(t).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	table, err := keytable.Describe(t.Context(), tx, "public", keytable.Name)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestIndexesAreDescribedAsTheyAre(t *testing.T) {
	t.Parallel()
	table := describedAfter(t, `
		create collation folding (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
		create unique index a_partial on idempotency_keys (id, scope) where scope <> 'x';
		create unique index b_includes on idempotency_keys (scope, id) include (origin);
		create index c_expression on idempotency_keys (lower(id), scope);
		alter table idempotency_keys add constraint d_later unique (id, scope) deferrable;
		alter table idempotency_keys add constraint e_apart exclude using btree (origin with =);
		create unique index f_folds on idempotency_keys (id collate folding, scope);
		create unique index g_broken on idempotency_keys (origin); update pg_index set indisvalid = false where indexrelid = 'g_broken'::regclass`)
	want := []keytable.Index{
		{Name: "a_partial", Columns: []string{"id", "scope"}, Unique: true, Valid: true, Immediate: true, Partial: true},
		{Name: "b_includes", Columns: []string{"scope", "id", "origin"}, Unique: true, Valid: true, Immediate: true, Included: 1},
		{Name: "c_expression", Columns: []string{"", "scope"}, Valid: true, Immediate: true},
		{Name: "d_later", Columns: []string{"id", "scope"}, Unique: true, Valid: true},
		{Name: "e_apart", Columns: []string{"origin"}, Unique: true, Valid: true, Immediate: true},
		{Name: "f_folds", Columns: []string{"id", "scope"}, Unique: true, Valid: true, Immediate: true, Folding: true},
		{Name: "g_broken", Columns: []string{"origin"}, Unique: true, Immediate: true},
		{Name: "idempotency_keys_pkey", Columns: []string{"id", "scope"}, Unique: true, Primary: true, Valid: true, Immediate: true},
		{Name: keytable.IndexName, Columns: []string{"purge_after"}, Valid: true, Immediate: true},
	}
	for i, index := range table.Indexes {
		if i >= len(want) || !slices.Equal(index.Columns, want[i].Columns) {
			t.Fatalf("%d: %+v", i, index)
		}
		index.Columns, want[i].Columns = nil, nil
		if got, want := index, want[i]; got.Name != want.Name || got.Unique != want.Unique || got.Primary != want.Primary || got.Valid != want.Valid ||
			got.Immediate != want.Immediate || got.Partial != want.Partial || got.Folding != want.Folding || got.Included != want.Included {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	if len(table.Indexes) != len(want) {
		t.Errorf("%d indexes, want %d", len(table.Indexes), len(want))
	}
}

func TestColumnsAreDescribedAsTheyAre(t *testing.T) {
	t.Parallel()
	table := describedAfter(t, `
		create collation folding (provider = icu, locale = 'und-u-ks-level2', deterministic = false); create domain public.bytea as pg_catalog.bytea;
		alter table idempotency_keys add folds text collate folding, add required int not null, add filled int not null default 1,
			add counted int not null generated always as identity, add optional int, add gone int not null, add domain public.bytea;
		alter table idempotency_keys drop column gone`)
	want := map[string]keytable.Column{
		"id": {Type: "text", NoDefault: true}, "result": {Type: "bytea"}, "purge_after": {Type: "timestamptz", NoDefault: true},
		"folds": {Type: "text", Folding: true}, "required": {Type: "int4", NoDefault: true}, "filled": {Type: "int4"}, "counted": {Type: "int4"},
		"optional": {Type: "int4"}, "domain": {Type: "public.bytea"},
	}
	for _, c := range table.Columns {
		w, ok := want[c.Name]
		if w.Name = c.Name; ok && c != w {
			t.Errorf("%+v, want %+v", c, w)
		}
		delete(want, c.Name)
	}
	if len(want) > 0 || len(table.Columns) != 14 {
		t.Errorf("not described: %v; %d columns", want, len(table.Columns))
	}
	if table.Kind != "r" || table.Persistence != "p" {
		t.Errorf("kind %q, persistence %q", table.Kind, table.Persistence)
	}
}

// Each error of a lock has its own meaning for who asks.
func TestWhatCannotBeHeldIsMissingOrNoTable(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	const setup = `create view a_view as select 1 as id; create sequence a_sequence; create type a_type as (a int); create materialized view a_matview as select 1 as id`
	if _, err := pool.Exec(t.Context(), setup); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		schema, name     string
		reading, writing error
	}{
		{"public", keytable.Name, nil, nil},
		{"public", "none", keytable.ErrMissing, keytable.ErrMissing},
		{"none", keytable.Name, keytable.ErrMissing, keytable.ErrMissing},
		{"public", "a_view", nil, keytable.ErrNoTable},
		{"public", "a_matview", nil, keytable.ErrNoTable},
		{"public", "a_sequence", nil, keytable.ErrNoTable},
		{"public", "idempotency_keys_pkey", keytable.ErrNoTable, keytable.ErrNoTable},
		{"public", "a_type", keytable.ErrNoTable, keytable.ErrNoTable},
	} {
		for use, want := range map[keytable.Use]error{keytable.Reading: row.reading, keytable.Writing: row.writing} {
			err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				_, err := keytable.Hold(t.Context(), tx, row.schema, row.name, use)
				return err
			})
			if !errors.Is(err, want) || want == nil && err != nil {
				t.Errorf("%s.%s for writing %v: %v, want %v", row.schema, row.name, bool(use), err, want)
			}
		}
	}
}

// The schema can go between the look and the lock.
func TestLockOfATableWhoseSchemaHasGoneSaysThatItIsMissing(t *testing.T) {
	t.Parallel()
	err := pgx.BeginFunc(t.Context(), pgtest.New(t), func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "lock table none.idempotency_keys")
		return err
	})
	if !errors.Is(keytable.LockError(err), keytable.ErrMissing) {
		t.Error(err)
	}
}

func TestWhoMayNotHoldTheTableIsToldSo(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for use, code := range map[keytable.Use]string{keytable.Reading: "", keytable.Writing: "42501"} {
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), "set local role pg_monitor"); err != nil {
				t.Fatal(err)
			}
			_, err := keytable.Hold(t.Context(), tx, "public", keytable.Name, use)
			return err
		})
		got := ""
		if e, ok := errors.AsType[*pgconn.PgError](err); ok {
			got = e.Code
		}
		if got != code || (err != nil) != (code != "") {
			t.Errorf("for writing %v: %v", bool(use), err)
		}
	}
}

func TestTableIsHeldUntilTheTransactionEnds(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for use, blocked := range map[keytable.Use]string{
		keytable.Reading: "drop table idempotency_keys",
		keytable.Writing: "create trigger t before update on idempotency_keys for each row execute function suppress_redundant_updates_trigger()",
	} {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := keytable.Hold(t.Context(), tx, "public", keytable.Name, use); err != nil {
			t.Fatal(err)
		}
		err = pgx.BeginFunc(t.Context(), pool, func(other pgx.Tx) error {
			_, err := other.Exec(t.Context(), "set local lock_timeout = '10ms'; "+blocked, pgx.QueryExecModeSimpleProtocol)
			return err
		})
		if err == nil {
			t.Errorf("held for writing %v: %s", bool(use), blocked)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFirstSchemaOfThePathThatHasTheTableIsFound(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for _, row := range []struct{ sql, want string }{
		{"", "public"},
		{"set local search_path = none", ""},
		{"create schema a; set local search_path = a, public", "public"},
		{"create schema a; create table a.idempotency_keys (); set local search_path = a, public", "a"},
		{"create schema a; create table a.idempotency_keys (); set local search_path = public, a", "public"},
		{"create temporary table idempotency_keys ()", "public"},
		{"create temporary table idempotency_keys (); set local search_path = pg_temp, public", "public"},
	} {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), row.sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
		if got, err := keytable.Schema(t.Context(), tx); got != row.want || err != nil {
			t.Errorf("%s: %q, %v, want %q", row.sql, got, err, row.want)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// What the migrations make is what the package needs, by name and type.
func TestEachColumnThatTheMigrationsMakeIsNeeded(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for _, name := range []string{keytable.Name, keytable.Operations, keytable.Migrations} {
		table, err := keytable.Describe(t.Context(), pool, "public", name)
		if err != nil || !table.Fits() {
			t.Fatalf("%s: %v; %s", name, err, table.Unfit())
		}
		for _, column := range table.Columns {
			for _, row := range []struct {
				change string
				look   func(keytable.Table) []string
				want   string
			}{
				{"rename " + column.Name + " to other", keytable.Table.Missing, column.Name},
				{"drop " + column.Name + ", add " + column.Name + " point", keytable.Table.Mistyped, column.Name + " " + column.Type},
			} {
				tx, err := pool.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := tx.Exec(t.Context(), "alter table "+name+" "+row.change, pgx.QueryExecModeExec); err != nil {
					t.Fatal(err)
				}
				changed, err := keytable.Describe(t.Context(), tx, "public", name)
				if got := row.look(changed); err != nil || !slices.Equal(got, []string{row.want}) {
					t.Errorf("%s, %s: %q, %v", name, row.change, got, err)
				}
				if err := tx.Rollback(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}
