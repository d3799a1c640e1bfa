package idempotency

import (
	"context"
	"errors"
	"time"
)

// claimGrace is how long the answer to a statement of ours is still waited for when
// the caller's context has ended. pgx closes the connection of a statement that its
// context cuts short, and a new one costs the server far more than an answer that is
// mostly on its way: a few clients that cancel in a loop would keep it busy with
// connecting. A claim that hangs, behind a lock on the table for example, is given up
// with its connection.
const claimGrace = 100 * time.Millisecond

// withGrace returns a context that ends claimGrace after ctx. The caller must call
// end.
func withGrace(ctx context.Context) (graced context.Context, end func()) {
	if ctx.Done() == nil {
		return ctx, func() {}
	}
	graced, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(claimGrace, cancel) })
	return graced, func() {
		stop()
		cancel()
	}
}

// graceError is err, or, where it says no more than that the grace was over, why ctx
// has ended.
func graceError(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return ctx.Err()
	}
	return err
}
