package peers_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/bench/peers"
	"github.com/pgidem/idempotency/bench/server"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// setup opens a peer on a new database.
func setup(t testing.TB, p peers.Peer) (peers.Client, *pgxpool.Pool) {
	t.Helper()
	pool := pgtest.Empty(t)
	env := peers.Env{DSN: pgtest.URL(pool), MaxConns: 16}
	if p.Redis {
		redis, err := server.StartRedis()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(redis.Close)
		env.Redis = redis.Socket
	}
	if p.Steps {
		provider := server.StartProvider()
		t.Cleanup(provider.Close)
		env.Provider = provider.URL()
	}
	if _, err := pool.Exec(t.Context(), peers.BusinessTable); err != nil {
		t.Fatal(err)
	}
	if p.Prepare != nil {
		if err := p.Prepare(t.Context(), env); err != nil {
			t.Fatal(err)
		}
	}
	client, err := p.Open(t.Context(), env)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client, pool
}

func everyPeer() []peers.Peer { return slices.Concat(peers.All(false), peers.All(true)) }

func effects(t testing.TB, pool *pgxpool.Pool, id string) (n int) {
	t.Helper()
	if err := pool.QueryRow(context.Background(), "select count(*) from charges where key = $1", id).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestEveryPeerExecutesOnceAndReplaysItsAnswer(t *testing.T) {
	for _, p := range everyPeer() {
		t.Run(p.Name, func(t *testing.T) {
			client, pool := setup(t, p)
			call := peers.NewCall()
			written := 0
			call.Hook = func(context.Context) {
				written++
			}
			first, err := client.Do(t.Context(), call)
			if err != nil {
				t.Fatal(err)
			}
			replay := client.Do
			if baseline, ok := client.(peers.Baseline); ok {
				if err := baseline.Seed(t.Context(), call, first); err != nil {
					t.Fatal(err)
				}
				replay = baseline.Replay
			}
			for range 3 {
				again, err := replay(t.Context(), peers.CallOf(call.ID))
				if err != nil || again != first {
					t.Errorf("a replay returned %q, %v; the first call %q", again, err, first)
				}
			}
			var id int64
			if err := pool.QueryRow(t.Context(), "select id from charges where key = $1", call.ID).Scan(&id); err != nil {
				t.Fatal(err)
			}
			if want := call.Answer(id); first != want {
				t.Errorf("the answer is %q, want %q", first, want)
			}
			if n := effects(t, pool, call.ID); n != 1 || written != 1 {
				t.Errorf("%d effects, and Written was called %d times", n, written)
			}
		})
	}
}

// A peer that does not wait says so with ErrInProgress, and never executes twice,
// but for those of which it is known that they do.
func TestEveryPeerExecutesParallelDuplicatesOnce(t *testing.T) {
	for _, p := range everyPeer() {
		t.Run(p.Name, func(t *testing.T) {
			client, pool := setup(t, p)
			if _, ok := client.(peers.Baseline); ok {
				return // it is what happens without
			}
			id := peers.NewCall().ID
			var answers sync.Map
			var distinct atomic.Int32
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					answer, err := peers.Insist(t.Context(), client, peers.CallOf(id))
					if err != nil {
						t.Error(err)
					}
					if _, seen := answers.LoadOrStore(answer, true); !seen {
						distinct.Add(1)
					}
				})
			}
			wg.Wait()
			n := effects(t, pool, id)
			t.Logf("%d effects, %d answers", n, distinct.Load())
			if n < 1 || (n > 1 || distinct.Load() != 1) && !p.Races {
				t.Errorf("%d effects, %d answers", n, distinct.Load())
			}
		})
	}
}

func BenchmarkFirstCall(b *testing.B) {
	for _, p := range everyPeer() {
		b.Run(p.Name, func(b *testing.B) {
			client, _ := setup(b, p)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.Do(b.Context(), peers.NewCall()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkReplay(b *testing.B) {
	for _, p := range everyPeer() {
		b.Run(p.Name, func(b *testing.B) {
			client, _ := setup(b, p)
			call := peers.NewCall()
			answer, err := client.Do(b.Context(), call)
			do := client.Do
			if baseline, ok := client.(peers.Baseline); ok && err == nil {
				err = baseline.Seed(b.Context(), call, answer)
				do = baseline.Replay
			}
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if again, err := do(b.Context(), call); err != nil || again != answer {
					b.Fatal(again, err)
				}
			}
		})
	}
}

// BenchmarkDuplicates is 100 callers of one key at a time, the first of which
// executes: what each costs.
func BenchmarkDuplicates(b *testing.B) {
	for _, p := range everyPeer() {
		b.Run(p.Name, func(b *testing.B) {
			client, _ := setup(b, p)
			const callers = 100
			for b.Loop() {
				id := peers.NewCall().ID
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						if _, err := peers.Insist(b.Context(), client, peers.CallOf(id)); err != nil {
							b.Error(fmt.Errorf("%s: %w", id, err))
						}
					})
				}
				wg.Wait()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*callers), "ns/caller")
		})
	}
}
