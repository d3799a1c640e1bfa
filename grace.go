package idempotency

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// claimGrace is how long the answer to a statement of ours is still waited for when
// the caller's context has ended. pgx closes the connection of a statement that its
// context cuts short, and a new one costs the server far more than an answer that is
// mostly on its way: a few clients that cancel in a loop would keep it busy with
// connecting. A claim that hangs, behind a lock on the table for example, is given up
// with its connection.
const claimGrace = 100 * time.Millisecond

// graced sends statements of ours through conn, with a context that cannot end. The end
// of ctx gives the connection a deadline, which is taken back when they are done. When
// the grace was over, the error is that of ctx. (A context that ends later would do as
// well, but pgx would watch it, at the price of ten allocations a call.)
//
// Without a conn, in a transaction of database/sql, the driver decides what the end of a
// context means.
func graced(ctx context.Context, conn *pgx.Conn, statements func(context.Context) error) error {
	if conn == nil || ctx.Done() == nil {
		return statements(ctx)
	}
	g := &grace{wire: conn.PgConn().Conn()}
	stop := context.AfterFunc(ctx, g.begin)
	err := statements(context.WithoutCancel(ctx))
	if !stop() {
		g.end()
	}
	if ctx.Err() != nil && pgconn.Timeout(err) {
		return ctx.Err()
	}
	return err
}

// A grace has a mutex because the context can end just when the statements are done.
type grace struct {
	wire net.Conn
	mu   sync.Mutex
	over bool
}

func (g *grace) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.over { // else the connection is somebody else's by now
		_ = g.wire.SetDeadline(time.Now().Add(claimGrace))
	}
}

func (g *grace) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.over = true
	_ = g.wire.SetDeadline(time.Time{})
}
