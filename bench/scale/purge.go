package scale

import (
	"context"
	"errors"
	"runtime"
	"time"

	"github.com/pgidem/idempotency/bench/measure"
	"github.com/pgidem/idempotency/bench/results"
)

const (
	// purgePerSecond is the pace of Store.Purge.
	purgePerSecond = 10_000

	// purgeCallers call beside the purge.
	purgeCallers = 8
)

// purge compares first calls with and without a purge beside them.
func (b *bench) purge(ctx context.Context, s shape) (results.Purge, error) {
	out := results.Purge{Shape: s.name, Rows: b.Rows, Target: purgePerSecond, Callers: purgeCallers}
	expired := int64(1.2 * purgePerSecond * b.Window.Seconds() * float64(b.Pairs))
	if err := b.fillExpired(ctx, s, expired); err != nil {
		return out, err
	}
	on, err := b.open(ctx, s.database())
	if err != nil {
		return out, err
	}
	defer on.pool.Close()
	b.logf("%s, %d rows: purge beside %d callers", s.name, b.Rows, purgeCallers)
	op := firstCall(on, s)
	measure.During(ctx, purgeCallers, op, measure.Lasting(ctx, b.Slice))
	var calm, busy measure.Slice
	var p99s, rates []float64
	var purging time.Duration
	for range b.Pairs {
		runtime.GC()
		c := measure.During(ctx, purgeCallers, op, measure.Lasting(ctx, b.Window))
		var failed error
		w := measure.During(ctx, purgeCallers, op, func() {
			start := time.Now()
			deleted, err := purgeFor(ctx, on, b.Window)
			out.Deleted += deleted
			purging += time.Since(start)
			failed = err
		})
		if err := errors.Join(append(append(c.Errors, w.Errors...), failed, ctx.Err())...); err != nil {
			return out, err
		}
		if len(c.Latencies) == 0 {
			return out, errors.New("no call has ended in a window: make the -window longer")
		}
		p99s = append(p99s, measure.Ratio(w.Quantile(0.99), c.Quantile(0.99)))
		rates = append(rates, w.PerSecond()/c.PerSecond())
		calm.Add(c)
		busy.Add(w)
	}
	out.PerSecond = float64(out.Deleted) / purging.Seconds()
	out.Calm, out.Busy = calm.Load(), busy.Load()
	out.P99Ratio, out.RateRatio = measure.Median(p99s), measure.Median(rates)
	return out, nil
}

// purgeFor purges for so long.
func purgeFor(ctx context.Context, on *side, window time.Duration) (deleted int64, err error) {
	limited, cancel := context.WithTimeout(ctx, window)
	defer cancel()
	deleted, err = on.store.Purge(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return deleted, nil
	}
	if err == nil {
		err = errors.New("there were too few expired rows for the purge")
	}
	return deleted, err
}
