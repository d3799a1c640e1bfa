package run

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgidem/idempotency/bench/measure"
	"github.com/pgidem/idempotency/bench/peers"
	"github.com/pgidem/idempotency/bench/results"
)

const (
	// stormBound is how long the duplicates ask for their answer.
	stormBound = 15 * time.Second

	// stormPairs is how many windows without and with storms are compared.
	stormPairs = 3

	// distinct is the number of workers on distinct keys.
	distinct = 8
)

func (b *bench) storms(ctx context.Context) error {
	for _, linkName := range []string{results.Socket, results.Delay} {
		for _, e := range b.divisible() {
			if err := b.storm(ctx, e, linkName, b.Duplicates, b.blow); err != nil {
				return err
			}
			if e.Name != peers.Ours || b.Many <= b.Duplicates {
				continue
			}
			for _, kind := range []storming{b.blow, b.stand} {
				if err := b.storm(ctx, e, linkName, b.Many, kind); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// storm compares what workers on distinct keys get in calm windows with what
// they get in windows that begin with a storm of duplicates of one key. Such a
// window ends when the last duplicate has its answer, at the earliest like the
// calm one.
func (b *bench) storm(ctx context.Context, e *entrant, linkName string, duplicates int, kind storming) error {
	b.logf("storm of %d, %s, beside %s", duplicates, linkName, e.Name)
	client, err := b.client(ctx, e, b.env(e, linkName))
	if err != nil {
		return err
	}
	defer client.Close()
	out := results.Storm{Link: linkName, Peer: e.Name, Duplicates: duplicates}
	op := firstCall(client)
	measure.During(ctx, distinct, op, measure.Lasting(ctx, b.Window/4)) // the warm-up
	var calm, wild measure.Slice
	var p99s, rates []float64
	var tooks []time.Duration
	for range stormPairs {
		runtime.GC()
		c := measure.During(ctx, distinct, op, measure.Lasting(ctx, b.Window))
		start := time.Now()
		w := measure.During(ctx, distinct, op, func() {
			kind(ctx, client, duplicates, &out)
			tooks = append(tooks, time.Since(start))
			measure.Sleep(ctx, b.Window-time.Since(start))
		})
		if len(c.Latencies) == 0 {
			return fmt.Errorf("%s: no call succeeds in the calm: %w", e.Name, errors.Join(append(c.Errors, ctx.Err())...))
		}
		p99s = append(p99s, measure.Ratio(w.Quantile(0.99), c.Quantile(0.99)))
		rates = append(rates, w.PerSecond()/c.PerSecond())
		calm.Add(c)
		wild.Add(w)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(start) > 4*b.Window { // it has shown what it does
			break
		}
	}
	if out.Failed = len(wild.Errors); out.Failed > 0 && out.Error == "" {
		out.Error = wild.Errors[0].Error()
	}
	out.Took, out.Calm, out.Wild = measure.Median(tooks), calm.Load(), wild.Load()
	out.P99Ratio, out.RateRatio = measure.Median(p99s), measure.Median(rates)
	b.run.Storms = append(b.run.Storms, out)
	return nil
}

// A storming makes one storm, and adds what it saw of it.
type storming func(ctx context.Context, client peers.Client, duplicates int, out *results.Storm)

// stand is for comparison: as many goroutines that only wait for a channel, and are
// woken all at once when the function of the others would be done.
func (b *bench) stand(ctx context.Context, _ peers.Client, duplicates int, out *results.Storm) {
	out.Peer = results.Standing
	done, cancel := context.WithTimeout(ctx, b.Work)
	defer cancel()
	var wg sync.WaitGroup
	for range duplicates {
		wg.Go(func() { <-done.Done() })
	}
	wg.Wait()
	out.Storms++
}

// blow is one storm. The business function of its key takes b.Work, so that there
// is something to wait for.
func (b *bench) blow(ctx context.Context, client peers.Client, duplicates int, out *results.Storm) {
	id := peers.NewCall().ID
	var executions, unanswered atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(ctx, stormBound)
	defer cancel()
	for range duplicates {
		wg.Go(func() {
			call := peers.CallOf(id)
			call.Hook = func(context.Context) {
				executions.Add(1)
				time.Sleep(b.Work)
			}
			if _, err := peers.Insist(ctx, client, call); err != nil {
				unanswered.Add(1)
				failed.Store(&err)
			}
		})
	}
	wg.Wait()
	out.Storms++
	out.Executions += int(executions.Load())
	out.Unanswered += int(unanswered.Load())
	if err := failed.Load(); err != nil && out.Error == "" {
		out.Error = (*err).Error()
	}
}
