package history

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/pgidem/idempotency/internal/history/journal"
)

// firstMisfit is the step that fits nowhere in the longest order that porcupine
// found: the one whose time was over first.
func firstMisfit(steps []porcupine.Operation, bound time.Duration) (at int64, detail string) {
	_, info := porcupine.CheckOperationsVerbose(model, steps, bound)
	var longest []porcupine.Operation
	for _, order := range info.PartialLinearizationsOperations()[0] {
		if len(order) > len(longest) {
			longest = order
		}
	}
	placed, s := make(map[porcupine.Operation]bool), state{}
	for _, o := range longest {
		placed[identity(o)] = true
		_, s = s.apply(o.Input.(step))
	}
	var misfit *porcupine.Operation
	for i := range steps {
		o := &steps[i]
		if !placed[identity(*o)] && (misfit == nil || o.Return < misfit.Return) {
			misfit = o
		}
	}
	if misfit == nil {
		return steps[0].Call, "no order was found"
	}
	return misfit.Call, fmt.Sprintf("%s of %s fits nowhere; the longest order ends with: %s recorded",
		misfit.Input, misfit.Metadata, s)
}

// identity is o without what porcupine adds.
func identity(o porcupine.Operation) porcupine.Operation {
	o.Output = nil
	return o
}

// A moment is one line of an excerpt.
type moment struct {
	at   int64
	text string
}

// excerptMoments is how many moments an excerpt shows on each side.
const excerptMoments = 15

// Excerpt shows what happened to the key of v at the time of v, as a person reads
// it: times in milliseconds before and after it.
func (h *History) Excerpt(v Violation) string {
	moments := h.moments(v.Key, v.At)
	i, _ := slices.BinarySearchFunc(moments, v.At, func(m moment, at int64) int { return cmp.Compare(m.at, at) })
	moments = moments[max(0, i-excerptMoments):min(len(moments), i+excerptMoments)]
	var text strings.Builder
	fmt.Fprintf(&text, "%s: broken for key %s: %s\n", v.Rule, v.Key, v.Detail)
	for _, m := range moments {
		fmt.Fprintf(&text, "  %9.3f  %s\n", milliseconds(m.at-v.At), m.text)
	}
	return text.String()
}

func (h *History) moments(key string, origin int64) []moment {
	var all []moment
	add := func(at int64, format string, args ...any) {
		all = append(all, moment{at, fmt.Sprintf(format, args...)})
	}
	for i := range h.Calls {
		if c := &h.Calls[i]; c.Key == key {
			add(c.At, "%s", describe(c, origin))
		}
	}
	for _, g := range h.Witness.Generations {
		if g.Key == key {
			add(h.Clock.earliest(g.CompletedAt), "        the record of %s is written", g.Execution)
			add(h.Clock.earliest(g.ExpiresAt), "        the record of %s expires", g.Execution)
		}
	}
	for _, r := range h.Witness.Removals {
		if r.Key == key {
			add(h.Clock.earliest(r.RemovedAt), "        the record of %s is removed by %s", r.Execution, r.Remover)
		}
	}
	slices.SortStableFunc(all, func(a, b moment) int { return cmp.Compare(a.at, b.at) })
	return all
}

func describe(c *journal.Call, origin int64) string {
	text := fmt.Sprintf("%s %s", c.Operation, c.Call)
	if c.Fingerprint != 0 {
		text += fmt.Sprintf(" (fingerprint %d)", c.Fingerprint)
	}
	if c.End == nil {
		return text + " never ended"
	}
	text += fmt.Sprintf(" until %.3f: %s", milliseconds(c.End.At-origin), c.End.Outcome)
	if c.End.Value != "" {
		text += " " + c.End.Value
	}
	if c.End.InDoubt {
		text += ", in doubt"
	}
	if c.End.Err != "" {
		text += ": " + c.End.Err
	}
	return text
}

func milliseconds(ns int64) float64 { return float64(ns) / 1e6 }

// Draw writes porcupine's interactive drawing of a key's history to a file that
// stays, and returns its name.
func (h *History) Draw(key string, bound time.Duration) (name string, err error) {
	_, info := porcupine.CheckOperationsVerbose(model, h.steps()[key], bound)
	file, err := os.CreateTemp("", "history-*.html")
	if err != nil {
		return "", err
	}
	if err := porcupine.Visualize(model, info, file); err != nil {
		file.Close()
		return "", err
	}
	return file.Name(), file.Close()
}
