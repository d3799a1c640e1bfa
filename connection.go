package idempotency

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/remedy"
	"github.com/pgidem/idempotency/internal/sqltx"
)

// connOf is the connection of tx, or nil in a transaction of database/sql, which does not
// show it.
func connOf(tx pgx.Tx) *pgx.Conn {
	if _, ok := tx.(sqltx.Tx); ok {
		return nil
	}
	return tx.Conn()
}

func (s *Store) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	return acquire(ctx, s.pool)
}

func acquire(ctx context.Context, pool *pgxpool.Pool) (*pgxpool.Conn, error) {
	conn, err := pool.Acquire(ctx)
	return conn, usedUp(pool, err)
}

// leastLost is how many connections one operation may lose, at least, before it has
// executed anything. After a restart of the server, every idle one of the pool is a dead
// one: an operation may lose as many as the pool can hold.
const leastLost = 10

// reconnects are the connections that failed one operation before it had executed
// anything.
type reconnects struct {
	store *Store
	n     int
	made  int64 // how many the pool had made when one of them could not write; 0: all could
}

// worthwhile reports whether an operation that failed with err, and has executed nothing,
// is to ask once more on another connection: this one was dead, or leads to a server
// that is not the primary any more, or the node behind it is gone. Where a connection that was made since cannot write
// either, it is not one that a failover has left behind.
func (r *reconnects) worthwhile(ctx context.Context, err error) bool {
	readOnly := remedy.CannotWrite(err)
	if ctx.Err() != nil || !readOnly && !lostConnection(err) && !r.store.lostNode(err) {
		return false
	}
	pool := r.store.pool.Stat()
	r.n++
	if readOnly {
		before := r.made
		r.made = pool.NewConnsCount()
		if before != 0 && before != r.made {
			return false
		}
	}
	return r.n <= max(leastLost, int(pool.MaxConns()))
}

// retried makes an operation other than a call, and makes it once more where that is
// worth while: on another connection, or as adapt has changed it, or after a
// serialization failure, which what only reads can get, too. Executed: what failed
// can have taken effect.
func (s *Store) retried(ctx context.Context, operation func() (executed bool, err error)) error {
	lost := reconnects{store: s}
	var waits backoff
	conflicts := 0
	for again := false; ; {
		executed, err := operation()
		switch {
		case err == nil:
			return nil
		case conflicted(err) && !executed && conflicts < maxRuns:
			if conflicts++; waits.pause(ctx) != nil {
				return err
			}
		case s.adapt(err, again):
			again = true
		case executed || !lost.worthwhile(ctx, err) || waits.pause(ctx) != nil:
			return err
		}
	}
}

// closeReadOnly closes a connection whose server cannot write, so that the pool makes
// another one, which can lead to the primary.
func closeReadOnly(conn *pgx.Conn, err error) {
	if remedy.CannotWrite(err) {
		// Not the caller's context, which can have ended.
		ctx, cancel := context.WithTimeout(context.Background(), rollbackBound)
		defer cancel()
		_ = conn.Close(ctx)
	}
}
