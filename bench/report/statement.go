package report

import (
	"fmt"
	"io"

	"github.com/pgidem/idempotency/bench/peers"
	"github.com/pgidem/idempotency/bench/results"
)

// A beside is a table with a column for each peer.
type beside struct {
	table
	peers []string
}

func newBeside(peers []string) *beside {
	t := &beside{table{head: []string{""}}, peers}
	for _, peer := range peers {
		t.head = append(t.head, name(peer))
	}
	return t
}

// add leaves a row out for which no peer has a value.
func (t *beside) add(what string, value func(peer string) string) {
	row, empty := []string{what}, true
	for _, peer := range t.peers {
		v := value(peer)
		if v == "" {
			v = "-"
		} else {
			empty = false
		}
		row = append(row, v)
	}
	if !empty {
		t.table.add(row...)
	}
}

// addCounts adds what is counted of first calls and replays.
func (t *beside) addCounts(run results.Run) {
	for _, c := range []struct {
		what string
		of   func(results.Cost) string
	}{
		{"round trips that a first call / a replay waits for", func(c results.Cost) string { return fmt.Sprint(c.Waited) }},
		{"write-ahead log of a first call / a replay, bytes", func(c results.Cost) string { return count(c.WAL) }},
		{"transaction ids of a first call / a replay", func(c results.Cost) string { return count(c.XIDs) }},
		{"allocations of a first call / a replay", func(c results.Cost) string { return count(c.Allocations) }},
	} {
		t.add(c.what, func(peer string) string { return costs(run, peer, c.of) })
	}
}

// addTimes adds the sections in which that peer was timed.
func (t *beside) addTimes(run results.Run, of string) {
	for _, m := range run.Timed {
		if m.Peer != of {
			continue
		}
		where := fmt.Sprintf("%s, %s", linkName(run, m.Link), callers(m.Callers))
		t.add(m.Section+", "+where, func(peer string) string { return against(run, peer, m.Section, m.Link, m.Callers) })
		if m.Section == results.Replay {
			t.add(m.Section+", "+where+results.Unknown, func(peer string) string {
				return against(run, peer+results.Unknown, m.Section, m.Link, m.Callers)
			})
		}
	}
}

// statement is a table of those that one would choose from where the operation is one
// statement: everything about them that was measured.
func statement(w io.Writer, run results.Run) {
	if counted(run, peers.QueryRow) == nil && !timedAtAll(run, peers.QueryRow) {
		return
	}
	t := newBeside([]string{peers.Bare, peers.QueryRow, peers.Ours, peers.Pipelined, peers.Redis})
	t.addCounts(run)
	t.addTimes(run, peers.QueryRow)
	fmt.Fprintf(w, "## An operation that is one statement\n\nThe same business write as one statement with its record and COMMIT in one round trip, beside the ways of a transaction. Times are multiples of the bare transaction's of the same round.\n\n%s\n", t)
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
