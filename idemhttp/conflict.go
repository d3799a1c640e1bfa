package idemhttp

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A watchedTx notes the errors of a handler's statements. A handler turns them
// into a response, most often a 500, and so they would be lost to
// [idempotency.Do], which runs a function again on a serialization failure, a
// deadlock or a lost connection.
type watchedTx struct {
	pgx.Tx
	seen *error
}

// note keeps the last error that says why, not only that, the transaction is
// broken (25P02).
func note(seen *error, err error) error {
	pgErr, fromServer := errors.AsType[*pgconn.PgError](err)
	if err != nil && (!fromServer || pgErr.Code != "25P02") {
		*seen = err
	}
	return err
}

// broken reports whether the transaction can no longer be committed.
func (t watchedTx) broken() bool {
	conn := t.Conn().PgConn()
	return *t.seen != nil && (conn.IsClosed() || conn.TxStatus() == 'E')
}

func (t watchedTx) Begin(ctx context.Context) (pgx.Tx, error) {
	tx, err := t.Tx.Begin(ctx)
	if note(t.seen, err) != nil {
		return nil, err
	}
	return watchedTx{tx, t.seen}, nil
}

func (t watchedTx) Commit(ctx context.Context) error {
	return note(t.seen, t.Tx.Commit(ctx))
}

func (t watchedTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	tag, err := t.Tx.Exec(ctx, sql, args...)
	return tag, note(t.seen, err)
}

func (t watchedTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	rows, err := t.Tx.Query(ctx, sql, args...)
	return watchedRows{rows, t.seen}, note(t.seen, err)
}

func (t watchedTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return watchedRow{t.Tx.QueryRow(ctx, sql, args...), t.seen}
}

func (t watchedTx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	return watchedBatch{t.Tx.SendBatch(ctx, b), t.seen}
}

func (t watchedTx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (int64, error) {
	n, err := t.Tx.CopyFrom(ctx, table, columns, src)
	return n, note(t.seen, err)
}

func (t watchedTx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	description, err := t.Tx.Prepare(ctx, name, sql)
	return description, note(t.seen, err)
}

type watchedRows struct {
	pgx.Rows
	seen *error
}

func (r watchedRows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	_ = r.Err()
	return false
}

func (r watchedRows) Err() error { return note(r.seen, r.Rows.Err()) }

func (r watchedRows) Close() {
	r.Rows.Close()
	_ = r.Err()
}

type watchedRow struct {
	pgx.Row
	seen *error
}

func (r watchedRow) Scan(dest ...any) error { return note(r.seen, r.Row.Scan(dest...)) }

type watchedBatch struct {
	pgx.BatchResults
	seen *error
}

func (b watchedBatch) Exec() (pgconn.CommandTag, error) {
	tag, err := b.BatchResults.Exec()
	return tag, note(b.seen, err)
}

func (b watchedBatch) Query() (pgx.Rows, error) {
	rows, err := b.BatchResults.Query()
	return watchedRows{rows, b.seen}, note(b.seen, err)
}

func (b watchedBatch) QueryRow() pgx.Row {
	return watchedRow{b.BatchResults.QueryRow(), b.seen}
}

func (b watchedBatch) Close() error { return note(b.seen, b.BatchResults.Close()) }
