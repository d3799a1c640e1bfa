package transport

import (
	"context"
	"errors"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A watch is what the transaction of one run, and all that comes from it, share.
//
// It notes the errors of the handler's statements. A handler turns them into a
// response or a status, most often a 500 or an INTERNAL, and so they would be lost
// to [idempotency.Do], which runs a function again on a serialization failure, a
// deadlock or a lost connection.
//
// And it ends with the handler. What the handler has left behind, such as the
// goroutine of an http.TimeoutHandler inside, must not use the connection
// while the transaction is rolled back, or when it is another request's.
type watch struct {
	mu    sync.Mutex // held while a statement uses the connection
	ended bool
	used  bool
	seen  error
}

// errBusy is what pgx says of two statements at once, as far as it notices. To
// wait would be a deadlock where the one is sent from inside the other.
var errBusy = errors.New("idempotency: the transaction executes another statement at this moment (conn busy)")

// enter is called before each use of the connection. Without an error, leave
// has to follow.
func (s *watch) enter() error {
	if !s.mu.TryLock() {
		return errBusy
	}
	if s.ended {
		s.mu.Unlock()
		return pgx.ErrTxClosed
	}
	s.used = true
	return nil
}

func (s *watch) leave() { s.mu.Unlock() }

// End makes the transaction refuse everything ([pgx.ErrTxClosed]). It waits for the
// statement that is executed at this moment, if there is one.
func (s *watch) End() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
}

// note keeps the last error, but the first after which another run can succeed:
// what follows that is only its consequence. An echo is a consequence always.
func (s *watch) note(err error) error {
	if err != nil && (s.seen == nil || !Passes(s.seen)) && !isEcho(err) {
		s.seen = err
	}
	return err
}

// isEcho reports 25P02: the transaction is aborted, for an earlier error.
func isEcho(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == "25P02"
}

// A WatchedTx is the transaction as a handler sees it.
type WatchedTx struct {
	pgx.Tx
	*watch
}

// Watch returns tx for a handler. Its caller calls End when the handler has ended,
// also by a panic.
func Watch(tx pgx.Tx) *WatchedTx { return &WatchedTx{tx, new(watch)} }

// Used reports whether the handler has sent anything through the transaction.
func (t *WatchedTx) Used() bool { return t.used }

// Seen is the error of a statement that says why the transaction has failed, or nil.
func (t *WatchedTx) Seen() error { return t.seen }

// Broken reports whether the transaction can no longer be committed.
func (t *WatchedTx) Broken() bool {
	conn := t.Conn().PgConn()
	return t.seen != nil && (conn.IsClosed() || conn.TxStatus() == 'E')
}

func (t *WatchedTx) Begin(ctx context.Context) (pgx.Tx, error) {
	if err := t.enter(); err != nil {
		return nil, err
	}
	defer t.leave()
	tx, err := t.Tx.Begin(ctx)
	if t.note(err) != nil {
		return nil, err
	}
	return &WatchedTx{tx, t.watch}, nil
}

func (t *WatchedTx) Commit(ctx context.Context) error {
	if err := t.enter(); err != nil {
		return err
	}
	defer t.leave()
	return t.note(t.Tx.Commit(ctx))
}

func (t *WatchedTx) Rollback(ctx context.Context) error {
	if err := t.enter(); err != nil {
		return err
	}
	defer t.leave()
	return t.Tx.Rollback(ctx)
}

func (t *WatchedTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if err := t.enter(); err != nil {
		return pgconn.CommandTag{}, err
	}
	defer t.leave()
	tag, err := t.Tx.Exec(ctx, sql, args...)
	return tag, t.note(err)
}

func (t *WatchedTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if err := t.enter(); err != nil {
		return refused(err).Query()
	}
	defer t.leave()
	rows, err := t.Tx.Query(ctx, sql, args...)
	return watchedRows{rows, t.watch}, t.note(err)
}

func (t *WatchedTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if err := t.enter(); err != nil {
		return refused(err).QueryRow()
	}
	defer t.leave()
	return watchedRow{t.Tx.QueryRow(ctx, sql, args...), t.watch}
}

func (t *WatchedTx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	if err := t.enter(); err != nil {
		return pgx.FailedBatchResults(b, err)
	}
	defer t.leave()
	return watchedBatch{t.Tx.SendBatch(ctx, b), t.watch}
}

func (t *WatchedTx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (int64, error) {
	if err := t.enter(); err != nil {
		return 0, err
	}
	defer t.leave()
	n, err := t.Tx.CopyFrom(ctx, table, columns, src)
	return n, t.note(err)
}

func (t *WatchedTx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	if err := t.enter(); err != nil {
		return nil, err
	}
	defer t.leave()
	description, err := t.Tx.Prepare(ctx, name, sql)
	return description, t.note(err)
}

// refused makes the Rows and Row of a query that is not sent.
func refused(err error) pgx.BatchResults {
	return pgx.FailedBatchResults(&pgx.Batch{}, err)
}

type watchedRows struct {
	pgx.Rows
	*watch
}

func (r watchedRows) Next() bool {
	if r.enter() != nil {
		return false
	}
	defer r.leave()
	if r.Rows.Next() {
		return true
	}
	_ = r.note(r.Rows.Err())
	return false
}

func (r watchedRows) Scan(dest ...any) error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	return r.Rows.Scan(dest...)
}

func (r watchedRows) Values() ([]any, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.leave()
	return r.Rows.Values()
}

func (r watchedRows) Err() error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	return r.note(r.Rows.Err())
}

func (r watchedRows) Close() {
	if r.enter() != nil {
		return
	}
	defer r.leave()
	r.Rows.Close()
	_ = r.note(r.Rows.Err())
}

type watchedRow struct {
	pgx.Row
	*watch
}

func (r watchedRow) Scan(dest ...any) error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	return r.note(r.Row.Scan(dest...))
}

type watchedBatch struct {
	pgx.BatchResults
	*watch
}

func (b watchedBatch) Exec() (pgconn.CommandTag, error) {
	if err := b.enter(); err != nil {
		return pgconn.CommandTag{}, err
	}
	defer b.leave()
	tag, err := b.BatchResults.Exec()
	return tag, b.note(err)
}

func (b watchedBatch) Query() (pgx.Rows, error) {
	if err := b.enter(); err != nil {
		return refused(err).Query()
	}
	defer b.leave()
	rows, err := b.BatchResults.Query()
	return watchedRows{rows, b.watch}, b.note(err)
}

func (b watchedBatch) QueryRow() pgx.Row {
	if err := b.enter(); err != nil {
		return refused(err).QueryRow()
	}
	defer b.leave()
	return watchedRow{b.BatchResults.QueryRow(), b.watch}
}

func (b watchedBatch) Close() error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.leave()
	return b.note(b.BatchResults.Close())
}
