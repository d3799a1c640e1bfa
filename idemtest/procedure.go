package idemtest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgproxy"
)

// A ProcedureProgram is what [StormProcedure] tests. Start, Input and Effects are required.
type ProcedureProgram[In, Out any] struct {
	// Start makes the procedure, once for each StormProcedure. Its calls have to send
	// their requests to provider, which is the URL of an HTTP server that keeps idempotency
	// keys: to provider itself or a path below it. Pool is that of [Program.Start].
	Start func(pool *pgxpool.Pool, provider string) idempotency.Procedure[In, Out]

	// Input makes the input of the operation with id, the same each time that it is called.
	Input func(id string) In

	// Effects counts the effects in the database that the operation with id has had, for
	// example the rows that it has written: one, when it has ended. What the provider has
	// done is counted there. Effects is also asked while the operation is under way.
	Effects func(ctx context.Context, pool *pgxpool.Pool, id string) (int, error)

	// Answer is what the provider answers to a request that it carries out; it is called
	// once for each key, and for each request that has none. Requests of the methods GET,
	// HEAD and OPTIONS have no effect and need no key. Default: 200, with an id of its own
	// in a JSON object.
	Answer http.HandlerFunc

	// KeyOf returns the idempotency key of a request to the provider, or no text. It may
	// read the body. Default: the header field Idempotency-Key, without quotes.
	KeyOf func(*http.Request) string

	// Prepare, Config and Timeout are those of [Program]. Config.CallPool must be nil, and a
	// negative Config.Wait is the default one.
	Prepare func(ctx context.Context, pool *pgxpool.Pool, id string) error
	Config  idempotency.Config
	Timeout time.Duration
}

// StormProcedure is [Storm] for a procedure: it shows that each operation has its effects
// once, in the database and at the provider, wherever an attempt ends. The provider is an
// HTTP server of its own. It answers a second request with a key by the first one's
// answer, another request with that key by 422, and one that comes while the first is in
// progress by 409; and it counts what it does.
//
// The operations are rounds, each with an id of its own:
//   - an attempt that is made to stop before the procedure's result is recorded, one that
//     goes on, and a replay; and another such round;
//   - n parallel duplicates in what stands for two processes;
//   - the same, for each step: with the connection cut before the COMMIT behind it arrives,
//     with the attempt killed (its connection is cut and its context ended) when that has
//     happened, and with its context ended there;
//   - the same, for each call: with the attempt killed before and after its result is
//     recorded, with the provider's answer lost, and with the connection cut while the
//     provider is at work, so that two attempts are in the call, and neither gets an answer
//     but 409.
//
// Each round has to leave what an undisturbed one leaves, as Storm says, and at the
// provider too: the same number of effects and keys of each call, the same request with
// each key, and no request from outside of a call. A call is recorded with an answer of the
// provider only. What is the same in the results of two undisturbed rounds is the same in
// all: an id that differs is none of that. StormProcedure fails the test with a
// report on the first round that does not, which names the step or the call, and ends there.
func StormProcedure[In, Out any](t testing.TB, pool *pgxpool.Pool, n int, p ProcedureProgram[In, Out]) {
	t.Helper()
	switch {
	case p.Start == nil:
		t.Fatal("idemtest: ProcedureProgram.Start is nil: it makes the procedure under test")
	case p.Input == nil:
		t.Fatal("idemtest: ProcedureProgram.Input is nil: it makes what the procedure is called with")
	case p.Effects == nil:
		t.Fatal("idemtest: ProcedureProgram.Effects is nil: it counts what the procedure has done")
	case p.Config.CallPool != nil:
		t.Fatal("idemtest: ProcedureProgram.Config.CallPool is set: leave it nil, calls have to go through the pool that is cut")
	}
	p.Config.Wait = max(p.Config.Wait, 0) // a duplicate that is turned away would have to ask again
	s := &procedureStorm{config: p.Config}
	s.provider = newProvider(t, s, p.Answer, p.KeyOf)
	s.scene.Store(&scene{})
	start := func(proxied *pgxpool.Pool, store *idempotency.Store) Call {
		procedure := p.Start(proxied, s.provider.URL)
		procedure.Run = watched(s, procedure.Run)
		s.stores[0] = store
		return s.call(func(ctx context.Context, store *idempotency.Store, id string) (any, bool, error) {
			return procedure.Do(ctx, store, operationKey(id), p.Input(id))
		})
	}
	s.storm = newStorm(t, pool, n, Program{Start: start, Effects: p.Effects, Prepare: p.Prepare, Config: p.Config, Timeout: p.Timeout})
	s.openOthers(t, pool)
	s.run(t)
}

// A procedureStorm is one use of StormProcedure.
type procedureStorm struct {
	*storm
	config   idempotency.Config
	provider *provider
	stores   [2]*idempotency.Store // of two processes
	direct   *pgxpool.Pool         // not through the proxy
	watch    *idempotency.Store    // on direct
	sent     atomic.Int64          // calls
	scene    atomic.Pointer[scene] // of the round that runs

	labels []string // of the steps and calls, such as "step create", in their order
	alone  usage    // what one attempt leaves at the provider

	undisturbed []leaves // the results of two rounds of one attempt after the other
}

// operationKey is the key of a round's operation.
func operationKey(id string) idempotency.Key { return idempotency.Key{Scope: "idemtest", ID: id} }

// call sends every second call to the other process, with a context that can be ended.
func (s *procedureStorm) call(do func(context.Context, *idempotency.Store, string) (any, bool, error)) Call {
	return func(ctx context.Context, id string) (any, bool, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		ctx = context.WithValue(ctx, endKey{}, cancel)
		return do(ctx, s.stores[s.sent.Add(1)%2], id)
	}
}

// openOthers makes the pool of the second process, and one that leads past the proxy.
func (s *procedureStorm) openOthers(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	s.other = s.openPool(t, pool)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cfg := s.config
	cfg.Schema = s.schema.name
	var err error
	if s.stores[1], err = idempotency.NewWithConfig(s.other, cfg); err != nil {
		t.Fatal("idemtest: Program.", err)
	}
	if s.direct, err = pgxpool.NewWithConfig(ctx, pool.Config()); err != nil {
		t.Fatal("idemtest: ", err)
	}
	t.Cleanup(s.direct.Close)
	if s.watch, err = idempotency.NewWithConfig(s.direct, idempotency.Config{Schema: s.schema.name}); err != nil {
		t.Fatal("idemtest: ", err)
	}
}

// recorded returns the steps and calls of the operation that are recorded, and the call
// that has begun.
func (s *procedureStorm) recorded(id string) (done []string, begun string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for u, err := range s.watch.Pending(ctx, 0) {
		if err != nil || u.Key.ID == id {
			return u.Done, u.Begun, err
		}
	}
	return nil, "", nil
}

func (s *procedureStorm) run(t testing.TB) {
	t.Helper()
	for range 2 { // what differs between these differs always
		first := s.roundOf(fault{}, plan{name: "an attempt that is made to stop before its result is recorded, one that goes on, and a replay", alone: true})
		if !s.play(t, first) {
			return
		}
		s.keysOfOne = first.keysOfFirst
		s.undisturbed = append(s.undisturbed, leavesOf(first.answers[0].value))
	}
	for _, r := range s.rounds() {
		if !s.play(t, r) {
			return
		}
	}
}

// A fault is what happens to the first attempt of a round.
type fault struct {
	label string // of a step or a call; "": nothing happens
	at    string // "before" or "after" the COMMIT behind it, or "lost" or "held" at the provider
	cut   bool   // the connection
	end   bool   // the context
}

const (
	// procedureCalls is how often a call is made that fails; a request that meets another
	// one at the provider is refused.
	procedureCalls = 8

	// procedurePause is the pause before the second; it doubles.
	procedurePause = 5 * time.Millisecond
)

// rounds are those after the first, which has found out about the steps and calls.
func (s *procedureStorm) rounds() []*procedureRound {
	storm := plural(s.n, "parallel duplicate") + " in two processes"
	rounds := []*procedureRound{s.roundOf(fault{}, plan{name: storm})}
	add := func(f fault, format string) {
		p := plan{name: storm + ", " + fmt.Sprintf(format, quoted(f.label)), cut: f.at, tries: procedureCalls, pause: procedurePause}
		rounds = append(rounds, s.roundOf(f, p))
	}
	for _, label := range s.labels {
		if isCall(label) {
			add(fault{label, "before", true, true}, "an attempt killed before the result of %s is recorded")
		} else {
			add(fault{label, "before", true, false}, "the connection cut before the COMMIT behind %s arrives")
		}
		add(fault{label, "after", true, true}, "an attempt killed after the COMMIT behind %s")
		add(fault{label, "after", false, true}, "the context of an attempt ended behind %s")
		if s.alone.requests[label] > 0 {
			add(fault{label, "lost", false, false}, "the provider's answer to %s lost")
			add(fault{label, "held", true, false}, "the connection cut in %s, and another attempt beside it")
		}
	}
	return rounds
}

// A procedureRound is one operation.
type procedureRound struct {
	*round
	s     *procedureStorm
	fault fault
	scene *scene

	counts []int // effects in the first attempt of all: before it, and before and after each COMMIT; under scene.mu
}

func (s *procedureStorm) roundOf(f fault, p plan) *procedureRound {
	r := &procedureRound{round: s.round(p), s: s, fault: f}
	r.scene = &scene{id: r.id, fault: f, stop: p.alone, second: make(chan struct{})}
	return r
}

func (s *procedureStorm) play(t testing.TB, r *procedureRound) (right bool) {
	t.Helper()
	s.scene.Store(r.scene)
	return play(t, r.name, r)
}

func (r *procedureRound) run() error {
	if r.alone {
		return r.runUnder(r.counting(), r.first)
	}
	return r.runUnder(r.rule(), r.fire)
}

// first learns from an attempt that is made to stop, and goes on.
func (r *procedureRound) first(keys int) error {
	ctx, cancel := context.WithTimeout(context.Background(), r.Timeout)
	defer cancel()
	r.sample()
	r.together(ctx, 1)
	r.proxy.SetRule(nil)
	if r.missing > 0 {
		return nil
	}
	var err error
	if r.s.labels, _, err = r.s.recorded(r.id); err != nil {
		return fmt.Errorf("reading the steps that are recorded: %w", err)
	}
	r.s.alone = r.scene.usage()
	now, err := r.schema.keys(ctx)
	if err != nil {
		return fmt.Errorf("counting the keys: %w", err)
	}
	r.keysOfFirst = now - keys
	if !errors.Is(r.answers[0].err, errStopped) {
		return nil // it has failed before
	}
	r.answers = nil
	r.together(ctx, 1)
	if r.missing == 0 {
		r.together(ctx, 1)
	}
	return nil
}

// counting asks for the effects before and after each COMMIT. The message waits for that.
func (r *procedureRound) counting() pgproxy.Rule {
	return func(m pgproxy.Message) pgproxy.Verdict {
		if commits(m) || committed(m) {
			r.sample()
		}
		return pgproxy.Pass
	}
}

func (r *procedureRound) sample() {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	n, err := r.Effects(ctx, r.s.direct, r.id)
	r.scene.mu.Lock()
	defer r.scene.mu.Unlock()
	if err != nil && len(r.counts) > 0 { // it is asked again behind the round, and the error reported
		n = r.counts[len(r.counts)-1]
	}
	r.counts = append(r.counts, n)
}

// rule does the fault at the COMMIT that records its step or call, whichever attempt sends it.
func (r *procedureRound) rule() pgproxy.Rule {
	var recorder atomic.Pointer[attempt] // the attempt that has sent it
	do := func() pgproxy.Verdict {
		if !r.wasCut.CompareAndSwap(false, true) {
			return pgproxy.Pass
		}
		if r.fault.end {
			recorder.Load().end()
		}
		if r.fault.cut {
			return pgproxy.Drop
		}
		return pgproxy.Pass
	}
	return func(m pgproxy.Message) pgproxy.Verdict {
		switch {
		case r.fault.at != "before" && r.fault.at != "after":
		case commits(m):
			a := r.scene.recorder(r.s, r.fault.label)
			if a == nil {
				break
			}
			recorder.Store(a)
			if r.fault.at == "before" {
				return do()
			}
		case committed(m) && r.fault.at == "after" && recorder.Load() != nil && !r.s.next(r.id, r.fault.label):
			return do()
		}
		return pgproxy.Pass
	}
}

// next reports whether the label is that of the step or call whose result is recorded next.
func (s *procedureStorm) next(id, label string) bool {
	done, begun, err := s.recorded(id)
	if err != nil || len(done) >= len(s.labels) || s.labels[len(done)] != label {
		return false
	}
	return !isCall(label) || begun == label // else that it begins is recorded next
}

// commitsBefore is how many COMMITs an undisturbed attempt sends before the one of its first
// step or call: that a call begins is recorded before it.
func (s *procedureStorm) commitsBefore() int {
	if len(s.labels) > 0 && isCall(s.labels[0]) {
		return 1
	}
	return 0
}

func isCall(label string) bool { return strings.HasPrefix(label, "call ") }

// quoted is the label as it is written in a report: step "create".
func quoted(label string) string {
	kind, name, found := strings.Cut(label, " ")
	if !found {
		return "the procedure"
	}
	return fmt.Sprintf("%s %q", kind, name)
}
