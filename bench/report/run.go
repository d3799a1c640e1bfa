// Package report makes Markdown and charts of what was measured.
package report

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgidem/idempotency/bench/peers"
	"github.com/pgidem/idempotency/bench/results"
)

// Run writes the tables of a run.
func Run(w io.Writer, run results.Run) {
	statement(w, run)
	counts(w, run)
	faults(w, run)
	for _, section := range []string{results.First, results.Replay, results.Mix} {
		timed(w, run, section)
	}
	storms(w, run)
}

// name emphasises this package.
func name(peer string) string {
	if peer == peers.Ours || peer == peers.QueryRow || peer == peers.Procedure {
		return "**" + peer + "**"
	}
	return peer
}

func counts(w io.Writer, run results.Run) {
	if len(run.Counts) == 0 {
		return
	}
	t := table{head: []string{"", "round trips", "waited for", "WAL bytes", "transaction ids", "fsyncs", "allocations", "connections held by 64 duplicates"}}
	for _, c := range run.Counts {
		held := count(c.Held)
		switch {
		case c.Executed == 0:
			held = "-"
		case c.Executed > 1:
			held = fmt.Sprintf("%s: %d executions", held, c.Executed)
		}
		t.add(append(append([]string{name(c.Peer) + ": first call"}, cost(c.First)...), held)...)
		t.add(append(append([]string{"replay"}, cost(c.Replay)...), "")...)
	}
	fmt.Fprintf(w, `## What a call costs, counted

Each figure is the mean over many calls on warm connections; of three measurements, the lowest. Round trips are counted on the wire, to PostgreSQL and to Redis. The time behind a link of 20 ms tells for which of them the caller waits. Write-ahead log, transaction ids and fsyncs are what the whole server counted, long after a checkpoint and with pages in memory. Allocations are those of the client's process. The last column counts PostgreSQL connections in use while 64 duplicates in one process wait for one call, not counting that call's own.

%s
`, &t)
	if run.Plain.First > 0 {
		fmt.Fprintf(w, "Of the allocations of %s, pgx alone needs %s for the statements of a first call, and %s for those of a replay.\n\n",
			name(peers.Ours), count(run.Plain.First), count(run.Plain.Replay))
	}
}

func cost(c results.Cost) []string {
	return []string{count(c.Trips), fmt.Sprint(c.Waited), count(c.WAL), count(c.XIDs), count(c.Fsyncs), count(c.Allocations)}
}

func faults(w io.Writer, run results.Run) {
	if len(run.Faults) == 0 {
		return
	}
	t := table{head: []string{"", "SIGKILL: effects per key", "keys answered", "after", "response lost: effects per key", "keys answered", "after", "another answer later"}}
	for _, p := range run.Peers {
		killed, lost := fault(run, p.Name, results.Killed), fault(run, p.Name, results.LostResponse)
		if killed == nil && lost == nil {
			continue
		}
		wrong := 0
		row := []string{name(p.Name)}
		for _, f := range []*results.Fault{killed, lost} {
			if f == nil {
				row = append(row, "-", "-", "-")
				continue
			}
			row = append(row, effects(f), fmt.Sprintf("%d of %d", f.Answers, f.Keys), ms(f.Took)+" ms")
			wrong += f.Wrong
		}
		t.add(append(row, fmt.Sprint(wrong))...)
	}
	fmt.Fprintf(w, `## What remains after a fault

A process is killed (SIGKILL) between the business write and the record of its answer, and another one retries until it is answered, for 45 s at most. And: the server's answer to the business transaction's COMMIT is lost with the connection, and the same process retries. Then the business rows of each key are counted in the database: one is right. The last column is the number of keys whose answer was another one when they were retried once more.

%s
`, &t)
	unanswered(w, run)
}

func unanswered(w io.Writer, run results.Run) {
	for _, f := range run.Faults {
		if f.Error != "" {
			fmt.Fprintf(w, "%s, %s, a key without an answer: `%s`\n\n", f.Peer, f.Kind, oneLine(f.Error))
		}
	}
}

func oneLine(text string) string {
	text = strings.ReplaceAll(strings.Join(strings.Fields(text), " "), "`", "'")
	if len(text) > 200 {
		text = strings.ToValidUTF8(text[:200], "") + " …"
	}
	return text
}

func fault(run results.Run, peer, kind string) *results.Fault {
	for i, f := range run.Faults {
		if f.Peer == peer && f.Kind == kind {
			return &run.Faults[i]
		}
	}
	return nil
}

// effects should be one of each key.
func effects(f *results.Fault) string { return each(f.Effects, 1) }

// each is one number when it is the same for all keys. What should be another one is
// emphasised, unless want is 0.
func each(counts []int, want int) string {
	if len(counts) == 0 {
		return ""
	}
	low, high := slices.Min(counts), slices.Max(counts)
	text := fmt.Sprint(low)
	if low != high {
		text = fmt.Sprintf("%d to %d", low, high)
	}
	if want > 0 && (low != want || high != want) {
		text = "**" + text + "**"
	}
	return text
}

// explanations of the timed sections.
var explanations = map[string]string{
	results.First:  "A new key each time: one business INSERT.",
	results.Replay: "A random one of 500 recorded keys. This package asks for a key that its process has recorded, or seen recorded, in another way than for one that it has not. The bare transaction's replay is a select of the answer by its primary key, the least that any of them can do; the others also compare fingerprints, or look whether the answer has expired.",
	results.Mix:    "One call in twenty is a first call, the others are replays.",
}

func timed(w io.Writer, run results.Run, section string) {
	type column struct {
		link    string
		callers int
	}
	var columns []column
	cells := make(map[string]map[column]results.Timed)
	for _, t := range run.Timed {
		if t.Section != section {
			continue
		}
		c := column{t.Link, t.Callers}
		if !slices.Contains(columns, c) {
			columns = append(columns, c)
		}
		if cells[t.Peer] == nil {
			cells[t.Peer] = make(map[column]results.Timed)
		}
		cells[t.Peer][c] = t
	}
	if len(columns) == 0 {
		return
	}
	t := table{head: []string{""}}
	for _, c := range columns {
		t.head = append(t.head, fmt.Sprintf("%s, %s", linkName(run, c.link), callers(c.callers)))
	}
	add := func(label, peer string) {
		row := []string{label}
		for _, c := range columns {
			row = append(row, timedCell(cells[peer][c]))
		}
		t.add(row...)
	}
	for _, p := range run.Peers {
		add(name(p.Name), p.Name)
		if unknown := p.Name + results.Unknown; cells[unknown] != nil {
			add(name(p.Name)+results.Unknown, unknown)
		}
	}
	fmt.Fprintf(w, "## %s%s\n\n%s In each cell: the time of a call as a multiple of the bare transaction's (the median of the paired ratios of %d rounds), then p50 and p99 in ms.\n\n%s\n",
		strings.ToUpper(section[:1]), section[1:], explanations[section], run.Conditions.Rounds, &t)
	for _, t := range run.Timed {
		if t.Section == section && t.Errors > 0 {
			fmt.Fprintf(w, "%s, %s, %s: %d of %d calls failed: `%s`\n\n", t.Peer, linkName(run, t.Link), callers(t.Callers), t.Errors, t.Errors+t.Calls, oneLine(t.Error))
		}
	}
}

func timedCell(t results.Timed) string {
	if t.Calls == 0 {
		return "-"
	}
	return fmt.Sprintf("%s (%s, %s)", times(t.Ratio), ms(t.P50), ms(t.P99))
}

func callers(n int) string {
	if n == 1 {
		return "1 caller"
	}
	return fmt.Sprintf("%d callers", n)
}

func linkName(run results.Run, link string) string {
	switch {
	case link == results.Delay:
		return span(2*run.Conditions.Delay) + " latency"
	case strings.HasPrefix(run.Conditions.Socket, "TCP"):
		return "loopback"
	}
	return "unix socket"
}

func storms(w io.Writer, run results.Run) {
	if len(run.Storms) == 0 {
		return
	}
	t := table{head: []string{"", "duplicates", "link", "p99 of distinct keys", "p99 in ms: calm, storm", "longest in ms", "calls/s of distinct keys", "executions per key", "last answer after", "unanswered"}}
	for _, s := range run.Storms {
		t.add(name(s.Peer), grouped(int64(s.Duplicates)), linkName(run, s.Link),
			times(s.P99Ratio), ms(s.Calm.P99)+", "+ms(s.Wild.P99), ms(s.Calm.Longest)+", "+ms(s.Wild.Longest), times(s.RateRatio), executions(s), ms(s.Took)+" ms", grouped(int64(s.Unanswered)))
	}
	fmt.Fprintf(w, `## Storm

Duplicates of one key arrive at once, whose function takes %s, beside 8 workers on distinct keys, in one process with a pool of %d. The window begins with the storm and lasts until its last duplicate has an answer, %s at least; it is compared with a calm window of %s (p99 and calls per second as multiples, medians of paired windows). A stall of all workers is few calls, so look at the longest, too. For comparison: as many goroutines that only wait for a channel, and are woken all at once. Duplicates that are turned away come back after 25 to 75 ms, for 15 s at most.

%s
`, span(run.Conditions.Work), run.Conditions.Pool, span(run.Conditions.Window), span(run.Conditions.Window), &t)
	for _, s := range run.Storms {
		if s.Error != "" {
			fmt.Fprintf(w, "%s, %s duplicates, %s: %d of these unanswered, %d calls of distinct keys failed: `%s`\n\n",
				s.Peer, grouped(int64(s.Duplicates)), linkName(run, s.Link), s.Unanswered, s.Failed, oneLine(s.Error))
		}
	}
}

// executions of one storm's key should be one.
func executions(s results.Storm) string {
	text := count(float64(s.Executions) / float64(max(s.Storms, 1)))
	switch {
	case s.Peer == results.Standing:
		return ""
	case s.Executions != s.Storms:
		return "**" + text + "**"
	}
	return text
}

// Conditions writes what the figures depend on.
func Conditions(w io.Writer, c results.Conditions, started time.Time, took time.Duration) {
	fmt.Fprintf(w, "%s, %v. PostgreSQL %s over %s, %s, pgx %s, %s, %d cores (%s), load average before: %s.",
		started.Format("2006-01-02 15:04 MST"), took.Round(time.Second), c.PostgreSQL, c.Socket, c.Go, c.PGX, c.System, c.Cores, c.CPU, c.LoadBefore)
	fmt.Fprintf(w, " %d rounds, %s for each side in a round, interleaved. A pool of %d connections each.", c.Rounds, span(c.Slice), c.Pool)
	if c.Delay > 0 {
		fmt.Fprintf(w, " Latency: %s each way, by a proxy in a process of its own, which delays bytes and does not serialise them.", span(c.Delay))
	}
	var settings []string
	for _, key := range slices.Sorted(maps.Keys(c.Settings)) {
		settings = append(settings, fmt.Sprintf("%s = %s", key, c.Settings[key]))
	}
	fmt.Fprintf(w, " Settings: `%s`.", strings.Join(settings, ", "))
	for _, tool := range slices.Sorted(maps.Keys(c.Tools)) {
		fmt.Fprintf(w, " %s: %s.", tool, c.Tools[tool])
	}
	fmt.Fprintln(w)
	busy(w, c)
}

// busy warns of a machine that had other things to do.
func busy(w io.Writer, c results.Conditions) {
	if load, err := strconv.ParseFloat(c.LoadBefore, 64); err == nil && load >= float64(c.Cores) {
		fmt.Fprintf(w, "\n**The machine was busy with other things when this run began: its times say little; what is counted holds.**\n")
	}
}
