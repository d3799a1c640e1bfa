package report

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/pgidem/idempotency/bench/measure"
	"github.com/pgidem/idempotency/bench/peers"
	"github.com/pgidem/idempotency/bench/results"
)

// Summary writes this package in one look. What was not measured is left out.
func Summary(w io.Writer, run results.Run, scale *results.Scale) {
	t := table{head: []string{"this package", ""}}
	add := func(what string, values ...string) {
		if len(values) > 0 && !slices.Contains(values, "") {
			t.add(what, strings.Join(values, " / "))
		}
	}
	latency := linkName(run, results.Delay)
	for _, link := range []string{results.Delay, results.Socket} {
		add("first call, "+linkName(run, link)+", 1 / 8 callers",
			against(run, peers.Ours, results.First, link, 1), against(run, peers.Ours, results.First, link, 8))
	}
	add("first call of one statement, QueryRow, "+latency+", 1 / 8 / 16 callers",
		against(run, peers.QueryRow, results.First, results.Delay, 1), against(run, peers.QueryRow, results.First, results.Delay, 8), against(run, peers.QueryRow, results.First, results.Delay, 16))
	add("the hand-written pattern of 5 round trips, "+latency+", 1 / 8 callers; ours = 1",
		overOurs(run, peers.FiveTrips, results.First, 1), overOurs(run, peers.FiveTrips, results.First, 8))
	for _, link := range []string{results.Delay, results.Socket} {
		for _, what := range []struct{ key, peer string }{{"of a known key", peers.Ours}, {"of an unknown key", peers.Ours + results.Unknown}} {
			add("replay "+what.key+", "+linkName(run, link)+", 1 / 8 callers",
				against(run, what.peer, results.Replay, link, 1), against(run, what.peer, results.Replay, link, 8))
		}
	}
	if bare, ours := counted(run, peers.Bare), counted(run, peers.Ours); bare != nil && ours != nil {
		add("write-ahead log of a first call with a result of 320 bytes / of the bare transaction, in bytes", count(ours.First.WAL), count(bare.First.WAL))
		add("write-ahead log, transaction ids, fsyncs of a replay", count(ours.Replay.WAL), count(ours.Replay.XIDs), count(ours.Replay.Fsyncs))
	}
	for _, s := range run.Storms {
		if s.Peer == peers.Ours {
			add(fmt.Sprintf("other keys beside %s duplicates, %s: p99 / calls per second; executions", grouped(int64(s.Duplicates)), linkName(run, s.Link)),
				times(s.P99Ratio), times(s.RateRatio), count(float64(s.Executions)/float64(max(s.Storms, 1))))
		}
	}
	if scale != nil {
		grown(add, *scale)
	}
	if len(t.rows) > 0 {
		fmt.Fprintf(w, "## In short\n\nThe bare transaction is 1; for a replay the bare select by primary key, beside duplicates or a purge the calm server, on a grown table the empty one.\n\n%s\n", &t)
	}
}

// grown adds the largest tables.
func grown(add func(string, ...string), scale results.Scale) {
	var most int64
	for _, p := range scale.Points {
		most = max(most, p.Rows)
	}
	for _, p := range scale.Points {
		if p.Rows == most && p.Callers == 1 && p.Section == results.First {
			wal := 0.0
			if p.EmptyWAL > 0 {
				wal = p.FullWAL / p.EmptyWAL
			}
			add(fmt.Sprintf("first call on %s rows, %s: time / write-ahead log", grouped(p.Rows), p.Shape), times(p.Ratio), times(wal))
		}
	}
	for _, p := range scale.Purges {
		add(fmt.Sprintf("purge of %s rows/s beside %d callers: p99 / calls per second", grouped(int64(p.PerSecond)), p.Callers), times(p.P99Ratio), times(p.RateRatio))
	}
}

func counted(run results.Run, peer string) *results.Counts {
	for i, c := range run.Counts {
		if c.Peer == peer {
			return &run.Counts[i]
		}
	}
	return nil
}

func cell(run results.Run, peer, section, link string, callers int) *results.Timed {
	for i, t := range run.Timed {
		if t.Peer == peer && t.Section == section && t.Link == link && t.Callers == callers {
			return &run.Timed[i]
		}
	}
	return nil
}

// against is a ratio to the bare transaction.
func against(run results.Run, peer, section, link string, callers int) string {
	if t := cell(run, peer, section, link, callers); t != nil {
		return times(t.Ratio)
	}
	return ""
}

// overOurs is the median ratio of a peer to this package behind the delay link,
// round by round.
func overOurs(run results.Run, peer, section string, callers int) string {
	theirs, ours := cell(run, peer, section, results.Delay, callers), cell(run, peers.Ours, section, results.Delay, callers)
	if theirs == nil || ours == nil || len(theirs.Ratios) != len(ours.Ratios) {
		return ""
	}
	var ratios []float64
	for i := range ours.Ratios {
		ratios = append(ratios, theirs.Ratios[i]/ours.Ratios[i])
	}
	return times(measure.Median(ratios))
}
