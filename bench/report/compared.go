package report

import (
	"fmt"
	"io"
	"strings"

	"github.com/pgidem/idempotency/bench/results"
)

// compared writes what one chooses by: a line for each peer, and another table for
// those that also ask a provider.
func compared(w io.Writer, run results.Run, steps *results.Run) {
	t := table{head: []string{"", "first call", "replay", "round trips", "effects after SIGKILL", "effects after a lost COMMIT answer", "executions of 1,000 duplicates", "p99 beside them"}}
	for _, p := range run.Peers {
		row := append(chosen(run, p.Name), faultOf(run, p.Name, results.Killed), faultOf(run, p.Name, results.LostResponse))
		t.addUnlessEmpty(name(p.Name), append(row, stormOf(run, p.Name)...))
	}
	if len(t.rows) > 0 {
		fmt.Fprintf(w, "## Beside other ways\n\nTimes are multiples of the bare transaction's with %s latency and one caller. Round trips are those that a first call and a replay wait for. A bold figure should be one. The last column is other keys' p99 beside the duplicates; calm = 1.\n\n%s\n", span(2*run.Conditions.Delay), &t)
	}
	if steps == nil {
		return
	}
	t = table{head: []string{"with a call to a payment provider", "first call", "replay", "round trips", "after SIGKILL: charges", "business rows"}}
	for _, p := range steps.Peers {
		row := append(chosen(*steps, p.Name), "", "")
		if f := fault(*steps, p.Name, results.KilledInCall); f != nil {
			row[3], row[4] = each(f.Charges, 1), each(f.Effects, 1)
		}
		t.addUnlessEmpty(name(p.Name), row)
	}
	if len(t.rows) > 0 {
		fmt.Fprintf(w, "%s\n", &t)
	}
}

// chosen is what a first call and a replay take, and their round trips.
func chosen(run results.Run, peer string) []string {
	return []string{
		against(run, peer, results.First, results.Delay, 1),
		against(run, peer, results.Replay, results.Delay, 1),
		costs(run, peer, func(c results.Cost) string { return fmt.Sprint(c.Waited) }),
	}
}

func faultOf(run results.Run, peer, kind string) string {
	if f := fault(run, peer, kind); f != nil {
		return effects(f)
	}
	return ""
}

// stormOf is how often a thousand duplicates were executed, and what others noticed.
func stormOf(run results.Run, peer string) []string {
	for _, s := range run.Storms {
		if s.Peer == peer && s.Duplicates == 1000 && s.Link == results.Delay {
			return []string{executions(s), times(s.P99Ratio)}
		}
	}
	return []string{"", ""}
}

// addUnlessEmpty adds a line that has something.
func (t *table) addUnlessEmpty(what string, cells []string) {
	if strings.Join(cells, "") == "" {
		return
	}
	row := []string{what}
	for _, cell := range cells {
		if cell == "" {
			cell = "-"
		}
		row = append(row, cell)
	}
	t.add(row...)
}
