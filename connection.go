package idempotency

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/remedy"
)

// leastLost is how many connections one operation may lose, at least, before it has
// executed anything. After a restart of the server, every idle one of the pool is a dead
// one: an operation may lose as many as the pool can hold.
const leastLost = 10

// reconnects are the connections that failed one operation before it had executed
// anything.
type reconnects struct {
	pool *pgxpool.Pool
	n    int
	made int64 // by the pool, when one could not write for the first time
}

// worthwhile reports whether an operation that failed with err, and has executed nothing,
// is to ask once more on another connection: this one was dead, or leads to a server
// that is not the primary any more. Where a connection that was made since cannot write
// either, it is not one that a failover has left behind.
func (r *reconnects) worthwhile(ctx context.Context, err error) bool {
	readOnly := remedy.CannotWrite(err)
	if ctx.Err() != nil || !readOnly && !lostConnection(err) {
		return false
	}
	pool := r.pool.Stat()
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
