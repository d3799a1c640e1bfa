package history

import (
	"os"
	"testing"
	"time"

	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// checkBound is how long porcupine may take for the history of a key.
const checkBound = 20 * time.Second

// historyTime is how long histories are made for: HISTORY_TIME, a duration.
func historyTime(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("HISTORY_TIME")
	if text == "" {
		return 12 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal("HISTORY_TIME: ", err)
	}
	return d
}

func TestHistoryUnderFaultsKeepsThePromise(t *testing.T) {
	s := newStage(t, buildWorker(t, nil))
	var all tally
	for end := time.Now().Add(historyTime(t)); time.Now().Before(end) && !t.Failed(); {
		h := s.play()
		all.add(h)
		for _, v := range h.Check(checkBound) {
			s.report(h, v)
		}
	}
	t.Log(&all)
	t.Log(&faults{counts: s.faults})
}

func (s *stage) report(h *History, v Violation) {
	s.Helper()
	s.Error(h.Excerpt(v))
	if v.Rule != linearizable {
		return
	}
	if name, err := h.Draw(v.Key, checkBound); err != nil {
		s.Error("drawing the history: ", err)
	} else {
		s.Log("drawn in ", name)
	}
}
