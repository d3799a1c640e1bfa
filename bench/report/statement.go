package report

import (
	"fmt"
	"io"

	"github.com/pgidem/idempotency/bench/peers"
	"github.com/pgidem/idempotency/bench/results"
)

// statement is a table of those that one would choose from where the operation is one
// statement: everything about them that was measured.
func statement(w io.Writer, run results.Run) {
	compared := []string{peers.Bare, peers.QueryRow, peers.Ours, peers.Pipelined, peers.Redis}
	t := table{head: []string{""}}
	for _, peer := range compared {
		t.head = append(t.head, name(peer))
	}
	add := func(what string, value func(peer string) string) {
		row, empty := []string{what}, true
		for _, peer := range compared {
			v := value(peer)
			if v == "" {
				v = "-"
			} else {
				empty = false
			}
			row = append(row, v)
		}
		if !empty {
			t.add(row...)
		}
	}
	add("round trips that a first call / a replay waits for", func(peer string) string {
		return costs(run, peer, func(c results.Cost) string { return fmt.Sprint(c.Waited) })
	})
	add("write-ahead log of a first call / a replay, bytes", func(peer string) string {
		return costs(run, peer, func(c results.Cost) string { return count(c.WAL) })
	})
	add("allocations of a first call / a replay", func(peer string) string {
		return costs(run, peer, func(c results.Cost) string { return count(c.Allocations) })
	})
	for _, m := range run.Timed {
		if m.Peer != peers.QueryRow {
			continue
		}
		where := fmt.Sprintf("%s, %s", linkName(run, m.Link), callers(m.Callers))
		if m.Section != results.Replay {
			add(m.Section+", "+where, func(peer string) string { return against(run, peer, m.Section, m.Link, m.Callers) })
			continue
		}
		add("replay, "+where, func(peer string) string { return against(run, peer, m.Section, m.Link, m.Callers) })
		add("replay, "+where+results.Unknown, func(peer string) string {
			return against(run, peer+results.Unknown, m.Section, m.Link, m.Callers)
		})
	}
	if counted(run, peers.QueryRow) == nil && !timedAtAll(run, peers.QueryRow) {
		return
	}
	fmt.Fprintf(w, "## An operation that is one statement\n\nThe same business write as one statement with its record and COMMIT in one round trip, beside the ways of a transaction. Times are multiples of the bare transaction's of the same round.\n\n%s\n", &t)
}

func costs(run results.Run, peer string, of func(results.Cost) string) string {
	c := counted(run, peer)
	if c == nil {
		return ""
	}
	return of(c.First) + " / " + of(c.Replay)
}

func timedAtAll(run results.Run, peer string) bool {
	for _, m := range run.Timed {
		if m.Peer == peer {
			return true
		}
	}
	return false
}
