package history

import (
	"maps"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// linearizable is the sentence of the promise that porcupine checks.
const linearizable = "all answers fit one order of executions, expiries and Deletes"

// undecided is reported when porcupine has not found out in time. That is no
// violation, but it is no evidence either.
const undecided = "the history can be decided on"

// Check returns the violations of the promise, none of which is a false alarm.
// It takes about bound for each key at most.
func (h *History) Check(bound time.Duration) []Violation {
	violations := h.broken()
	keys := h.steps()
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		steps := keys[key]
		switch porcupine.CheckOperationsTimeout(model, steps, bound) {
		case porcupine.Illegal:
			at, detail := firstMisfit(steps, bound)
			violations = append(violations, Violation{linearizable, key, at, detail})
		case porcupine.Unknown:
			violations = append(violations, Violation{undecided, key, steps[0].Call, "porcupine gave up after " + bound.String()})
		}
	}
	return violations
}
