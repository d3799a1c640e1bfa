package history

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/pgidem/idempotency/internal/history/journal"
)

// A script is a history written by hand. Its times are milliseconds, and the
// database's clock is exact.
type script struct {
	calls   []journal.Call
	witness Witness
}

const ms = int64(time.Millisecond)

func (s *script) call(op journal.Operation, name string, from, to int64, outcome journal.Outcome, value string) *script {
	c := journal.Call{Begin: journal.Begin{Call: name, Operation: op, Key: "k", At: from * ms}}
	if outcome != "" {
		c.End = &journal.End{
			Call: name, At: to * ms, Outcome: outcome, Value: value, Replayed: outcome == journal.Replayed, Runs: 1,
		}
	}
	s.calls = append(s.calls, c)
	return s
}

func (s *script) executes(name string, from, to int64) *script {
	return s.call(journal.Do, name, from, to, journal.Executed, name+"#1").commits(name+"#1", to-1, to+99)
}

func (s *script) replays(name string, from, to int64, value string) *script {
	return s.call(journal.Do, name, from, to, journal.Replayed, value)
}

func (s *script) commits(execution string, completed, expires int64) *script {
	s.effect(execution, "succeeds")
	return s.record(execution, completed, expires)
}

func (s *script) effect(execution, fate string) *script {
	s.witness.Effects = append(s.witness.Effects, Effect{execution, "k", fate})
	return s
}

func (s *script) record(execution string, completed, expires int64) *script {
	s.witness.Generations = append(s.witness.Generations, Generation{"k", execution, at(completed), at(expires)})
	return s
}

func (s *script) removes(execution, remover string, removed, expires int64) *script {
	s.witness.Removals = append(s.witness.Removals, Removal{"k", execution, at(expires), remover, at(removed)})
	return s
}

// inDoubt says so of the last call.
func (s *script) inDoubt() *script {
	s.calls[len(s.calls)-1].End.InDoubt = true
	return s
}

// fingerprint changes that of the last call.
func (s *script) fingerprint(n byte) *script {
	s.calls[len(s.calls)-1].Fingerprint = n
	return s
}

func at(n int64) time.Time { return time.Unix(0, n*ms) }

func TestCheckFindsWhatIsWrongAndNothingElse(t *testing.T) {
	t.Parallel()
	never := int64(0)
	for name, test := range map[string]struct {
		history *script
		broken  []string // the sentences; none: the history is right
	}{
		"an execution and a replay": {new(script).executes("A/1", 0, 10).replays("B/1", 5, 15, "A/1#1"), nil},
		"one execution after another": {
			new(script).executes("A/1", 0, 10).executes("B/1", 50, 60),
			[]string{"a key has at most one effect within its retention", linearizable},
		},
		"one execution after the other has expired": {new(script).executes("A/1", 0, 10).executes("B/1", 105, 120), nil},
		"one execution after the other was deleted": {
			new(script).executes("A/1", 0, 10).
				call(journal.Delete, "B/1", 20, 30, journal.Executed, "").removes("A/1#1", "B/1", 25, 109).
				executes("C/1", 40, 50),
			nil,
		},
		"a replay of nothing": {
			new(script).replays("A/1", 0, 10, "B/1#1"),
			[]string{linearizable, "an answer is a committed effect"},
		},
		"a replay before the execution": {
			new(script).replays("A/1", 0, 10, "B/1#1").executes("B/1", 20, 30), []string{linearizable},
		},
		"a replay after the expiry": {
			new(script).executes("A/1", 0, 10).replays("B/1", 120, 130, "A/1#1"), []string{linearizable},
		},
		"a replay that began before the expiry": {
			new(script).executes("A/1", 0, 10).replays("B/1", 105, 500, "A/1#1"), nil,
		},
		"a replay of what was deleted before": {
			new(script).executes("A/1", 0, 10).
				call(journal.Delete, "B/1", 20, 30, journal.Executed, "").removes("A/1#1", "B/1", 25, 109).
				replays("C/1", 40, 50, "A/1#1"),
			[]string{linearizable},
		},
		"a replay for another request": {
			new(script).executes("A/1", 0, 10).replays("B/1", 20, 30, "A/1#1").fingerprint(1),
			[]string{linearizable},
		},
		"the other answer": {
			new(script).executes("A/1", 0, 10).executes("B/1", 105, 120).replays("C/1", 130, 140, "A/1#1"),
			[]string{linearizable},
		},
		"nobody's answer as one's own": {
			new(script).executes("A/1", 0, 10).call(journal.Do, "B/1", 20, 30, journal.Executed, "A/1#1"),
			[]string{"replayed is false only for a call's own execution"},
		},
		"nothing found where a result is": {
			new(script).executes("A/1", 0, 10).call(journal.Get, "B/1", 20, 30, journal.Missed, ""),
			[]string{linearizable},
		},
		"nothing found while the call is running": {
			new(script).executes("A/1", 0, 10).call(journal.Get, "B/1", 5, 30, journal.Missed, ""), nil,
		},
		"a Delete of nothing": {
			new(script).call(journal.Delete, "A/1", 0, 10, journal.Executed, ""), []string{linearizable},
		},
		"a Delete that found nothing to delete": {
			new(script).executes("A/1", 0, 10).call(journal.Delete, "B/1", 20, 30, journal.Missed, ""),
			[]string{linearizable},
		},
		"a refusal where nothing is recorded": {
			new(script).call(journal.Do, "A/1", 0, 10, journal.Refused, "").fingerprint(1),
			[]string{linearizable},
		},
		"a refusal because of a neighbour": {
			new(script).call(journal.Do, "A/1", 0, 10, journal.Refused, "").fingerprint(1).
				call(journal.Do, "A/2", 0, 10, journal.Failed, ""),
			nil,
		},
		"a refusal because of a neighbour's statement": {
			new(script).call(journal.Do, "A/1", 0, 10, journal.Refused, "").fingerprint(1).
				call(journal.QueryRow, "A/2", 0, 10, journal.Failed, ""),
			nil,
		},
		"a killed call that took effect": {
			new(script).call(journal.Do, "A/1", 0, never, "", "").commits("A/1#1", 50, 150).replays("B/1", 60, 70, "A/1#1"),
			nil,
		},
		"a killed call that took effect beside another": {
			new(script).executes("B/1", 10, 20).call(journal.Do, "A/1", 0, never, "", "").commits("A/1#1", 50, 150),
			[]string{"a key has at most one effect within its retention"},
		},
		"a failed call that took effect": {
			new(script).call(journal.Do, "A/1", 0, 10, journal.Failed, "").commits("A/1#1", 5, 105),
			[]string{"a call that failed has left nothing behind"},
		},
		"a call of unknown outcome that took effect later": {
			new(script).call(journal.Do, "A/1", 0, 10, journal.Unknown, "").commits("A/1#1", 20, 120).
				call(journal.Get, "B/1", 30, 40, journal.Missed, ""),
			nil, // the record is written at 20, and visible with the COMMIT
		},
		"a call with two effects": {
			new(script).call(journal.Do, "A/1", 0, 300, journal.Executed, "A/1#2").
				commits("A/1#1", 10, 110).commits("A/1#2", 200, 300),
			[]string{"a call has at most one effect"},
		},
		"a call whose effect was deleted while it was in doubt": {
			new(script).call(journal.Do, "A/1", 0, 300, journal.Executed, "A/1#2").
				commits("A/1#1", 10, 110).commits("A/1#2", 80, 180).
				call(journal.Delete, "B/1", 20, 30, journal.Executed, "").removes("A/1#1", "B/1", 25, 110),
			nil,
		},
		"a statement that arrives after its call has found another answer": {
			new(script).executes("B/1", 0, 10).call(journal.QueryRow, "A/1", 5, 30, journal.Replayed, "B/1#1").inDoubt().
				commits("A/1#7", 150, 250).replays("C/1", 160, 170, "A/1#7"),
			nil,
		},
		"a statement that takes effect after its call has ended": {
			new(script).executes("B/1", 0, 10).call(journal.QueryRow, "A/1", 5, 30, journal.Replayed, "B/1#1").
				commits("A/1#7", 150, 250).replays("C/1", 160, 170, "A/1#7"),
			[]string{linearizable},
		},
		"a statement in doubt that takes effect after its answer": {
			new(script).call(journal.QueryRow, "A/1", 0, 30, journal.Executed, "A/1#7").inDoubt().
				commits("A/1#7", 20, 120).call(journal.Get, "B/1", 40, 50, journal.Missed, ""),
			[]string{linearizable},
		},
		"a statement that arrives when the call has run it, and the record has expired": {
			new(script).call(journal.QueryRow, "A/1", 0, 30, journal.Executed, "A/1#8").inDoubt().
				commits("A/1#8", 20, 120).commits("A/1#7", 150, 250),
			nil,
		},
		"a statement that arrives when the call has run it": {
			new(script).call(journal.QueryRow, "A/1", 0, 30, journal.Executed, "A/1#8").inDoubt().
				commits("A/1#8", 20, 120).commits("A/1#7", 90, 190),
			[]string{"a key has at most one effect within its retention"},
		},
		"a statement that arrives when the call has failed": {
			new(script).call(journal.QueryRow, "A/1", 0, 30, journal.Failed, "").inDoubt().commits("A/1#7", 50, 150),
			[]string{"a call that failed has left nothing behind"},
		},
		"an effect without a record": {
			new(script).executes("A/1", 0, 10).effect("B/1#1", "succeeds"),
			[]string{"an effect and its record commit together or not at all"},
		},
		"a record without an effect": {
			new(script).record("A/1#1", 5, 105), []string{"an effect and its record commit together or not at all"},
		},
		"the effect of a panic": {
			new(script).effect("A/1#1", "panics").record("A/1#1", 5, 105).
				call(journal.Do, "A/1", 0, never, "", ""),
			[]string{"a run that ended with an error or a panic leaves nothing behind"},
		},
		"a purge of what was live": {
			new(script).executes("A/1", 0, 10).removes("A/1#1", remover, 50, 109),
			[]string{"a purge removes only what has expired"},
		},
		"a purge of what had expired": {new(script).executes("A/1", 0, 10).removes("A/1#1", remover, 110, 109), nil},
	} {
		t.Run(name, func(t *testing.T) {
			h := New(test.history.calls, test.history.witness, Clock{})
			violations := h.Check(time.Second)
			if got := sentences(violations); !slices.Equal(got, test.broken) {
				t.Errorf("got %q, want %q", got, test.broken)
				for _, v := range violations {
					t.Log(h.Excerpt(v))
				}
			}
		})
	}
}

func TestJournalOfAKilledProcessIsReadToItsLastWholeLine(t *testing.T) {
	t.Parallel()
	name := t.TempDir() + "/A1"
	w, err := journal.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	w.Begin(journal.Begin{Call: "A1/1", Operation: journal.Do, Key: "k", At: journal.Now()})
	w.Begin(journal.Begin{Call: "A1/2", Operation: journal.Get, Key: "k", At: journal.Now()})
	w.End(journal.End{Call: "A1/2", Outcome: journal.Missed, At: journal.Now()})
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	write(t, name, append(text, `{"Begin":{"Call":"A1/3"`...))
	calls, err := journal.Read(name)
	if err != nil || len(calls) != 2 || calls[0].End != nil || calls[1].End == nil || calls[1].End.At < calls[0].At {
		t.Errorf("read %s, %v", fmt.Sprint(calls), err)
	}
}
