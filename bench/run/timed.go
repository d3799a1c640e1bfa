package run

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"

	"github.com/pgidem/idempotency/bench/measure"
	"github.com/pgidem/idempotency/bench/peers"
	"github.com/pgidem/idempotency/bench/results"
)

// seedCalls is the number of keys that are replayed.
const seedCalls = 500

// mixNew is one in how many calls of the mix is a first call.
const mixNew = 20

func (b *bench) first(ctx context.Context) error {
	if err := b.timed(ctx, results.First, results.Socket, []int{1, 8}); err != nil {
		return err
	}
	callers := append([]int{1, 8}, b.Callers...)
	slices.Sort(callers)
	return b.timed(ctx, results.First, results.Delay, slices.Compact(callers))
}

func (b *bench) replay(ctx context.Context) error {
	return errors.Join(
		b.timed(ctx, results.Replay, results.Socket, []int{1, 8}),
		b.timed(ctx, results.Replay, results.Delay, []int{1, 8}))
}

func (b *bench) mix(ctx context.Context) error {
	return errors.Join(
		b.timed(ctx, results.Mix, results.Socket, []int{8}),
		b.timed(ctx, results.Mix, results.Delay, []int{8}))
}

// A lane is a peer in a section.
type lane struct {
	*entrant
	name   string // in the results
	client peers.Client
	ops    measure.Operation
	all    measure.Slice
	ratios []float64
}

// timed measures a section at some concurrencies, the peers interleaved: each
// round gives every peer a slice, and compares it with the bare transaction's
// slice of the same round.
func (b *bench) timed(ctx context.Context, section, linkName string, concurrencies []int) error {
	var lanes []*lane
	defer func() {
		for _, l := range lanes {
			l.client.Close()
		}
	}()
	for _, e := range b.entrants {
		client, err := b.client(ctx, e, b.env(e, linkName))
		if err != nil {
			return err
		}
		lanes = append(lanes, &lane{entrant: e, name: e.Name, client: client})
		if err := b.seed(ctx, e, client); err != nil {
			return err
		}
		if section == results.First {
			continue
		}
		if err := e.know(ctx, client); err != nil {
			return err
		}
		if stranger, ok := client.(peers.Stranger); ok && section == results.Replay {
			lanes = append(lanes, &lane{entrant: e, name: e.Name + results.Unknown, client: unknown{stranger}})
		}
	}
	for _, callers := range concurrencies {
		b.logf("%s, %s, %d callers", section, linkName, callers)
		if err := b.rounds(ctx, section, lanes, callers); err != nil {
			return err
		}
		b.report(section, linkName, callers, lanes)
	}
	return nil
}

func (b *bench) rounds(ctx context.Context, section string, lanes []*lane, callers int) error {
	for _, l := range lanes {
		l.all, l.ratios, l.ops = measure.Slice{}, nil, operationOf(section, l.entrant, l.client)
		// The warm-up: connections, prepared statements, pages in memory.
		warm := measure.During(ctx, callers, l.ops, measure.Lasting(ctx, b.Slice))
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case len(warm.Latencies) == 0 && len(warm.Errors) > 0:
			return fmt.Errorf("%s: no call succeeds: %w", l.name, warm.Errors[0])
		}
	}
	for round := range b.Rounds {
		stretches := make([]measure.Slice, len(lanes))
		for i := range lanes {
			at := (i + round) % len(lanes) // so that none always follows the same one
			runtime.GC()                   // nobody pays for the garbage of the one before
			stretches[at] = measure.During(ctx, callers, lanes[at].ops, measure.Lasting(ctx, b.Slice))
		}
		for i, l := range lanes {
			if bare, own := stretches[0].Mean(), stretches[i].Mean(); bare > 0 && own > 0 {
				l.ratios = append(l.ratios, float64(own)/float64(bare))
			}
			l.all.Add(stretches[i])
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

func (b *bench) report(section, linkName string, callers int, lanes []*lane) {
	for _, l := range lanes {
		t := results.Timed{
			Section: section, Link: linkName, Callers: callers, Peer: l.name,
			Calls: len(l.all.Latencies), Ratio: measure.Median(l.ratios), Ratios: l.ratios,
			Mean: l.all.Mean(), P50: l.all.Quantile(0.5), P99: l.all.Quantile(0.99),
			PerSecond: l.all.PerSecond(), Errors: len(l.all.Errors),
		}
		if t.Errors > 0 {
			t.Error = l.all.Errors[0].Error()
		}
		b.run.Timed = append(b.run.Timed, t)
	}
}

func operationOf(section string, e *entrant, client peers.Client) measure.Operation {
	switch section {
	case results.First:
		return firstCall(client)
	case results.Replay:
		return replayCall(e, replayOf(client))
	}
	first, replay := firstCall(client), replayCall(e, replayOf(client))
	return func(ctx context.Context, worker int) error {
		if rand.IntN(mixNew) == 0 {
			return first(ctx, worker)
		}
		return replay(ctx, worker)
	}
}

func firstCall(client peers.Client) measure.Operation {
	return func(ctx context.Context, _ int) error {
		_, err := client.Do(ctx, peers.NewCall())
		return err
	}
}

// ErrWrongAnswer says that a replay did not return what the first call did.
var ErrWrongAnswer = errors.New("another answer than the first call's")

// An unknown client is one of which no key is known.
type unknown struct{ peers.Stranger }

func (u unknown) Do(ctx context.Context, call *peers.Call) (string, error) {
	return u.Unknown(ctx, call)
}
func (u unknown) Close() {} // its Stranger's lane does that

type do func(context.Context, *peers.Call) (answer string, err error)

// replayOf is how a client replays.
func replayOf(client peers.Client) do {
	if baseline, ok := client.(peers.Baseline); ok {
		return baseline.Replay
	}
	return client.Do
}

// replayCall replays a random seed.
func replayCall(e *entrant, do do) measure.Operation {
	return func(ctx context.Context, _ int) error {
		return e.seeds[rand.IntN(len(e.seeds))].replay(ctx, do)
	}
}

// eachSeed replays one after the other.
func eachSeed(e *entrant, do do) measure.Operation {
	next := 0
	return func(ctx context.Context, _ int) error {
		s := e.seeds[next%len(e.seeds)]
		next++
		return s.replay(ctx, do)
	}
}

func (s seed) replay(ctx context.Context, do do) error {
	answer, err := do(ctx, s.call)
	if err == nil && answer != s.answer {
		return fmt.Errorf("%w: %q, and not %q", ErrWrongAnswer, answer, s.answer)
	}
	return err
}

// seed records the answers that are to be replayed, once in each database.
func (b *bench) seed(ctx context.Context, e *entrant, client peers.Client) error {
	if e.seeds != nil {
		return nil
	}
	e.seeds = make([]seed, seedCalls)
	err := inParallel(len(e.seeds), func(i int) (err error) {
		e.seeds[i], err = newSeed(ctx, client)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: seed: %w", e.Name, err)
	}
	return nil
}

// know replays every seed once: a client is to know each from the first round on.
func (e *entrant) know(ctx context.Context, client peers.Client) error {
	do := replayOf(client)
	if err := inParallel(len(e.seeds), func(i int) error { return e.seeds[i].replay(ctx, do) }); err != nil {
		return fmt.Errorf("%s: replay: %w", e.Name, err)
	}
	return nil
}

// inParallel calls do for 0 to n-1, on 8 goroutines.
func inParallel(n int, do func(i int) error) error {
	errs := make([]error, n)
	next := make(chan int)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range next {
				errs[i] = do(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	return errors.Join(errs...)
}

func newSeed(ctx context.Context, client peers.Client) (seed, error) {
	s := seed{call: peers.NewCall()}
	var err error
	if s.answer, err = client.Do(ctx, s.call); err != nil {
		return s, err
	}
	if baseline, ok := client.(peers.Baseline); ok {
		err = baseline.Seed(ctx, s.call, s.answer)
	}
	return s, err
}
