package history

import (
	"fmt"

	"github.com/pgidem/idempotency/internal/history/journal"
)

// A Violation is a broken sentence of the promise.
type Violation struct {
	Rule   string
	Key    string
	At     int64 // by the journals' clock
	Detail string
}

// A rule is a sentence of the promise, and what in a history breaks it.
type rule struct {
	sentence string
	broken   func(h *History, report reporter)
}

type reporter func(key string, at int64, format string, args ...any)

var rules = []rule{
	{"a key has at most one effect within its retention", overlap},
	{"a call has at most one effect", secondEffect},
	{"an effect and its record commit together or not at all", effectWithoutRecord},
	{"an answer is a committed effect", answerWithoutEffect},
	{"replayed is false only for a call's own execution", foreignExecution},
	{"a call that failed has left nothing behind", failedCall},
	{"a run that ended with an error or a panic leaves nothing behind", failedRun},
	{"a purge removes only what has expired", purgedAlive},
}

// broken returns the violations of all rules.
func (h *History) broken() []Violation {
	var found []Violation
	for _, r := range rules {
		r.broken(h, func(key string, at int64, format string, args ...any) {
			found = append(found, Violation{r.sentence, key, at, fmt.Sprintf(format, args...)})
		})
	}
	return found
}

// overlap compares times of the database only, so it is exact, also where the
// time of a call is not known.
func overlap(h *History, report reporter) {
	last := make(map[string]Generation)
	for _, g := range h.Witness.Generations { // by CompletedAt
		before, ok := last[g.Key]
		last[g.Key] = g
		if !ok || !g.CompletedAt.Before(before.ExpiresAt) {
			continue
		}
		if r, ok := h.removals[before.Execution]; ok && !r.RemovedAt.After(g.CompletedAt) {
			continue
		}
		report(g.Key, h.Clock.earliest(g.CompletedAt), "%s was recorded %v before %s expired",
			g.Execution, before.ExpiresAt.Sub(g.CompletedAt), before.Execution)
	}
}

func secondEffect(h *History, report reporter) {
	first := make(map[string]string)
	for _, e := range h.Witness.Effects {
		name := journal.CallOf(e.Execution)
		c := h.calls[name]
		if c == nil || mayStillArrive(c) || h.deletedDuring(c, e) {
			continue
		}
		if other, ok := first[name]; ok {
			report(e.Key, c.At, "%s has the effects of %s and %s", name, other, e.Execution)
		}
		first[name] = e.Execution
	}
}

func effectWithoutRecord(h *History, report reporter) {
	seen := make(map[string]bool)
	for _, e := range h.Witness.Effects {
		if _, ok := h.generations[e.Execution]; !ok {
			report(e.Key, h.began(e.Execution), "the effect of %s has no record", e.Execution)
		}
		if seen[e.Execution] {
			report(e.Key, h.began(e.Execution), "the effect of %s is there twice", e.Execution)
		}
		seen[e.Execution] = true
	}
	clear(seen)
	for _, g := range h.Witness.Generations {
		at := h.Clock.earliest(g.CompletedAt)
		if _, ok := h.effects[g.Execution]; !ok {
			report(g.Key, at, "the record of %s has no effect", g.Execution)
		}
		if seen[g.Execution] {
			report(g.Key, at, "%s was recorded twice", g.Execution)
		}
		seen[g.Execution] = true
	}
}

func answerWithoutEffect(h *History, report reporter) {
	for i := range h.Calls {
		c := &h.Calls[i]
		value, ok := answer(c)
		if _, committed := h.effects[value]; ok && !committed {
			report(c.Key, c.At, "%s %s returned %s, which has no effect", c.Operation, c.Call, value)
		}
	}
}

func foreignExecution(h *History, report reporter) {
	for i := range h.Calls {
		c := &h.Calls[i]
		value, ok := answer(c)
		if ok && !c.End.Replayed && journal.CallOf(value) != c.Call {
			report(c.Key, c.At, "%s %s returned %s, not replayed", c.Operation, c.Call, value)
		}
	}
}

func failedCall(h *History, report reporter) {
	for _, e := range h.Witness.Effects {
		c := h.calls[journal.CallOf(e.Execution)]
		if c == nil || c.End == nil {
			continue
		}
		failed := c.End.Outcome == journal.Failed || c.End.Outcome == journal.Refused
		if failed && !h.deletedDuring(c, e) {
			report(e.Key, c.At, "the effect of %s is there, but %s failed: %s", e.Execution, c.Operation, c.End.Err)
		}
	}
}

// failingFates are those of runs that must not commit. (A run that dawdles may,
// in a transaction that has another limit than MaxIdle.)
var failingFates = map[string]bool{"fails": true, "panics": true, "swallows": true, "doubles": true}

func failedRun(h *History, report reporter) {
	for _, e := range h.Witness.Effects {
		if failingFates[e.Fate] {
			report(e.Key, h.began(e.Execution), "the effect of %s is there, which %s", e.Execution, e.Fate)
		}
	}
}

func purgedAlive(h *History, report reporter) {
	for _, r := range h.Witness.Removals {
		if r.Remover == remover && r.RemovedAt.Before(r.ExpiresAt) {
			report(r.Key, h.Clock.earliest(r.RemovedAt), "%s was purged %v before it expired",
				r.Execution, r.ExpiresAt.Sub(r.RemovedAt))
		}
	}
}

// deletedDuring: a Delete has undone e while c was still under way. A call whose
// commit is in doubt then finds nothing, and runs again or fails: to delete a key
// is to give up its protection.
func (h *History) deletedDuring(c *journal.Call, e Effect) bool {
	r, ok := h.removals[e.Execution]
	return ok && r.Remover != remover && h.Clock.earliest(r.RemovedAt) <= h.endOf(c)
}

// mayStillArrive: what a QueryRow in doubt has sent can reach the server after the call
// has ended with another answer. It takes effect if the key is free again by then: what
// is recorded has expired, or was deleted. The rule overlap holds for it all the same.
func mayStillArrive(c *journal.Call) bool {
	return c.Operation == journal.QueryRow && c.End != nil && c.End.InDoubt
}

// began is when the call of an execution began.
func (h *History) began(execution string) int64 {
	if c := h.calls[journal.CallOf(execution)]; c != nil {
		return c.At
	}
	return 0
}
