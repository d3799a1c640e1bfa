package history

import (
	"os"
	"testing"
	"time"

	"github.com/pgidem/idempotency/internal/history/journal"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const (
	// roundTrips makes a history that has each kind of fault and is still checked
	// in no time. Longer ones find nothing more: there is always a next one.
	roundTrips = 5000

	// checkBound is how long porcupine may take for the history of a key.
	checkBound = 20 * time.Second
)

// long: the tests are to take their time, which is HISTORY_TIME, a duration.
func long() bool { return os.Getenv("HISTORY_TIME") != "" }

// historyTime is how long a test makes histories.
func historyTime(t *testing.T) time.Duration {
	t.Helper()
	if !long() {
		return 10 * time.Second
	}
	d, err := time.ParseDuration(os.Getenv("HISTORY_TIME"))
	if err != nil {
		t.Fatal("HISTORY_TIME: ", err)
	}
	return d
}

func TestHistoriesUnderFaultsKeepThePromise(t *testing.T) {
	s := newStage(t, buildWorker(t, nil))
	all := s.holds(historyTime(t), 2, roundTrips)
	if all.inDoubt == 0 || all.pending == 0 || all.purged == 0 || all.deleted == 0 || len(all.outcomes) < 6 {
		t.Errorf("something never happened, so this shows nothing about it: %v", all)
	}
	for _, operation := range []journal.Operation{journal.Do, journal.QueryRow, journal.DoTx} {
		if all.executions[operation] == 0 {
			t.Errorf("%s has never executed anything: %v", operation, all)
		}
	}
	for _, kind := range allFaults {
		if s.faults[kind] == 0 {
			t.Errorf("no %s, so this shows nothing about them", kind)
		}
	}
}

// holds makes histories of so many round trips for the given time, and checks each.
// There are as many histories as asked for at least: a slow machine makes the same.
func (s *stage) holds(duration time.Duration, least, trips int) *tally {
	s.Helper()
	var all tally
	start := time.Now()
	for n := 0; !s.Failed() && (n < least || time.Since(start) < duration); n++ {
		h := s.play(trips)
		all.add(h)
		s.report(h, h.Check(checkBound))
	}
	s.Log(&all)
	s.Log(&faults{counts: s.faults})
	return &all
}

// report shows each violation, and draws the history of each of their keys.
func (s *stage) report(h *History, violations []Violation) {
	s.Helper()
	drawn := make(map[string]bool)
	for _, v := range violations {
		s.Error(h.Excerpt(v))
		if drawn[v.Key] {
			continue
		}
		drawn[v.Key] = true
		if name, err := h.Draw(v.Key, checkBound); err != nil {
			s.Error("drawing the history: ", err)
		} else {
			s.Logf("the history of %s, drawn: %s", v.Key, name)
		}
	}
}
