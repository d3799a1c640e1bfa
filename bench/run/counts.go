package run

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgidem/idempotency/bench/link"
	"github.com/pgidem/idempotency/bench/measure"
	"github.com/pgidem/idempotency/bench/peers"
	"github.com/pgidem/idempotency/bench/results"
	"github.com/pgidem/idempotency/bench/server"
)

const (
	// countTries: the counters are of the whole server, which at times does
	// something of its own. The least of some tries is the peer's.
	countTries = 3

	// waitedDelay is each way of the link on which the round trips that a caller
	// waits for are told by time: so long that nothing else counts.
	waitedDelay = 10 * time.Millisecond

	// heldDuplicates wait for one call that takes heldWork.
	heldDuplicates = 64
	heldWork       = time.Second
)

// counts measures what one call costs, peer by peer, with nothing beside it.
func (b *bench) counts(ctx context.Context) error {
	for _, e := range b.entrants {
		b.logf("counts, %s", e.Name)
		c := results.Counts{Peer: e.Name}
		for _, step := range []func(context.Context, *entrant, *results.Counts) error{
			b.countWire, b.countWaited, b.countServer, b.countAllocations, b.countHeld,
		} {
			if err := step(ctx, e, &c); err != nil {
				return fmt.Errorf("%s: %w", e.Name, err)
			}
		}
		b.run.Counts = append(b.run.Counts, c)
		if e.Name == peers.Ours {
			plain, err := b.countPlain(ctx, e)
			if err != nil {
				b.logf("the allocations of pgx alone are left out: %v", err)
			}
			b.run.Plain = plain
		}
	}
	return nil
}

// both measures first calls, and then replays.
func (b *bench) both(e *entrant, client peers.Client, c *results.Counts, count func(measure.Operation, *results.Cost) error) error {
	return errors.Join(
		count(firstCall(client), &c.First),
		count(replayCall(e, replayOf(client)), &c.Replay))
}

func times(ctx context.Context, n int, op measure.Operation) error {
	for range n {
		if err := op(ctx, 0); err != nil {
			return err
		}
	}
	return nil
}

// warmCalls prepare the statements of the one connection that a lone caller uses.
const warmCalls = 20

// settle is for what a call leaves to be done in the background.
const settle = 50 * time.Millisecond

// settled is a counter that has come to rest, or goes on by itself.
func settled(ctx context.Context, counter func() int64) int64 {
	value := counter()
	for range 20 {
		measure.Sleep(ctx, settle)
		now := counter()
		if now == value {
			break
		}
		value = now
	}
	return value
}

// through opens a client behind a counting link to each server.
func (b *bench) through(ctx context.Context, e *entrant, delay time.Duration, do func(client peers.Client, trips func() int64) error) error {
	pg, err := link.Listen(b.server.Network, b.server.Address, delay)
	if err != nil {
		return err
	}
	defer pg.Close()
	r, trips := route{address: pg.Address()}, pg.Trips
	if e.Redis {
		redis, err := link.Listen("unix", b.redis.Socket, delay)
		if err != nil {
			return err
		}
		defer redis.Close()
		r.redis = redis.Address()
		trips = func() int64 { return pg.Trips() + redis.Trips() }
	}
	client, err := b.client(ctx, e, b.envAt(e, r))
	if err != nil {
		return err
	}
	defer client.Close()
	if err := errors.Join(b.seed(ctx, e, client), e.know(ctx, client)); err != nil {
		return err
	}
	return do(client, trips)
}

func (b *bench) countWire(ctx context.Context, e *entrant, c *results.Counts) error {
	return b.through(ctx, e, 0, func(client peers.Client, trips func() int64) error {
		return b.both(e, client, c, func(op measure.Operation, cost *results.Cost) error {
			if err := times(ctx, warmCalls, op); err != nil {
				return err
			}
			for try := range countTries {
				before := settled(ctx, trips)
				if err := times(ctx, b.Calls, op); err != nil {
					return err
				}
				least(&cost.Trips, float64(settled(ctx, trips)-before)/float64(b.Calls), try)
			}
			return nil
		})
	})
}

// countWaited tells the round trips a caller waits for by the quickest of some
// calls behind a long link.
func (b *bench) countWaited(ctx context.Context, e *entrant, c *results.Counts) error {
	return b.through(ctx, e, waitedDelay, func(client peers.Client, _ func() int64) error {
		return b.both(e, client, c, func(op measure.Operation, cost *results.Cost) error {
			quickest := time.Hour
			for range 8 {
				start := time.Now()
				if err := op(ctx, 0); err != nil {
					return err
				}
				quickest = min(quickest, time.Since(start))
			}
			cost.Waited = int(quickest / (2 * waitedDelay))
			return nil
		})
	})
}

// countServer counts over the whole life of a client, because PostgreSQL's
// sessions report their fsyncs when they end.
func (b *bench) countServer(ctx context.Context, e *entrant, c *results.Counts) error {
	life := func(calls int, of func(peers.Client) measure.Operation) (server.Counters, error) {
		before, err := b.server.Counters(ctx)
		if err != nil {
			return before, err
		}
		client, err := b.client(ctx, e, b.env(e, results.Socket))
		if err != nil {
			return before, err
		}
		err = times(ctx, calls, of(client))
		client.Close()
		if err := errors.Join(err, b.server.Quiet(ctx, e.database)); err != nil {
			return before, err
		}
		after, err := b.server.Counters(ctx)
		return after.Minus(before), err
	}
	both := func(calls int, of func(peers.Client) measure.Operation, cost *results.Cost) error {
		for try := 0; try < countTries || try < 4*countTries && isNoise(*cost); try++ {
			idle, err := life(0, of)
			if err != nil {
				return err
			}
			busy, err := life(calls, of)
			if err != nil {
				return err
			}
			spent := busy.Minus(idle)
			least(&cost.WAL, float64(spent.WAL)/float64(calls), try)
			least(&cost.XIDs, float64(spent.XIDs)/float64(calls), try)
			least(&cost.Fsyncs, float64(spent.Fsyncs)/float64(calls), try)
		}
		return nil
	}
	if err := b.server.Exec(ctx, e.database, "checkpoint"); err != nil {
		return err
	}
	// After a checkpoint the first change of a page logs it whole; where the server
	// has data checksums, to read it for the first time can be such a change.
	if _, err := life(1, firstCall); err != nil {
		return err
	}
	if _, err := life(len(e.seeds), func(client peers.Client) measure.Operation { return eachSeed(e, replayOf(client)) }); err != nil {
		return err
	}
	return errors.Join(
		both(b.Calls, firstCall, &c.First),
		both(b.Calls, func(client peers.Client) measure.Operation { return replayCall(e, replayOf(client)) }, &c.Replay))
}

// isNoise: so little is what the server logs by itself now and then.
func isNoise(c results.Cost) bool { return c.WAL > 0 && c.WAL < 20 }

func (b *bench) countAllocations(ctx context.Context, e *entrant, c *results.Counts) error {
	client, err := b.client(ctx, e, b.env(e, results.Socket))
	if err != nil {
		return err
	}
	defer client.Close()
	if err := e.know(ctx, client); err != nil {
		return err
	}
	return b.both(e, client, c, func(op measure.Operation, cost *results.Cost) error {
		return countAllocations(ctx, b.Calls, op, cost)
	})
}

func countAllocations(ctx context.Context, calls int, op measure.Operation, cost *results.Cost) error {
	if err := times(ctx, warmCalls, op); err != nil {
		return err
	}
	for try := range countTries {
		var before, after runtime.MemStats
		measure.Sleep(ctx, settle)
		runtime.GC()
		runtime.ReadMemStats(&before)
		if err := times(ctx, calls, op); err != nil {
			return err
		}
		measure.Sleep(ctx, settle)
		runtime.ReadMemStats(&after)
		least(&cost.Allocations, float64(after.Mallocs-before.Mallocs)/float64(calls), try)
		least(&cost.AllocBytes, float64(after.TotalAlloc-before.TotalAlloc)/float64(calls), try)
	}
	return nil
}

// countHeld samples the sessions that are not idle while duplicates wait for one
// call, less those that the call alone needs.
func (b *bench) countHeld(ctx context.Context, e *entrant, c *results.Counts) error {
	if e.Whole {
		return nil
	}
	client, err := b.client(ctx, e, b.env(e, results.Socket))
	if err != nil {
		return err
	}
	defer client.Close()
	// Opens the connections.
	if warm := measure.During(ctx, b.Pool, firstCall(client), measure.Lasting(ctx, b.Slice)); len(warm.Errors) > 0 {
		return warm.Errors[0]
	}
	alone, _, err := b.held(ctx, e, client, 1)
	if err != nil {
		return err
	}
	busy, executed, err := b.held(ctx, e, client, heldDuplicates)
	if err != nil {
		return err
	}
	c.Executed = executed
	c.Held = max(0, measure.Median(busy)-measure.Median(alone))
	for _, n := range busy {
		c.HeldMost = max(c.HeldMost, int(n-measure.Median(alone)))
	}
	return nil
}

func (b *bench) held(ctx context.Context, e *entrant, client peers.Client, callers int) (busy []float64, executed int, err error) {
	id := peers.NewCall().ID
	var executions atomic.Int64
	errs := make([]error, callers)
	var wg sync.WaitGroup
	asking, cancel := context.WithTimeout(ctx, stormBound)
	defer cancel()
	for i := range callers {
		wg.Go(func() {
			call := peers.CallOf(id)
			call.Hook = func(context.Context) {
				executions.Add(1)
				time.Sleep(heldWork)
			}
			_, errs[i] = peers.Insist(asking, client, call)
		})
	}
	measure.Sleep(ctx, heldWork/2)
	for until := time.Now().Add(heldWork / 4); time.Now().Before(until); measure.Sleep(ctx, 5*time.Millisecond) {
		n, err := b.server.Busy(ctx, e.database)
		if err != nil {
			return nil, 0, err
		}
		busy = append(busy, float64(n))
	}
	wg.Wait()
	return busy, int(executions.Load()), errors.Join(errs...)
}

// least keeps the smaller one, from the first try on.
func least(kept *float64, value float64, try int) {
	if try == 0 || value < *kept {
		*kept = max(value, 0)
	}
}
