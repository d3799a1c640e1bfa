package idempotency

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency/internal/sqltx"
)

var errNotYours = errors.New("idempotency: the function does not end its transaction: Do does, or the caller of DoTx. It returns nil for its writes to be kept, an error to undo them")

// A guardedTx is the transaction as the caller's function sees it. Commit and
// Rollback are refused without any effect, so that a habitual
// "defer tx.Rollback(ctx)" is harmless. Once the function has returned
// everything is refused: the connection may be another call's by then. What Conn and
// LargeObjects return are pgx's own structs, which nothing can be put in front of.
type guardedTx struct {
	pgx.Tx
	ended     *atomic.Bool
	savepoint bool // of the function's own, which it may end
}

func guardTx(tx pgx.Tx) *guardedTx {
	return &guardedTx{Tx: tx, ended: new(atomic.Bool)}
}

func (g *guardedTx) end() { g.ended.Store(true) }

func (g *guardedTx) usable() error {
	if g.ended.Load() {
		return pgx.ErrTxClosed
	}
	return nil
}

func (g *guardedTx) endable() error {
	if !g.savepoint && !g.ended.Load() {
		return errNotYours
	}
	return g.usable()
}

func (g *guardedTx) Commit(ctx context.Context) error {
	if err := g.endable(); err != nil {
		return err
	}
	return g.Tx.Commit(ctx)
}

func (g *guardedTx) Rollback(ctx context.Context) error {
	if err := g.endable(); err != nil {
		return err
	}
	return g.Tx.Rollback(ctx)
}

func (g *guardedTx) Begin(ctx context.Context) (pgx.Tx, error) {
	if err := g.usable(); err != nil {
		return nil, err
	}
	tx, err := g.Tx.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &guardedTx{Tx: tx, ended: g.ended, savepoint: true}, nil
}

func (g *guardedTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if err := g.usable(); err != nil {
		return pgconn.CommandTag{}, err
	}
	return g.Tx.Exec(ctx, sql, args...)
}

func (g *guardedTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if err := g.usable(); err != nil {
		return refused(err).Query()
	}
	return g.Tx.Query(ctx, sql, args...)
}

func (g *guardedTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if err := g.usable(); err != nil {
		return refused(err).QueryRow()
	}
	return g.Tx.QueryRow(ctx, sql, args...)
}

func (g *guardedTx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	if err := g.usable(); err != nil {
		return pgx.FailedBatchResults(b, err)
	}
	return g.Tx.SendBatch(ctx, b)
}

func (g *guardedTx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (int64, error) {
	if err := g.usable(); err != nil {
		return 0, err
	}
	return g.Tx.CopyFrom(ctx, table, columns, src)
}

func (g *guardedTx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	if err := g.usable(); err != nil {
		return nil, err
	}
	return g.Tx.Prepare(ctx, name, sql)
}

// refused makes the Rows and Row of a query that is not sent.
func refused(err error) pgx.BatchResults {
	return pgx.FailedBatchResults(&pgx.Batch{}, err)
}

// checkOpen is the error of a function that returned nil although tx cannot commit.
func checkOpen(tx pgx.Tx) error {
	if _, ok := tx.(sqltx.Tx); ok {
		return nil // the record, which is a statement of its own there, finds out
	}
	conn := tx.Conn().PgConn()
	switch {
	case conn.IsBusy():
		return errors.New("idempotency: the function returned with a query still open: close its rows")
	case conn.IsClosed():
		return fmt.Errorf("idempotency: the function returned nil although its connection was lost: %w", pgconn.ErrConnClosed)
	case conn.TxStatus() == 'E':
		return fmt.Errorf("idempotency: the function returned nil although one of its statements failed: %w", pgx.ErrTxCommitRollback)
	case conn.TxStatus() == 'I':
		return errTransactionEnded
	}
	return nil
}
