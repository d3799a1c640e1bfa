// Package history checks what many processes saw of the package idempotency, and
// what the database kept, against its promise.
//
// A history is made of the journals of the processes (which call began and ended
// when, and with what answer) and of a witness: rows that triggers write in the
// transactions under test. Two kinds of checks look at it. Rules compare the
// answers with the database; one sentence of the promise is one rule. And for
// each key, porcupine looks for an order of all steps in which each takes place
// within the time of its call and the sequential specification (model.go)
// explains each answer.
//
// The driver, in the tests, runs workers under faults, and checks the check too:
// it builds the workers with mutations of the package, each of which has to be
// caught. The tests make histories for seconds. HISTORY_TIME=5m (with a -timeout
// of go test to match) makes them for longer, also of the package without the
// parts that are doubled by others.
package history

import (
	"cmp"
	"slices"

	"github.com/pgidem/idempotency/internal/history/journal"
)

// A History is what is checked.
type History struct {
	Calls   []journal.Call
	Witness Witness
	Clock   Clock

	calls       map[string]*journal.Call // by name
	effects     map[string]Effect        // by execution
	generations map[string]Generation    // by execution
	removals    map[string]Removal       // by execution
	horizon     int64                    // later than all that was seen
}

// New returns the history of the calls.
func New(calls []journal.Call, witness Witness, clock Clock) *History {
	h := &History{
		Calls: calls, Witness: witness, Clock: clock,
		calls:       make(map[string]*journal.Call),
		effects:     make(map[string]Effect),
		generations: make(map[string]Generation),
		removals:    make(map[string]Removal),
	}
	slices.SortFunc(h.Calls, func(a, b journal.Call) int { return cmp.Compare(a.At, b.At) })
	for i := range h.Calls {
		c := &h.Calls[i]
		h.calls[c.Call] = c
		h.horizon = max(h.horizon, c.At)
		if c.End != nil {
			h.horizon = max(h.horizon, c.End.At)
		}
	}
	for _, e := range witness.Effects {
		h.effects[e.Execution] = e
	}
	for _, g := range witness.Generations {
		h.generations[g.Execution] = g
		h.horizon = max(h.horizon, clock.latest(g.ExpiresAt))
	}
	for _, r := range witness.Removals {
		h.removals[r.Execution] = r
	}
	h.horizon++
	return h
}

// endOf is the moment by which c has taken effect, if it ever did. What a call
// has left behind whose outcome nobody learned can take effect later.
func (h *History) endOf(c *journal.Call) int64 {
	if c.End == nil || c.End.Outcome == journal.Unknown {
		return h.horizon
	}
	return c.End.At
}

// answer is the execution that c returned, if any.
func answer(c *journal.Call) (execution string, ok bool) {
	if c.End == nil || c.Operation == journal.Delete {
		return "", false
	}
	return c.End.Value, c.End.Outcome == journal.Executed || c.End.Outcome == journal.Replayed
}
