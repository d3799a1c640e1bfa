package recipes

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func self(m string) string { return m }

func TestBatchRunsInParallelUpToItsLimit(t *testing.T) {
	t.Parallel()
	messages := strings.Split("abcdefghijklmnopqrst", "")
	var begun, now atomic.Int64
	four := make(chan bool)
	err := inLanes(t.Context(), messages, self, 4, func(context.Context, string) error {
		if n := now.Add(1); n > 4 {
			t.Errorf("%d at a time", n)
		}
		defer now.Add(-1)
		if begun.Add(1) == 4 {
			close(four)
		}
		receive(t, four, "four at a time")
		for range 100 {
			runtime.Gosched() // lets a fifth in, if there is one
		}
		return nil
	})
	if err != nil || begun.Load() != 20 {
		t.Errorf("%d messages, %v", begun.Load(), err)
	}
}

func TestBatchKeepsTheOrderOfALane(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	got := make(map[byte]string)
	messages := []string{"a1", "b1", "a2", "a3", "b2", "c1", "b3", "a4"}
	err := inLanes(t.Context(), messages, func(m string) string { return m[:1] }, 8, func(_ context.Context, m string) error {
		mu.Lock()
		defer mu.Unlock()
		got[m[0]] += m[1:]
		return nil
	})
	if err != nil || got['a'] != "1234" || got['b'] != "123" || got['c'] != "1" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestBatchBeginsNothingAfterAnErrorAndReturnsIt(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	var mu sync.Mutex
	var begun []string
	err := inLanes(t.Context(), []string{"a1", "b1", "a2", "c1"}, func(m string) string { return m[:1] }, 1, func(ctx context.Context, m string) error {
		mu.Lock()
		defer mu.Unlock()
		begun = append(begun, m)
		return broken
	})
	if err != broken || !slices.Equal(begun, []string{"a1"}) {
		t.Errorf("%v, after %v", err, begun)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := inLanes(ctx, []string{"a"}, self, 1, func(context.Context, string) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := inLanes(t.Context(), nil, self, 1, func(context.Context, string) error { return broken }); err != nil {
		t.Errorf("got %v", err)
	}
}

// BenchmarkBatchOf100 handles a hundred messages in three ways, in turn, so that what else
// the machine does is the same for all. It prints the time of each as a multiple of that of
// Do, one after the other:
//
//	go -C internal/testdb run . -C examples/recipes -- go test -run '^$' -bench Batch -benchtime 20x .
func BenchmarkBatchOf100(b *testing.B) {
	for _, distance := range []time.Duration{0, time.Millisecond} {
		b.Run(fmt.Sprintf("server=%v", distance), func(b *testing.B) { benchmarkBatch(b, distance) })
	}
}

func benchmarkBatch(b *testing.B, distance time.Duration) {
	pool := through(b, database(b), distance)
	store, ctx := idempotency.New(pool), b.Context()
	do := func(ctx context.Context, id string) error {
		_, err := idempotencyDo(ctx, store, id, charge)
		return err
	}
	ways := []struct {
		name string
		all  func(ids []string) error
		took []time.Duration
	}{
		{name: "one-by-one", all: func(ids []string) error { return inLanes(ctx, ids, self, 1, do) }},
		{name: "8-at-once", all: func(ids []string) error { return inLanes(ctx, ids, self, 8, do) }},
		{name: "DoTx-in-a-loop", all: func(ids []string) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				for _, id := range ids {
					_, _, err := idempotency.DoTx(ctx, store, tx, idempotency.Key{Scope: "charge", ID: id}, func(ctx context.Context, tx pgx.Tx) (receipt, error) {
						return charge(ctx, tx, orderMessage(id))
					})
					if err != nil {
						return err
					}
				}
				return nil
			})
		}},
	}
	round := 0
	run := func(measured bool) {
		round++
		for i := range ways {
			ids := make([]string, 100)
			for n := range ids {
				ids[n] = fmt.Sprintf("%d-%d-%d", round, i, n)
			}
			began := time.Now()
			if err := ways[i].all(ids); err != nil {
				b.Fatal(err)
			}
			if measured {
				ways[i].took = append(ways[i].took, time.Since(began))
			}
		}
	}
	run(false) // opens the connections
	for b.Loop() {
		run(true)
	}
	median := func(took []time.Duration) time.Duration {
		slices.Sort(took)
		return took[len(took)/2]
	}
	first := median(ways[0].took)
	b.ReportMetric(0, "ns/op") // that of all three says nothing
	b.ReportMetric(float64(first.Microseconds())/100, "µs/message-one-by-one")
	for _, w := range ways[1:] {
		b.ReportMetric(float64(median(w.took))/float64(first), "x-"+w.name)
	}
}

// through returns a pool with 8 connections to a server that is distance away.
func through(b *testing.B, pool *pgxpool.Pool, distance time.Duration) *pgxpool.Pool {
	server := pool.Config().ConnConfig
	network, at := "tcp", fmt.Sprintf("%s:%d", server.Host, server.Port)
	if strings.HasPrefix(server.Host, "/") {
		network, at = "unix", fmt.Sprintf("%s/.s.PGSQL.%d", server.Host, server.Port)
	}
	proxy := pgproxy.New(b, network, at)
	if distance > 0 {
		proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
			if !m.FromServer && (m.Type == 'S' || m.Type == 'Q') { // the last message of a request
				time.Sleep(distance)
			}
			return pgproxy.Pass
		})
	}
	return pgtest.Pool(b, pool, pgtest.MaxConns(8), func(c *pgxpool.Config) {
		c.ConnConfig.Host, c.ConnConfig.Port, c.ConnConfig.Fallbacks = "127.0.0.1", proxy.Port(), nil
	})
}
