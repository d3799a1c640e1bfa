package history

import (
	"math"
	"slices"

	"github.com/anishathalye/porcupine"
	"github.com/pgidem/idempotency/internal/history/journal"
)

// steps returns, for each key, what happened to it and when it can have happened.
//
// The witness says which runs and which Deletes have taken effect. So a call that
// nobody saw the end of is here if and only if it has, and nothing has to be
// tried both ways. A call can have two steps: one that found its commit undone by
// a Delete runs once more.
func (h *History) steps() map[string][]porcupine.Operation {
	keys := make(map[string][]porcupine.Operation)
	add := func(key string, s step, name string, from, to int64) {
		keys[key] = append(keys[key], porcupine.Operation{Input: s, Metadata: name, Call: from, Return: to})
	}
	for _, e := range h.Witness.Effects {
		if c := h.calls[journal.CallOf(e.Execution)]; c != nil {
			from, to := h.executed(e.Execution, c)
			add(e.Key, step{execute, e.Execution, c.Fingerprint}, c.Call, from, to)
		}
	}
	for _, g := range h.Witness.Generations {
		from, to := h.expired(g)
		add(g.Key, step{action: expire, execution: g.Execution}, "the clock", from, to)
	}
	for i := range h.Calls {
		c := &h.Calls[i]
		if s, ok := h.answered(c); ok {
			add(c.Key, s, c.Call, c.At, h.endOf(c))
		}
	}
	for _, operations := range keys {
		assignLanes(operations)
	}
	return keys
}

// executed bounds the time at which an effect became visible: while its call was
// running, or what it has sent was on its way, and after its record was written.
func (h *History) executed(execution string, c *journal.Call) (from, to int64) {
	from, to = c.At, h.endOf(c)
	if mayStillArrive(c) && c.End.Value != execution {
		to = h.horizon
	}
	if g, ok := h.generations[execution]; ok {
		from = max(from, h.Clock.earliest(g.CompletedAt))
	}
	return min(from, to), to
}

// expired bounds the time at which a record expires: when the database's clock
// says so, but never before the record was visible.
func (h *History) expired(g Generation) (from, to int64) {
	from, to = h.Clock.earliest(g.ExpiresAt), h.Clock.latest(g.ExpiresAt)
	if c := h.calls[journal.CallOf(g.Execution)]; c != nil {
		to = max(to, h.endOf(c))
	}
	return from, to
}

// answered is the step that a call's answer tells of, apart from its execution.
func (h *History) answered(c *journal.Call) (step, bool) {
	if c.Operation == journal.Delete {
		return h.deleted(c)
	}
	if c.End == nil {
		return step{}, false
	}
	s := step{execution: c.End.Value, fingerprint: c.Fingerprint}
	switch c.End.Outcome {
	case journal.Replayed:
		s.action = replay
		if c.Operation == journal.Get {
			s.action = find
		}
		return s, journal.CallOf(c.End.Value) != c.Call // else it is the execution
	case journal.Refused:
		s.action = refuse
		return s, !h.refusedByNeighbour(c)
	case journal.Missed:
		s.action = findNone
		return s, true
	}
	return step{}, false
}

func (h *History) deleted(c *journal.Call) (step, bool) {
	switch {
	case c.End != nil && c.End.Outcome == journal.Executed:
		return step{action: remove}, true
	case c.End != nil && c.End.Outcome == journal.Missed:
		return step{action: removeNone}, true
	case c.End != nil && c.End.Outcome != journal.Unknown:
		return step{}, false
	}
	took := slices.ContainsFunc(h.Witness.Removals, func(r Removal) bool { return r.Remover == c.Call })
	return step{action: remove}, took
}

// refusedByNeighbour: the key was refused because a call in the same process,
// with another fingerprint, was running its function. Nothing need be recorded
// for that.
func (h *History) refusedByNeighbour(c *journal.Call) bool {
	return slices.ContainsFunc(h.Calls, func(n journal.Call) bool {
		return n.Key == c.Key && n.Process() == c.Process() && n.Fingerprint != c.Fingerprint &&
			(n.Operation == journal.Do || n.Operation == journal.QueryRow) && (n.End == nil || n.End.Runs > 0) &&
			n.At < c.End.At && h.endOf(&n) > c.At
	})
}

// assignLanes gives operations that overlap different clients: the rows of
// porcupine's drawing.
func assignLanes(operations []porcupine.Operation) {
	slices.SortFunc(operations, func(a, b porcupine.Operation) int {
		switch {
		case a.Call < b.Call:
			return -1
		case a.Call > b.Call:
			return 1
		}
		return 0
	})
	var busyUntil []int64
	for i := range operations {
		lane := slices.IndexFunc(busyUntil, func(end int64) bool { return end < operations[i].Call })
		if lane < 0 {
			lane = len(busyUntil)
			busyUntil = append(busyUntil, math.MinInt64)
		}
		busyUntil[lane] = operations[i].Return
		operations[i].ClientId = lane
	}
}
