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

// interruptGrace is the same for a caller's statement, which is cancelled meanwhile.
const interruptGrace = time.Second

// graced sends statements of ours through conn, with a context that cannot end. The end
// of ctx gives the connection a deadline, which is taken back when they are done. When
// the grace was over, the error is that of ctx. (A context that ends later would do as
// well, but pgx would watch it, at the price of ten allocations a call.)
//
// Without a conn, in a transaction of database/sql, the driver decides what the end of a
// context means.
func graced(ctx context.Context, conn *pgx.Conn, statements func(context.Context) error) error {
	if conn == nil {
		return statements(ctx)
	}
	return (&grace{wire: conn.PgConn().Conn(), length: claimGrace}).during(ctx, statements)
}

// interruptible is graced for a statement of the caller's, which can take long: when ctx
// ends, PostgreSQL is asked to cancel it. So the answer, which says what became of it,
// mostly comes within the grace.
func interruptible(ctx context.Context, conn *pgx.Conn, statements func(context.Context) error) error {
	return (&grace{wire: conn.PgConn().Conn(), length: interruptGrace, cancel: conn.PgConn().CancelRequest}).during(ctx, statements)
}

// A grace has a mutex because the context can end just when the statements are done.
type grace struct {
	wire   net.Conn
	length time.Duration
	cancel func(context.Context) error // or nil
	mu     sync.Mutex
	over   bool
}

func (g *grace) during(ctx context.Context, statements func(context.Context) error) error {
	if ctx.Done() == nil {
		return statements(ctx)
	}
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

func (g *grace) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over { // the connection is somebody else's by now
		return
	}
	_ = g.wire.SetDeadline(time.Now().Add(g.length))
	if g.cancel != nil {
		// With the mutex, so that it cannot reach a statement of the connection's next user.
		ctx, cancel := context.WithTimeout(context.Background(), g.length)
		defer cancel()
		_ = g.cancel(ctx)
	}
}

func (g *grace) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.over = true
	_ = g.wire.SetDeadline(time.Time{})
}
