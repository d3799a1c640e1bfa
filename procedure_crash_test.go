package idempotency_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
)

// ride takes a ride in a worker.
func (j job) ride(ctx context.Context, store *idempotency.Store, id string) report {
	for start := time.Now(); ; {
		got, replayed, err := takeRide.Do(ctx, store, rideKey(id), fare{Rider: id, Amount: 20, Provider: j.Provider})
		if err != nil && !j.Once && time.Since(start) < 2*time.Minute {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		r := report{Ride: id, Receipt: got, Replayed: replayed}
		if err != nil {
			r.Err = err.Error()
		}
		return r
	}
}

// A seam is a moment of a ride: the nth statement that is sent or answered, on a new
// connection, or a stage at the provider.
type seam struct {
	n     int64
	stage string
}

func (s seam) String() string { return fmt.Sprint(s.stage, s.n) }

// counts a message that begins or ends a statement.
func counts(m pgproxy.Message) bool {
	return m.FromServer && m.Tag != "" || !m.FromServer && (m.Type == 'B' || m.Type == 'Q')
}

// seams are those of a ride on a new connection: every third, or all in make test-long.
func (j *journey) seams() (all []seam) {
	j.Helper()
	store, proxy := j.through(idempotency.Config{})
	var n atomic.Int64
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if counts(m) {
			n.Add(1)
		}
		return pgproxy.Pass
	})
	if _, _, err := j.rideOn(store, "to count", 20); err != nil {
		j.Fatal(err)
	}
	for i := int64(1); i <= n.Load(); i += long[int64](3, 1) {
		all = append(all, seam{n: i})
	}
	return append(all, seam{stage: "received"}, seam{stage: "charged"})
}

// rule calls hit at the seam, once.
func (s seam) rule(hit func() pgproxy.Verdict) (rule func(pgproxy.Message) pgproxy.Verdict, passed func() bool) {
	var n atomic.Int64
	return func(m pgproxy.Message) pgproxy.Verdict {
		if s.n > 0 && counts(m) && n.Add(1) == s.n {
			return hit()
		}
		return pgproxy.Pass
	}, func() bool { return n.Load() >= s.n }
}

// at starts a worker that takes a ride, and sends it a signal at the seam.
func (j *journey) at(s seam, id string, signal syscall.Signal, verdict pgproxy.Verdict, maxIdle time.Duration) *process {
	j.Helper()
	_, proxy := j.through(idempotency.Config{})
	worker := make(chan *process, 1)
	reached := make(chan struct{})
	hit := func() pgproxy.Verdict {
		(<-worker).signal(signal)
		close(reached)
		return verdict
	}
	rule, _ := s.rule(hit)
	proxy.SetRule(rule)
	if s.stage != "" {
		var once atomic.Bool
		j.p.onStage(id, func(stage string) {
			if stage == s.stage && once.CompareAndSwap(false, true) {
				hit()
			}
		})
	}
	w := j.spawn(job{Port: proxy.Port(), Callers: 1, Provider: j.p.URL, Rides: []string{id}, MaxIdle: maxIdle, Once: true})
	worker <- w
	select {
	case <-reached:
	case <-time.After(30 * time.Second):
		j.Fatal("the worker never reached the seam")
	}
	return w
}

func TestRideKilledAtEverySeamIsTakenOnce(t *testing.T) {
	t.Parallel()
	j := setupRides(t, idempotency.Config{})
	seams := j.seams()
	t.Run("kill", func(t *testing.T) {
		for _, s := range seams {
			t.Run(s.String(), func(t *testing.T) {
				t.Parallel()
				j := j.in(t)
				id := "killed at " + s.String()
				j.at(s, id, syscall.SIGKILL, pgproxy.Drop, 0)
				start := time.Now()
				j.next(id)
				t.Logf("the next call had its answer after %v", time.Since(start).Round(time.Millisecond))
			})
		}
	})
	j.once(len(seams) + 1)
	if j.p.overlaps.Load() > 0 {
		t.Errorf("%d times two were in one call", j.p.overlaps.Load())
	}
}

// What a frozen process has handed to the kernel still arrives.
func TestRideFrozenAtEverySeamIsTakenOnceAndTheThawedOneChangesNothing(t *testing.T) {
	t.Parallel()
	j := setupRides(t, idempotency.Config{})
	seams := j.seams()
	t.Run("freeze", func(t *testing.T) {
		for _, s := range seams {
			t.Run(s.String(), func(t *testing.T) {
				t.Parallel()
				j := j.in(t)
				id := "frozen at " + s.String()
				w := j.at(s, id, syscall.SIGSTOP, pgproxy.Pass, 500*time.Millisecond)
				got := j.next(id)
				w.signal(syscall.SIGCONT)
				if r := w.report(); r.Err == "" && r.Receipt != got {
					t.Errorf("the thawed process got %+v, and the next call %+v", r, got)
				}
			})
		}
	})
	j.once(len(seams) + 1)
}

func TestRideCutOffAtEverySeamIsTakenOnceByTheSameCall(t *testing.T) {
	t.Parallel()
	for name, verdict := range map[string]pgproxy.Verdict{"before": pgproxy.Drop, "behind": pgproxy.PassAndCut} {
		j := setupRides(t, idempotency.Config{})
		seams := j.seams()
		for _, s := range seams {
			if s.stage != "" {
				continue
			}
			id := fmt.Sprint("cut ", name, s)
			store, proxy := j.through(idempotency.Config{})
			rule, passed := s.rule(func() pgproxy.Verdict { return verdict })
			proxy.SetRule(rule)
			first, _, err := j.rideOn(store, id, 20)
			if err != nil {
				t.Errorf("%s: %v", id, err)
			}
			if !passed() {
				t.Errorf("%s: the seam was not passed", id)
			}
			if got := j.next(id); got != first {
				t.Errorf("%s: %+v, then %+v", id, first, got)
			}
		}
		rides := len(seams) - 1
		j.once(rides)
		if int(j.p.requests.Load()) != rides {
			t.Errorf("%s: %d requests for %d rides: a call that had returned was made again", name, j.p.requests.Load(), rides)
		}
	}
}

func TestFiftyDuplicatesOfARideInTwoProcessesTakeItOnce(t *testing.T) {
	t.Parallel()
	j := setupRides(t, idempotency.Config{})
	j.p.delay.Store(int64(50 * time.Millisecond))
	j.p.lose.Store(30)
	var workers []*process
	for range 2 {
		workers = append(workers, j.spawn(job{Callers: 25, Provider: j.p.URL, Rides: []string{"a"}}))
	}
	var first receipt
	for _, w := range workers {
		for range 25 {
			r := w.report()
			if first == (receipt{}) {
				first = r.Receipt
			}
			if r.Err != "" || r.Receipt != first {
				t.Errorf("%+v, others got %+v", r, first)
			}
		}
	}
	j.once(1)
	if j.p.overlaps.Load() > 0 {
		t.Error("two at a time in one call")
	}
}

// Two processes take the same rides, are killed and started again, and lose their
// connections and the provider's answers.
func TestRidesInAStormOfKillsAreTakenOnce(t *testing.T) {
	t.Parallel()
	j := setupRides(t, idempotency.Config{})
	j.p.delay.Store(int64(5 * time.Millisecond))
	j.p.lose.Store(20)
	_, proxy := j.through(idempotency.Config{})
	rides, kills, cuts := 0, 0, 0
	for end := time.Now().Add(long(3*time.Second, 10*time.Minute)); time.Now().Before(end); {
		var batch []string
		for range 6 {
			rides++
			batch = append(batch, fmt.Sprint("storm ", rides))
		}
		var workers [2]*process
		spawn := func(i int) {
			workers[i] = j.spawn(job{Port: proxy.Port(), Callers: 2, Provider: j.p.URL, Rides: batch})
		}
		spawn(0)
		spawn(1)
		for range 6 {
			time.Sleep(time.Duration(rand.N(150)) * time.Millisecond)
			i := rand.N(2)
			if rand.N(3) == 0 {
				proxy.CutAll()
				cuts++
				continue
			}
			_ = workers[i].cmd.Process.Kill()
			_ = workers[i].cmd.Wait()
			kills++
			spawn(i)
		}
		for _, w := range workers {
			for range 2 * len(batch) {
				if r := w.report(); r.Err != "" {
					t.Errorf("%+v", r)
				}
			}
		}
	}
	j.once(rides)
	t.Logf("%d rides, %d kills, %d cuts, %d requests at the provider", rides, kills, cuts, j.p.requests.Load())
}

// Between the commit of a step and the transaction of the next one nobody has the lock.
// What was recorded meanwhile must be found out by comparing, not by the lock.
func TestStepThatAnotherAttemptHasMadeMeanwhileIsNotMadeAgain(t *testing.T) {
	t.Parallel()
	for name, part := range map[string]func(calls *atomic.Int64) part{
		"step": func(*atomic.Int64) part { return ok("b") },
		"call": func(calls *atomic.Int64) part { return answers("b", calls) },
	} {
		b := setup(t, idempotency.Config{})
		var calls atomic.Int64
		store, proxy := b.through(idempotency.Config{})
		held, release := make(chan struct{}), make(chan struct{})
		var begins atomic.Int64
		proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
			if bound("begin")(m) && begins.Add(1) == 2 {
				close(held)
				<-release
			}
			return pgproxy.Pass
		})
		first := make(chan error, 1)
		go func() {
			_, _, err := procedureOf(ok("a"), part(&calls), fails("c")).Do(t.Context(), store, b.key, 7)
			first <- err
		}()
		<-held
		if b.pool.Config().ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol {
			close(release) // the two are one message, and nothing can come between them
		} else {
			b.eventually("the first step is committed", func() bool { return len(b.unfinished()) == 1 })
			b.wantErr(b.proceed(ok("a"), part(&calls), fails("c")), errNoAnswer)
			close(release)
		}
		b.wantErr(<-first, errNoAnswer)
		if n := int(calls.Load()) + query[int](b, "select count(*) from charges"); n != 2 {
			t.Errorf("%s: %d effects, want 2", name, n)
		}
	}
}
