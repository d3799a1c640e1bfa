package report

import (
	"fmt"
	"io"

	"github.com/pgidem/idempotency/bench/peers"
	"github.com/pgidem/idempotency/bench/results"
)

// Steps writes a run of operations that also ask a provider.
func Steps(w io.Writer, run results.Run) {
	var compared []string
	for _, p := range run.Peers {
		compared = append(compared, p.Name)
	}
	t := newBeside(compared)
	t.addCounts(run)
	t.add("connections held by 64 duplicates of one key", func(peer string) string {
		c := counted(run, peer)
		if c == nil || c.Executed == 0 {
			return ""
		}
		return fmt.Sprintf("%s (%d executed)", count(c.Held), c.Executed)
	})
	t.addTimes(run, peers.Procedure)
	for _, kind := range []string{results.KilledInCall, results.LostAnswer} {
		t.add(kind+": charges at the provider", faultCell(run, kind, func(f *results.Fault) string { return each(f.Charges, 1) }))
		t.add("business rows", faultCell(run, kind, func(f *results.Fault) string { return each(f.Effects, 1) }))
		t.add("requests at the provider", faultCell(run, kind, func(f *results.Fault) string { return each(f.Requests, 0) }))
		t.add("keys answered, after", faultCell(run, kind, func(f *results.Fault) string {
			return fmt.Sprintf("%d of %d, %s ms", f.Answers, f.Keys, ms(f.Took))
		}))
	}
	fmt.Fprintf(w, `## An operation that also asks somebody else

A transaction that makes the business write, a request to a payment provider that keeps idempotency keys, and a transaction that notes the charge. Times are multiples of the same without idempotency, of the same round; the request is a local one, which takes next to no time, and calls of this package use half of the pool's connections at most. Then: a process is killed when the provider has charged, and another one retries; and the provider's answer is lost with its connection, and the same process goes on. What there is of each key afterwards should be one.

%s
`, t)
	unanswered(w, run)
}

func faultCell(run results.Run, kind string, of func(*results.Fault) string) func(peer string) string {
	return func(peer string) string {
		if f := fault(run, peer, kind); f != nil {
			return of(f)
		}
		return ""
	}
}
