// Package measure runs an operation on some goroutines for a while, and says what
// they got.
package measure

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/pgidem/idempotency/bench/results"
)

// An Operation is one call of a worker. It returns an error if the answer is
// not right, too.
type Operation func(ctx context.Context, worker int) error

// A Slice is what some workers did in a stretch of time.
type Slice struct {
	Latencies []time.Duration // of calls that succeeded
	Errors    []error
	Took      time.Duration
}

// During repeats op on some workers until work returns.
func During(ctx context.Context, workers int, op Operation, work func()) Slice {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	var all Slice
	var wg sync.WaitGroup
	start := time.Now()
	for w := range workers {
		wg.Go(func() {
			own := repeat(ctx, w, op)
			mu.Lock()
			defer mu.Unlock()
			all.Add(own)
		})
	}
	work()
	cancel()
	wg.Wait()
	all.Took = time.Since(start)
	return all
}

// repeat finishes the call that it is at when ctx ends.
func repeat(ctx context.Context, worker int, op Operation) (s Slice) {
	whole := context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		start := time.Now()
		if err := op(whole, worker); err != nil {
			s.Errors = append(s.Errors, err)
			time.Sleep(time.Millisecond)
			continue
		}
		s.Latencies = append(s.Latencies, time.Since(start))
	}
	return s
}

// Lasting is work that lasts so long.
func Lasting(ctx context.Context, d time.Duration) func() {
	return func() { Sleep(ctx, d) }
}

// Sleep returns early when ctx ends.
func Sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// Add joins two stretches.
func (s *Slice) Add(more Slice) {
	s.Latencies = append(s.Latencies, more.Latencies...)
	s.Errors = append(s.Errors, more.Errors...)
	s.Took += more.Took
}

// Mean is that of the latencies.
func (s *Slice) Mean() time.Duration {
	if len(s.Latencies) == 0 {
		return 0
	}
	var sum time.Duration
	for _, l := range s.Latencies {
		sum += l
	}
	return sum / time.Duration(len(s.Latencies))
}

// PerSecond counts the calls of all workers together.
func (s *Slice) PerSecond() float64 {
	if s.Took == 0 {
		return 0
	}
	return float64(len(s.Latencies)) / s.Took.Seconds()
}

// Quantile is the latency that a share q of the calls did not exceed.
func (s *Slice) Quantile(q float64) time.Duration {
	if len(s.Latencies) == 0 {
		return 0
	}
	slices.Sort(s.Latencies)
	return s.Latencies[min(int(q*float64(len(s.Latencies))), len(s.Latencies)-1)]
}

// Median is 0 for no values.
func Median[T ~int | ~int64 | ~float64](values []T) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}

// Load is what callers got.
func (s *Slice) Load() results.Load {
	return results.Load{P50: s.Quantile(0.5), P99: s.Quantile(0.99), Longest: s.Quantile(1), PerSecond: s.PerSecond()}
}

// Ratio is 0 when there is nothing to compare with.
func Ratio(a, b time.Duration) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}
