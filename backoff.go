package idempotency

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	firstPause = 2 * time.Millisecond
	lastPause  = 100 * time.Millisecond
)

// A backoff makes pauses that double from firstPause to lastPause. Each is cut
// by up to a half at random, so that callers that met once do not meet again.
type backoff struct{ pauses int }

func (b *backoff) next() time.Duration {
	pause := lastPause
	if b.pauses < 6 { // 2 ms << 6 is more than 100 ms
		pause = firstPause << b.pauses
	}
	b.pauses++
	return pause - rand.N(pause/2)
}

func (b *backoff) pause(ctx context.Context) error {
	return sleep(ctx, b.next())
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
