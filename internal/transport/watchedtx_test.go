package transport

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// A failing transaction is one of which each use ends with err, but for the first few.
// Before that it calls in.
type failing struct {
	pgx.Tx // nil: what is not below must not be called
	err    error
	first  int
	in     func()
}

func (f *failing) fail() error {
	if f.in != nil {
		f.in()
	}
	if f.first > 0 {
		f.first--
		return nil
	}
	return f.err
}

func (f *failing) Begin(context.Context) (pgx.Tx, error) {
	if err := f.fail(); err != nil {
		return nil, err
	}
	return f, nil
}
func (f *failing) Commit(context.Context) error   { return f.fail() }
func (f *failing) Rollback(context.Context) error { return f.fail() }
func (f *failing) Exec(context.Context, string, ...any) (pgconn.CommandTag, error) {
	return pgconn.CommandTag{}, f.fail()
}
func (f *failing) Query(context.Context, string, ...any) (pgx.Rows, error) {
	return failingRows{f}, f.fail()
}
func (f *failing) QueryRow(context.Context, string, ...any) pgx.Row { return failingRows{f} }
func (f *failing) SendBatch(context.Context, *pgx.Batch) pgx.BatchResults {
	return failingBatch{f: f}
}
func (f *failing) CopyFrom(context.Context, pgx.Identifier, []string, pgx.CopyFromSource) (int64, error) {
	return 0, f.fail()
}
func (f *failing) Prepare(context.Context, string, string) (*pgconn.StatementDescription, error) {
	return nil, f.fail()
}

type failingRows struct{ f *failing }

func (r failingRows) Close()                                       { _ = r.f.fail() }
func (r failingRows) Err() error                                   { return r.f.fail() }
func (r failingRows) CommandTag() pgconn.CommandTag                { return pgconn.CommandTag{} }
func (r failingRows) FieldDescriptions() []pgconn.FieldDescription { return nil }
func (r failingRows) Next() bool                                   { return r.f.fail() == nil }
func (r failingRows) Scan(...any) error                            { return r.f.fail() }
func (r failingRows) Values() ([]any, error)                       { return nil, r.f.fail() }
func (r failingRows) RawValues() [][]byte                          { return nil }
func (r failingRows) Conn() *pgx.Conn                              { return nil }
func (r failingRows) TypeMap() *pgtype.Map                         { return nil }

type failingBatch struct {
	pgx.BatchResults // nil
	f                *failing
}

func (b failingBatch) Exec() (pgconn.CommandTag, error) { return pgconn.CommandTag{}, b.f.fail() }
func (b failingBatch) Query() (pgx.Rows, error)         { return failingRows{b.f}, b.f.fail() }
func (b failingBatch) QueryRow() pgx.Row                { return failingRows{b.f} }
func (b failingBatch) Close() error                     { return b.f.fail() }

// use is one way for a handler to use its transaction.
type use struct {
	name   string
	do     func(pgx.Tx) error
	unseen bool // its error says nothing of the transaction
	first  int  // how many uses come before the one that is meant
}

var ctx = context.Background()

// uses are all of them. Those of rows and of a batch open them first.
var uses = []use{
	{name: "begin", do: func(tx pgx.Tx) error { _, err := tx.Begin(ctx); return err }},
	{name: "commit", do: func(tx pgx.Tx) error { return tx.Commit(ctx) }},
	{name: "rollback", do: func(tx pgx.Tx) error { return tx.Rollback(ctx) }, unseen: true},
	{name: "exec", do: func(tx pgx.Tx) error { _, err := tx.Exec(ctx, "x"); return err }},
	{name: "query", do: func(tx pgx.Tx) error { _, err := tx.Query(ctx, "x"); return err }},
	{name: "row", do: func(tx pgx.Tx) error { return tx.QueryRow(ctx, "x").Scan() }},
	{name: "copy", do: func(tx pgx.Tx) error { _, err := tx.CopyFrom(ctx, nil, nil, nil); return err }},
	{name: "prepare", do: func(tx pgx.Tx) error { _, err := tx.Prepare(ctx, "x", "x"); return err }},
	{name: "batch exec", do: func(tx pgx.Tx) error { _, err := batch(tx).Exec(); return err }},
	{name: "batch query", do: func(tx pgx.Tx) error { _, err := batch(tx).Query(); return err }},
	{name: "batch row", do: func(tx pgx.Tx) error { return batch(tx).QueryRow().Scan() }},
	{name: "batch close", do: func(tx pgx.Tx) error { return batch(tx).Close() }},
}

func batch(tx pgx.Tx) pgx.BatchResults { return tx.SendBatch(ctx, &pgx.Batch{}) }

// usesOfRows have to note what the rows say when they end. Scan and Values say what is
// wrong with the program.
var usesOfRows = []use{
	{name: "next", first: 1, do: func(tx pgx.Tx) error { rows(tx).Next(); return errConflict }},
	{name: "err", first: 1, do: func(tx pgx.Tx) error { return rows(tx).Err() }},
	{name: "close", first: 1, do: func(tx pgx.Tx) error { rows(tx).Close(); return errConflict }},
	{name: "rows of a batch", first: 1, do: func(tx pgx.Tx) error {
		rows, _ := batch(tx).Query()
		return rows.Err()
	}},
	{name: "scan", first: 1, do: func(tx pgx.Tx) error { return rows(tx).Scan() }, unseen: true},
	{name: "values", first: 1, do: func(tx pgx.Tx) error { _, err := rows(tx).Values(); return err }, unseen: true},
}

func rows(tx pgx.Tx) pgx.Rows {
	rows, _ := tx.Query(ctx, "x")
	return rows
}

var errConflict error = &pgconn.PgError{Code: "40001"}

// Do runs a function again for some of them, and a handler makes a response of them.
func TestErrorOfEachUseOfTheTransactionIsSeen(t *testing.T) {
	t.Parallel()
	for _, u := range append(uses, usesOfRows...) {
		tx := Watch(&failing{err: errConflict, first: u.first})
		if err := u.do(tx); !errors.Is(err, errConflict) {
			t.Errorf("%s: %v", u.name, err)
		}
		if !tx.Used() {
			t.Errorf("%s: not said to be used", u.name)
		}
		if seen := errors.Is(tx.Seen(), errConflict); seen == u.unseen {
			t.Errorf("%s: seen: %v", u.name, tx.Seen())
		}
		if err := tx.Rollback(ctx); errors.Is(err, errBusy) {
			t.Errorf("%s has ended, and a rollback is refused: %v", u.name, err)
		}
	}
}

func TestNothingOfAnUnusedTransactionIsSeen(t *testing.T) {
	t.Parallel()
	tx := Watch(&failing{})
	if tx.Used() || tx.Seen() != nil {
		t.Errorf("used %v, seen %v", tx.Used(), tx.Seen())
	}
	tx.End()
	if tx.Used() {
		t.Error("used by its end")
	}
}

func TestTransactionInsideOfATransactionIsWatchedToo(t *testing.T) {
	t.Parallel()
	inner := &failing{}
	tx := Watch(inner)
	savepoint, err := tx.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	inner.err = errConflict
	_, _ = savepoint.Exec(ctx, "x")
	if !errors.Is(tx.Seen(), errConflict) {
		t.Errorf("seen: %v", tx.Seen())
	}
	tx.End()
	if _, err := savepoint.Exec(ctx, "x"); !errors.Is(err, pgx.ErrTxClosed) {
		t.Error(err)
	}
}

func TestEachUseAfterTheEndIsRefused(t *testing.T) {
	t.Parallel()
	tx := Watch(&failing{in: func() { t.Error("the connection was used") }})
	tx.End()
	for range 2 {
		for _, u := range uses {
			if err := u.do(tx); !errors.Is(err, pgx.ErrTxClosed) {
				t.Errorf("%s: %v", u.name, err)
			}
		}
		if err := rows(tx).Err(); !errors.Is(err, pgx.ErrTxClosed) {
			t.Errorf("rows: %v", err)
		}
	}
	open := &failing{}
	tx = Watch(open)
	opened, row, results := rows(tx), tx.QueryRow(ctx, "x"), batch(tx)
	tx.End()
	open.in = func() { t.Error("the connection was used") }
	opened.Close()
	_, valuesErr := opened.Values()
	_, execErr := results.Exec()
	_, queryErr := results.Query()
	for what, err := range map[string]error{"err": opened.Err(), "scan": opened.Scan(), "one row": row.Scan(), "values": valuesErr, "exec": execErr, "query": queryErr, "row": results.QueryRow().Scan(), "close": results.Close()} {
		if !errors.Is(err, pgx.ErrTxClosed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if opened.Next() {
		t.Error("there are more rows")
	}
}

// To wait would be a deadlock where the one is sent from inside the other.
func TestUseInsideOfAnotherIsAnErrorAndNoDeadlock(t *testing.T) {
	t.Parallel()
	for _, u := range uses {
		done := make(chan error, 1)
		go func() {
			inner := &failing{}
			tx := Watch(inner)
			var inside error
			inner.in = func() {
				inner.in = nil
				inside = u.do(tx)
			}
			_, _ = tx.Exec(ctx, "x")
			if again := tx.QueryRow(ctx, "x").Scan(); again != nil {
				inside = fmt.Errorf("afterwards: %w", again)
			}
			done <- inside
		}()
		select {
		case err := <-done:
			if !errors.Is(err, errBusy) {
				t.Errorf("%s: %v", u.name, err)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: a deadlock", u.name)
		}
	}
}

// What is seen is what Do decides by: the first error after which another run can succeed,
// else the last one, and never 25P02, the echo of an earlier one.
func TestErrorThatSaysWhyTheTransactionHasFailedIsKept(t *testing.T) {
	t.Parallel()
	codes := func(all ...string) (seen string) {
		inner := &failing{}
		tx := Watch(inner)
		for _, code := range all {
			inner.err = &pgconn.PgError{Code: code}
			_, _ = tx.Exec(ctx, "x")
		}
		if e, ok := errors.AsType[*pgconn.PgError](tx.Seen()); ok {
			return e.Code
		}
		return ""
	}
	for _, row := range []struct {
		errors []string
		want   string
	}{
		{[]string{"23505"}, "23505"},
		{[]string{"40001", "23505"}, "40001"},
		{[]string{"40001", "40P01"}, "40001"},
		{[]string{"23505", "22012"}, "22012"},
		{[]string{"23505", "40P01", "22012"}, "40P01"},
		{[]string{"23505", "25P02"}, "23505"},
		{[]string{"40001", "25P02", "25P02"}, "40001"},
		{[]string{"25P02"}, ""},
	} {
		if got := codes(row.errors...); got != row.want {
			t.Errorf("%q: %s, want %s", row.errors, got, row.want)
		}
	}
}

func TestTransactionIsBrokenByAnErrorThatWasSeenAndCannotCommit(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for _, row := range []struct {
		name string
		do   func(*WatchedTx)
		want bool
	}{
		{"nothing", func(*WatchedTx) {}, false},
		{"a success", func(tx *WatchedTx) { _, _ = tx.Exec(ctx, "select 1") }, false},
		{"an error", func(tx *WatchedTx) { _, _ = tx.Exec(ctx, "select 1/0") }, true},
		{"an error that was undone", func(tx *WatchedTx) {
			_ = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { _, err := tx.Exec(ctx, "select 1/0"); return err })
		}, false},
		{"an error that nobody saw", func(tx *WatchedTx) { _, _ = tx.Conn().Exec(ctx, "select 1/0") }, false},
		{"a lost connection", func(tx *WatchedTx) { _, _ = tx.Exec(ctx, "select pg_terminate_backend(pg_backend_pid())") }, true},
	} {
		inner, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		tx := Watch(inner)
		row.do(tx)
		if got := tx.Broken(); got != row.want {
			t.Errorf("%s: broken %v", row.name, got)
		}
		_ = inner.Rollback(ctx)
	}
}
