package run_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/pgidem/idempotency/bench/link"
	"github.com/pgidem/idempotency/bench/peers"
	"github.com/pgidem/idempotency/bench/results"
	"github.com/pgidem/idempotency/bench/run"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		var err error
		switch os.Args[1] {
		case link.ProcessArg:
			err = link.Main(os.Args[2:])
		case run.CallArg:
			err = run.CallMain()
		default:
			pgtest.Main(m)
			return
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	pgtest.Main(m)
}

// brief is a run of some milliseconds a section.
func brief(t *testing.T, sections []string, names ...string) results.Run {
	t.Helper()
	set := run.Settings{
		DSN: os.Getenv("DATABASE_URL"), Sections: sections, Slice: 20 * time.Millisecond, Rounds: 2,
		Delay: 500 * time.Microsecond, Pool: 16, Callers: []int{2}, Duplicates: 200, Many: 400,
		Window: 150 * time.Millisecond, Work: 100 * time.Millisecond, Calls: 50, Keys: 2, Log: t.Output(),
	}
	for _, name := range names {
		p, err := peers.Named(name)
		if err != nil {
			t.Fatal(err)
		}
		set.Peers = append(set.Peers, p)
	}
	got, err := run.Run(t.Context(), set)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

var byHand = []string{peers.Bare, peers.Ours, peers.FiveTrips, peers.Pipelined}

// The counted figures of the documentation. The bytes of a first call are
// asserted in the root package.
func TestCountedFiguresAreThoseOfTheDocs(t *testing.T) {
	got := brief(t, []string{"counts"}, peers.Bare, peers.Ours, peers.QueryRow)
	want := map[string]struct {
		first, replay             float64
		firstWaited, replayWaited int
		held                      float64
	}{
		peers.Bare:     {3, 1, 3, 1, 15},
		peers.Ours:     {3, 1, 3, 1, 0}, // of keys that the process knows
		peers.QueryRow: {1, 1, 1, 1, 0},
	}
	for _, c := range got.Counts {
		w := want[c.Peer]
		if c.First.Trips != w.first || c.First.Waited != w.firstWaited || c.Replay.Trips != w.replay || c.Replay.Waited != w.replayWaited {
			t.Errorf("%s: round trips of a first call %v, waited for %d; of a replay %v, %d; want %+v",
				c.Peer, c.First.Trips, c.First.Waited, c.Replay.Trips, c.Replay.Waited, w)
		}
		if c.First.XIDs != 1 || c.First.Fsyncs != 1 {
			t.Errorf("%s: a first call takes %v transaction ids and %v fsyncs", c.Peer, c.First.XIDs, c.First.Fsyncs)
		}
		if c.Held != w.held {
			t.Errorf("%s: duplicates hold %v connections, want %v", c.Peer, c.Held, w.held)
		}
	}
	ours := got.Counts[1]
	if r := ours.Replay; r.XIDs != 0 || r.WAL != 0 || r.Fsyncs != 0 {
		t.Errorf("a replay writes: %+v", r)
	}
	if ours.Executed != 1 {
		t.Errorf("%d of 64 duplicates were executed", ours.Executed)
	}
}

func TestFaultsLeaveOneEffectAndTheBareTransactionTwo(t *testing.T) {
	got := brief(t, []string{"faults"}, append(byHand, peers.QueryRow)...) // it is in none
	if len(got.Faults) != 2*len(byHand) {
		t.Fatalf("%d results", len(got.Faults))
	}
	for _, f := range got.Faults {
		want := 1
		if f.Peer == peers.Bare && f.Kind == results.LostResponse {
			want = 2 // else the fault does not happen, and the others show nothing
		}
		for _, n := range f.Effects {
			if n != want {
				t.Errorf("%s, %s: %d effects of a key, want %d", f.Peer, f.Kind, n, want)
			}
		}
		if f.Answers != f.Keys {
			t.Errorf("%s, %s: %d of %d keys were answered: %s", f.Peer, f.Kind, f.Answers, f.Keys, f.Error)
		}
		if f.Wrong > 0 && f.Peer != peers.Bare {
			t.Errorf("%s, %s: %d keys were answered differently later", f.Peer, f.Kind, f.Wrong)
		}
	}
}

func TestEverySectionMeasuresEveryPeer(t *testing.T) {
	got := brief(t, []string{"first", "replay", "mix", "storm"}, peers.Bare, peers.Ours, peers.QueryRow, peers.Pipelined)
	cells := 0
	for _, m := range got.Timed {
		cells++
		if m.Errors > 0 || m.Calls == 0 || m.Ratio <= 0 || m.P99 < m.P50 {
			t.Errorf("%+v", m)
		}
	}
	if want := 4*(2+3+4+2) + 2*4; cells != want { // the replays of ours are of known keys, and of others
		t.Errorf("%d cells, want %d", cells, want)
	}
	for _, s := range got.Storms {
		want := s.Storms
		switch s.Peer {
		case results.Standing:
			want = 0
		case peers.Bare:
			want *= s.Duplicates // else the storm does not reach it
		}
		if s.Executions != want || s.Unanswered > 0 {
			t.Errorf("%s: %d executions in %d storms of %d, %d unanswered", s.Peer, s.Executions, s.Storms, s.Duplicates, s.Unanswered)
		}
	}
	if len(got.Storms) != 2*5 {
		t.Errorf("%d storms", len(got.Storms))
	}
}

func TestOperationsOfStepsAreCounted(t *testing.T) {
	counts := brief(t, []string{"counts"}, peers.Procedure).Counts
	if len(counts) != 1 {
		t.Fatal(counts)
	}
	f, r := counts[0].First, counts[0].Replay
	if f.Trips != 6 || f.Waited != 6 || f.XIDs != 3 || f.Fsyncs != 3 || r.Waited != 1 || r.XIDs != 0 || r.WAL != 0 || counts[0].Executed != 1 || counts[0].Held != 0 {
		t.Errorf("%+v", counts[0])
	}
	got := brief(t, []string{"first"}, peers.BareSteps, peers.Procedure)
	for _, m := range got.Timed {
		if m.Errors > 0 || m.Calls == 0 || m.Ratio <= 0 {
			t.Errorf("%+v", m)
		}
	}
	if len(got.Timed) != 2*5 {
		t.Errorf("%d cells", len(got.Timed))
	}
}

// A bare operation is begun again, with a second row; the keys that the provider keeps are
// what saves it from a second charge.
func TestFaultsInACallLeaveOneChargeAndOneRow(t *testing.T) {
	got := brief(t, []string{"faults"}, peers.BareSteps, peers.Procedure, "DBOS Transact, steps")
	for _, f := range got.Faults {
		rows := 1
		if f.Peer == peers.BareSteps {
			rows = 2 // else the fault does not happen, and the others show nothing
		}
		for i := range f.Effects {
			// One that DBOS goes on with by itself may ask once more.
			asked := f.Requests[i] == 2 || f.Requests[i] > 2 && f.Peer == "DBOS Transact, steps"
			if f.Charges[i] != 1 || f.Effects[i] != rows || !asked {
				t.Errorf("%s, %s: %d charges, %d rows, %d requests", f.Peer, f.Kind, f.Charges[i], f.Effects[i], f.Requests[i])
			}
		}
		if len(f.Charges) != f.Keys || f.Answers != f.Keys {
			t.Errorf("%s, %s: %d of %d keys were answered: %s", f.Peer, f.Kind, f.Answers, f.Keys, f.Error)
		}
	}
	if len(got.Faults) != 2*3 {
		t.Errorf("%d faults", len(got.Faults))
	}
}

// A peer that answers a replay with something else is found out.
func TestWrongAnswerOfAReplayIsAnError(t *testing.T) {
	liar := peers.Peer{Name: "liar", Open: func(context.Context, peers.Env) (peers.Client, error) { return &lies{}, nil }}
	bare, err := peers.Named(peers.Bare)
	if err != nil {
		t.Fatal(err)
	}
	_, err = run.Run(t.Context(), run.Settings{
		DSN: os.Getenv("DATABASE_URL"), Peers: []peers.Peer{bare, liar}, Sections: []string{"replay"},
		Slice: 10 * time.Millisecond, Rounds: 1, Pool: 4, Log: t.Output(),
	})
	if !errors.Is(err, run.ErrWrongAnswer) {
		t.Errorf("%v", err)
	}
}

type lies struct{}

func (*lies) Do(context.Context, *peers.Call) (string, error) { return time.Now().String(), nil }
func (*lies) Close()                                          {}
