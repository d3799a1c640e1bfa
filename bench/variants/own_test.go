package main

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func allVariants() []variant {
	return slices.Concat(keyVariants(), statementVariants(), protocolVariants())
}

func TestEveryEditOfAVariantFindsItsTextInThePackage(t *testing.T) {
	quoted := regexp.MustCompile(`\{\w+\}`)
	r := newRequest("scope", "id", smallResult)
	for _, v := range allVariants() {
		sql, err := v.statements("v1")
		if err != nil {
			t.Errorf("%s: %v", v.name, err)
			continue
		}
		if _, err := v.ddl(); err != nil {
			t.Errorf("%s: %v", v.name, err)
		}
		for _, q := range []query{
			sql.settings.with(r.keyArgs()), sql.claim.with(r.keyArgs()),
			sql.read.with(r.keyArgs()), sql.record.with(r.recordArgs(claim{})),
		} {
			if quoted.MatchString(q.sql) {
				t.Errorf("%s: a constant is not put in: %s", v.name, q.sql)
			}
			elsewhere := strings.NewReplacer(`"v1"."idempotency_keys"`, "", "to_regclass('idempotency_keys'::text)", "").Replace(q.sql)
			if strings.Contains(elsewhere, "idempotency_keys") {
				t.Errorf("%s: a table is not that of its schema: %s", v.name, q.sql)
			}
		}
	}
}

// sent is what a connection sends in batches.
type sent struct {
	texts []string
	args  [][]any
}

func (s *sent) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (s *sent) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (s *sent) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}

func (s *sent) TraceBatchQuery(_ context.Context, _ *pgx.Conn, data pgx.TraceBatchQueryData) {
	s.texts, s.args = append(s.texts, data.SQL), append(s.args, data.Args)
}
func (s *sent) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

func TestOursSendsWhatTheStoreSends(t *testing.T) {
	var store sent
	pool := pgtest.New(t, func(cfg *pgxpool.Config) { cfg.ConnConfig.Tracer = &store })
	key := idempotency.Key{Scope: "customer", ID: "key"}
	_, _, err := idempotency.Do(t.Context(), idempotency.New(pool), key, func(context.Context, pgx.Tx) (string, error) {
		return "done", nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sql, err := ours("").statements("public")
	if err != nil {
		t.Fatal(err)
	}
	r := newRequest(key.Scope, key.ID, []byte(`"done"`))
	for _, q := range []query{sql.claim.with(r.keyArgs()), sql.read.with(r.keyArgs()), sql.record.with(r.recordArgs(claim{}))} {
		i := slices.Index(store.texts, q.sql)
		if i < 0 {
			t.Errorf("the Store does not send%s\n\nbut%s", q.sql, strings.Join(store.texts, "\n\nand"))
			continue
		}
		if got, want := types(q.args), types(store.args[i]); got != want {
			t.Errorf("%s, and the Store sends %s with%s", got, want, q.sql)
		}
	}
}

// types are those of arguments that are there; the values are another call's.
func types(args []any) string {
	var all []string
	for _, arg := range args {
		all = append(all, fmt.Sprintf("%T", arg))
	}
	return strings.Join(all, ", ")
}

// parsed is own of a postgres.go that has these constants.
func parsed(t *testing.T, constants string) *own {
	t.Helper()
	o, err := parseOwn("postgres.go", "package p\nconst ("+constants+")\nfunc newStatements() { strings.NewReplacer(\"'search_path idempotency_keys'\", path, \"'idempotency_keys'\", literal, \"idempotency_keys\", table) }")
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestConstantsArePutTogether(t *testing.T) {
	o := parsed(t, "a = `x ` + b + \"\\n\" + b\nb, c = `y`, b\nn = 1\nr = 'r'\ncall = f(a)")
	for _, test := range []struct{ text, want string }{
		{"{a}", "x y\ny"}, {"{c} and {b}", "y and y"}, {"no constant", "no constant"}, {"", ""},
	} {
		if got, err := o.expand(test.text); got != test.want || err != nil {
			t.Errorf("%q: %q, %v", test.text, got, err)
		}
	}
	for _, text := range []string{"{missing}", "{n}", "{r}", "{call}", "{b} {missing}"} {
		if got, err := o.expand(text); err == nil {
			t.Errorf("%q: %q and no error", text, got)
		}
	}
}

func TestTableIsExchangedAsThePackageDoes(t *testing.T) {
	on, err := parsed(t, "a = ``").onTable("it's")
	if err != nil {
		t.Fatal(err)
	}
	const want = `from "it's"."idempotency_keys", '"it''s"."idempotency_keys"', 'idempotency_keys'`
	if got := on("from idempotency_keys, 'idempotency_keys', 'search_path idempotency_keys'"); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestPostgresFileThatIsNotUnderstoodIsRefused(t *testing.T) {
	for name, src := range map[string]string{
		"no Go":            "package",
		"no replacement":   "package p\nfunc newStatements() {}",
		"no newStatements": "package p\nfunc other() { strings.NewReplacer(\"a\", \"b\") }",
	} {
		if _, err := parseOwn("postgres.go", src); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for name, args := range map[string]string{"an unknown name": `"a", b`, "no pair": `"a"`} {
		o, err := parseOwn("postgres.go", "package p\nfunc newStatements() { strings.NewReplacer("+args+") }")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.onTable("v1"); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestPostgresFileThatIsNotThereIsAnErrorThatSaysWhereToGo(t *testing.T) {
	t.Chdir(t.TempDir())
	if path, err := ownPath(); err == nil || !strings.Contains(err.Error(), "bench") {
		t.Errorf("%q, %v", path, err)
	}
}

func TestEditThatChangesNothingIsRefused(t *testing.T) {
	for _, e := range []edit{
		{from: "missing"}, {from: "missing", to: "x"}, {from: ""}, {to: "x"}, {from: "a", to: "a"},
		{from: "a", upTo: "missing"}, {from: "c", upTo: "a"}, {from: "missing", upTo: "c"},
	} {
		text, other := "a b c", "d"
		if err := apply([]edit{e}, []*string{&text, &other}); err == nil {
			t.Errorf("%+v: no error, %q", e, text)
		}
	}
	for _, v := range []variant{
		{calls: []edit{{from: "missing"}}}, {calls: []edit{{from: "{missingSQL}"}}},
		{calls: []edit{{from: "where", to: "{missingSQL}"}}}, {calls: []edit{{from: "where", upTo: "{missingSQL}"}}},
		{settings: "{missingSQL}"},
	} {
		if _, err := v.statements("v1"); err == nil {
			t.Errorf("%+v: no error", v)
		}
	}
	if _, err := (variant{table: []edit{{from: "primary key (nothing)"}}}).ddl(); err == nil {
		t.Error("a table: no error")
	}
}

func TestEditExchangesWhatItNames(t *testing.T) {
	for _, test := range []struct {
		edit edit
		want string
	}{
		{edit{from: "a", to: "x"}, "x b c x b c"},
		{edit{from: " b"}, "a c a c"},
		{edit{from: "a", upTo: "c", to: "x"}, "x a b c"},
		{edit{from: "b", upTo: "a", to: "x"}, "a x b c"},
	} {
		text, other := "a b c a b c", "d"
		if err := apply([]edit{test.edit}, []*string{&other, &text}); err != nil || text != test.want || other != "d" {
			t.Errorf("%+v: %q, %q, %v, want %q", test.edit, text, other, err, test.want)
		}
	}
}

func TestParametersAreNumberedWithoutGaps(t *testing.T) {
	all := []any{"one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"}
	for _, test := range []struct {
		text, want string
		args       []any
	}{
		{"select $1, $2, $1", "select $1, $2, $1", []any{"one", "two"}},
		{"select $6, $5", "select $2, $1", []any{"five", "six"}},
		{"select $10, $1, $4, $10", "select $3, $1, $2, $3", []any{"one", "four", "ten"}},
		{"select 1", "select 1", []any{}},
	} {
		if q := newStatement(test.text).with(all); q.sql != test.want || fmt.Sprint(q.args) != fmt.Sprint(test.args) {
			t.Errorf("%s: %s with %v", test.text, q.sql, q.args)
		}
	}
}
