package doctor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// probeBound is how long a pooler without a free connection is waited for.
const probeBound = 5 * time.Second

// checkPooler tells a pooler by its process id: it gives each client one of its
// own making, since a request to cancel has to come to itself.
func checkPooler(ctx context.Context, p *patient) error {
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	pid, err := backend(ctx, conn.Conn())
	pooled := err == nil && pid != conn.Conn().PgConn().PID()
	conn.Release()
	if err != nil {
		return fmt.Errorf("asking for the process id: %w", err)
	}
	if !pooled {
		return nil
	}
	switched, broken := p.probe(ctx)
	mode := p.pool.Config().ConnConfig.DefaultQueryExecMode
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case !switched: // a pooler in session mode, or one too busy to tell
	case mode == pgx.QueryExecModeDescribeExec, mode == pgx.QueryExecModeCacheStatement && broken:
		p.find(Error, "pooler", fmt.Sprintf("a pooler in transaction mode does not keep prepared statements, and the pool's query exec mode, %v, needs them: calls will fail with 26000 or 42P05", mode),
			"add default_query_exec_mode=cache_describe to the connection string; or use PgBouncer 1.21 or newer with max_prepared_statements above 0")
	}
	if switched {
		p.find(Note, "pooler", "the connection leads through a pooler in transaction mode, which is no place for migrations",
			"give idempotency migrate, or migrations.Up, a connection to PostgreSQL itself")
	}
	return nil
}

const backendSQL = `select pg_backend_pid()`

func backend(ctx context.Context, conn *pgx.Conn) (pid uint32, err error) {
	err = conn.QueryRow(ctx, backendSQL, pgx.QueryExecModeExec).Scan(&pid)
	return pid, err
}

// probe finds out what happens to a prepared statement when a transaction of
// another client has taken the session in which it was prepared. What it cannot
// find out is no finding.
func (p *patient) probe(ctx context.Context) (switched, broken bool) {
	ctx, cancel := context.WithTimeout(ctx, probeBound)
	defer cancel()
	conn, err := p.connect(ctx)
	if err != nil {
		return false, false
	}
	defer p.disconnect(conn)
	other, err := p.connect(ctx)
	if err != nil {
		return false, false
	}
	defer p.disconnect(other)

	const name = "idempotency_doctor"
	if _, err := conn.PgConn().Prepare(ctx, name, backendSQL, nil); err != nil {
		return lost(err), lost(err) // left behind by another client
	}
	prepared, err := backend(ctx, conn)
	if err != nil {
		return false, false
	}
	tx, err := other.BeginTx(ctx, pgx.TxOptions{})
	if err != nil {
		return false, false
	}
	defer tx.Rollback(ctx)
	if _, err := backend(ctx, other); err != nil {
		return false, false
	}
	now, err := backend(ctx, conn)
	if err != nil || now == prepared {
		return false, false
	}
	return true, lost(conn.PgConn().ExecPrepared(ctx, name, nil, nil, nil).Read().Err)
}

func lost(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (e.Code == "26000" || e.Code == "42P05") // no such statement, or one of that name
}

func (p *patient) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg := p.pool.Config()
	if cfg.BeforeConnect != nil { // it may fetch the password
		if err := cfg.BeforeConnect(ctx, cfg.ConnConfig); err != nil {
			return nil, err
		}
	}
	return pgx.ConnectConfig(ctx, cfg.ConnConfig)
}

func (p *patient) disconnect(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}
