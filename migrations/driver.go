package migrations

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/golang-migrate/migrate/v4/database"
	migratepgx "github.com/golang-migrate/migrate/v4/database/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// driver returns golang-migrate's driver on this session's connection, and
// makes the version table when it is missing. The lock must be held: then the
// driver's own, unbounded pg_advisory_lock succeeds at once, because one session
// can take the same advisory lock again.
func (s *session) driver(ctx context.Context) (database.Driver, error) {
	s.db = sql.OpenDB(&connector{conn: bound{s.conn, ctx}})
	drv, err := migratepgx.WithInstance(s.db, &migratepgx.Config{
		DatabaseName:    s.database,
		SchemaName:      s.schema,
		MigrationsTable: versionTable,
	})
	if err != nil {
		return nil, fmt.Errorf("preparing table %s: %w", s.table(versionTable), cause(err))
	}
	return drv, nil
}

// A connector hands one open connection to database/sql, once. It must not
// connect anew when the connection is lost, because the lock is lost with it.
type connector struct {
	conn bound
	used bool
}

func (c *connector) Connect(context.Context) (driver.Conn, error) {
	if c.used {
		return nil, errors.New("the connection was lost")
	}
	c.used = true
	return c.conn, nil
}

func (c *connector) Driver() driver.Driver { return stdlib.GetDefaultDriver() }

// A bound connection lets every statement end with ctx. golang-migrate has no
// contexts in its API and passes context.Background() everywhere.
type bound struct {
	*stdlib.Conn
	ctx context.Context
}

func (b bound) Ping(context.Context) error         { return b.Conn.Ping(b.ctx) }
func (b bound) ResetSession(context.Context) error { return b.Conn.ResetSession(b.ctx) }

func (b bound) BeginTx(_ context.Context, opts driver.TxOptions) (driver.Tx, error) {
	return b.Conn.BeginTx(b.ctx, opts)
}

func (b bound) PrepareContext(_ context.Context, query string) (driver.Stmt, error) {
	return b.Conn.PrepareContext(b.ctx, query)
}

func (b bound) ExecContext(_ context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return b.Conn.ExecContext(b.ctx, query, args)
}

func (b bound) QueryContext(_ context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return b.Conn.QueryContext(b.ctx, query, args)
}

// cause returns the error inside golang-migrate's, which has no Unwrap.
func cause(err error) error {
	if e, ok := errors.AsType[database.Error](err); ok {
		return e.OrigErr
	}
	if e, ok := errors.AsType[*database.Error](err); ok {
		return e.OrigErr
	}
	return err
}
