package run

import (
	"context"
	"slices"
	"sync"
	"time"
)

// An operation is one call of a worker. It returns an error if the answer is
// not right, too.
type operation func(ctx context.Context, worker int) error

// A slice is what some workers did in a stretch of time.
type slice struct {
	latencies []time.Duration // of calls that succeeded
	errors    []error
	took      time.Duration
}

// during repeats op on some workers until work returns.
func during(ctx context.Context, workers int, op operation, work func()) slice {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	var all slice
	var wg sync.WaitGroup
	start := time.Now()
	for w := range workers {
		wg.Go(func() {
			own := repeat(ctx, w, op)
			mu.Lock()
			defer mu.Unlock()
			all.add(own)
		})
	}
	work()
	cancel()
	wg.Wait()
	all.took = time.Since(start)
	return all
}

// repeat finishes the call that it is at when ctx ends.
func repeat(ctx context.Context, worker int, op operation) (s slice) {
	whole := context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		start := time.Now()
		if err := op(whole, worker); err != nil {
			s.errors = append(s.errors, err)
			time.Sleep(time.Millisecond)
			continue
		}
		s.latencies = append(s.latencies, time.Since(start))
	}
	return s
}

// lasting is work that lasts so long.
func lasting(ctx context.Context, d time.Duration) func() {
	return func() { sleep(ctx, d) }
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (s *slice) add(more slice) {
	s.latencies = append(s.latencies, more.latencies...)
	s.errors = append(s.errors, more.errors...)
	s.took += more.took
}

func (s *slice) mean() time.Duration {
	if len(s.latencies) == 0 {
		return 0
	}
	var sum time.Duration
	for _, l := range s.latencies {
		sum += l
	}
	return sum / time.Duration(len(s.latencies))
}

func (s *slice) perSecond() float64 {
	if s.took == 0 {
		return 0
	}
	return float64(len(s.latencies)) / s.took.Seconds()
}

// quantile is the latency that a share q of the calls did not exceed.
func (s *slice) quantile(q float64) time.Duration {
	if len(s.latencies) == 0 {
		return 0
	}
	slices.Sort(s.latencies)
	return s.latencies[min(int(q*float64(len(s.latencies))), len(s.latencies)-1)]
}

func median[T ~int | ~int64 | ~float64](values []T) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}
