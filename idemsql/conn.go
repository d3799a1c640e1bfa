package idemsql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
)

// A notYours is the error of Commit and Rollback. It tells DoTx, which has to undo
// what a nested function has left, on what the *sql.Tx is.
type notYours struct{ conn *conn }

func (notYours) Error() string {
	return "idemsql: the function does not end its *sql.Tx: Do does, or the caller of DoTx. It returns nil for its writes to be kept, an error to undo them"
}

// A conn is a pgx.Tx as the connection of one *sql.Tx, and as its transaction.
//
// It is not a stdlib.Conn: that one makes driver.ErrBadConn of a lost connection,
// which hides from Do that the function can be run again.
type conn struct {
	ctx    context.Context // of Run
	tx     pgx.Tx
	unread error // with which rows were closed
}

// begin makes the *sql.Tx. The end of the caller's context is kept from it: that
// would end the *sql.Tx from another goroutine, in the middle of the function.
func (c *conn) begin() (*sql.Tx, error) {
	return bridge().BeginTx(context.WithValue(context.Background(), connKey{}, c), nil)
}

type connKey struct{}

// bridge makes each *sql.Tx of a connection that comes with the context. It keeps
// none, so no *sql.Tx can get the connection of another one.
var bridge = sync.OnceValue(func() *sql.DB {
	db := sql.OpenDB(connector{})
	db.SetMaxIdleConns(-1)
	return db
})

type connector struct{}

func (connector) Connect(ctx context.Context) (driver.Conn, error) {
	return ctx.Value(connKey{}).(*conn), nil
}

func (c connector) Driver() driver.Driver { return c }

func (connector) Open(string) (driver.Conn, error) { return nil, errors.ErrUnsupported }

// unreadError is the error with which rows were closed, if it has broken the
// transaction. One inside a savepoint, to which the function has rolled back, has
// not.
func (c *conn) unreadError() error {
	if c.unread == nil {
		return nil
	}
	switch pg := c.tx.Conn().PgConn(); {
	case pg.IsClosed():
		return fmt.Errorf("idemsql: the function returned nil although its rows ended with an error: %w", c.unread)
	case pg.TxStatus() == 'E':
		return fmt.Errorf("idemsql: the function returned nil although its rows ended with an error: %w: %w", pgx.ErrTxCommitRollback, c.unread)
	}
	return nil
}

func (c *conn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) { return c, nil }
func (c *conn) Begin() (driver.Tx, error)                                    { return c, nil }
func (c *conn) Close() error                                                 { return nil }
func (c *conn) Commit() error                                                { return notYours{c} }
func (c *conn) Rollback() error                                              { return notYours{c} }

// CheckNamedValue leaves values to pgx, which knows more of them than database/sql.
func (c *conn) CheckNamedValue(*driver.NamedValue) error { return nil }

func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	tag, err := c.tx.Exec(c.statement(ctx), query, values(nil, args)...)
	if err != nil {
		return nil, explainNamed(err, query, args)
	}
	return driver.RowsAffected(tag.RowsAffected()), nil
}

func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	answer, err := c.tx.Query(c.statement(ctx), query, values([]any{inBinary}, args)...)
	if err != nil {
		return nil, explainNamed(err, query, args)
	}
	// database/sql asks for the columns first. They are known with the first row.
	r := &rows{conn: c, rows: answer, types: c.tx.Conn().TypeMap(), ahead: true, more: answer.Next()}
	if err := answer.Err(); err != nil {
		return nil, explainNamed(err, query, args)
	}
	return r, nil
}

// statement is the context of a statement. Background is what database/sql gives
// to one that is sent without a context.
func (c *conn) statement(ctx context.Context) context.Context {
	if ctx == context.Background() {
		return context.WithoutCancel(c.ctx)
	}
	return ctx
}

func values(to []any, args []driver.NamedValue) []any {
	for _, arg := range args {
		to = append(to, arg.Value)
	}
	return to
}

// explainNamed: as stdlib does, arguments of sql.Named are sent by their position.
// A query that has their names fails in PostgreSQL with an error that does not
// tell why.
func explainNamed(err error, query string, args []driver.NamedValue) error {
	for _, arg := range args {
		if arg.Name != "" && (strings.Contains(query, "@"+arg.Name) || strings.Contains(query, ":"+arg.Name)) {
			return fmt.Errorf("idemsql: PostgreSQL has no named arguments such as %q of sql.Named: write $%d, or pass one pgx.NamedArgs: %w", arg.Name, arg.Ordinal, err)
		}
	}
	return err
}

func (c *conn) Prepare(query string) (driver.Stmt, error) { return &stmt{c, query}, nil }

func (c *conn) PrepareContext(_ context.Context, query string) (driver.Stmt, error) {
	return c.Prepare(query)
}

// A stmt is only its text: pgx prepares it when it is executed, and keeps it with
// the connection for later transactions.
type stmt struct {
	conn  *conn
	query string
}

func (s *stmt) Close() error  { return nil }
func (s *stmt) NumInput() int { return -1 } // pgx counts them

func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.conn.ExecContext(ctx, s.query, args)
}

func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.conn.QueryContext(ctx, s.query, args)
}

// Exec and Query belong to the interface. database/sql calls those above.
func (s *stmt) Exec([]driver.Value) (driver.Result, error) { return nil, errors.ErrUnsupported }
func (s *stmt) Query([]driver.Value) (driver.Rows, error)  { return nil, errors.ErrUnsupported }
