package ormtest

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemsql"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// A Charge is what the functions of all tests make.
type Charge struct {
	ID      int64  `gorm:"primaryKey" bun:",pk,autoincrement"`
	Account string // alice
	Cents   int64
}

// A bundle is what a test starts with: a database of its own, as a program has it.
type bundle struct {
	testing.TB
	pool  *pgxpool.Pool
	db    *sql.DB // on the pool
	store *idempotency.Store
	key   idempotency.Key
}

func setup(t testing.TB) *bundle {
	t.Helper()
	pool := pgtest.New(t)
	b := &bundle{TB: t, pool: pool, db: stdlib.OpenDBFromPool(pool), store: idempotency.New(pool)}
	t.Cleanup(func() { b.db.Close() })
	b.key = idempotency.Key{Scope: "alice", ID: "order-1"}
	schema, err := os.ReadFile("sqlc/schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	b.exec(string(schema))
	return b
}

func (b *bundle) exec(query string) {
	b.Helper()
	if _, err := b.pool.Exec(context.Background(), query); err != nil {
		b.Fatal(err)
	}
}

func (b *bundle) charges(want int) {
	b.Helper()
	var got int
	if err := b.pool.QueryRow(context.Background(), "select count(*) from charges").Scan(&got); err != nil {
		b.Fatal(err)
	}
	if got != want {
		b.Errorf("%d charges, want %d", got, want)
	}
}

// A function is what is run once.
type function = func(ctx context.Context, tx *sql.Tx) (Charge, error)

func (b *bundle) do(fn function) (Charge, bool, error) {
	return idempotency.Do(b.Context(), b.store, b.key, idemsql.Func(fn))
}

var errUndo = errors.New("undo")

// once expects fn to write one charge inside the transaction, and that once.
func (b *bundle) once(fn function) {
	b.Helper()
	_, _, err := b.do(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
		if c, err := fn(ctx, tx); err != nil {
			return c, err
		}
		return Charge{}, errUndo
	})
	if !errors.Is(err, errUndo) {
		b.Fatal(err)
	}
	b.charges(0)
	var first Charge
	for i := range 3 {
		c, replayed, err := b.do(fn)
		if err != nil || replayed != (i > 0) || i > 0 && c != first {
			b.Fatalf("call %d: %+v, replayed %v, %v", i, c, replayed, err)
		}
		first = c
	}
	if first.ID == 0 || first.Account != "alice" || first.Cents != 1000 {
		b.Errorf("%+v", first)
	}
	b.charges(1)
}

// TestCodeOfTheDocumentationIsTested: the page's Go is in the tests, to the line.
func TestCodeOfTheDocumentationIsTested(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/sql.md")
	if err != nil {
		t.Fatal(err)
	}
	var tested strings.Builder
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file.Name(), "_test.go") {
			text, err := os.ReadFile(file.Name())
			if err != nil {
				t.Fatal(err)
			}
			tested.WriteString(unindented(string(text)))
		}
	}
	blocks := strings.Split(string(page), "```go\n")[1:]
	if len(blocks) < 7 {
		t.Errorf("only %d blocks of Go: is the pattern right?", len(blocks))
	}
	for _, block := range blocks {
		code, _, _ := strings.Cut(block, "```")
		for part := range strings.SplitSeq(unindented(code), "\n\n") {
			if !strings.Contains(tested.String(), strings.TrimSpace(part)) {
				t.Errorf("docs/sql.md has code that no test has:\n%s", part)
			}
		}
	}
}

func unindented(code string) string {
	var out strings.Builder
	for line := range strings.Lines(code) {
		out.WriteString(strings.TrimLeft(line, "\t "))
	}
	return out.String()
}
