package report

import (
	"fmt"
	"io"

	"github.com/pgidem/idempotency/bench/results"
)

// Scale writes the tables of a run of "bench scale".
func Scale(w io.Writer, scale results.Scale) {
	if len(scale.Points) > 0 {
		t := table{head: []string{"ids and scopes", "rows", "table, indexes", "", "callers", "time, empty table = 1", "p50 in ms: empty, full", "WAL bytes: empty, full"}}
		for _, p := range scale.Points {
			wal := count(p.EmptyWAL) + ", " + count(p.FullWAL)
			t.add(p.Shape, grouped(p.Rows), megabytes(p.HeapBytes)+", "+megabytes(p.IndexBytes), p.Section, fmt.Sprint(p.Callers),
				times(p.Ratio), ms(p.Empty.P50)+", "+ms(p.Full.P50), wal)
		}
		fmt.Fprintf(w, "Calls on a full table, interleaved with the same calls on an empty one; the ratio is the median of the paired rounds. Each section begins with a checkpoint, after which the first change of a page logs it whole: one caller, who is measured first, meets more such pages than the eight that follow. The table was filled as calls fill it, row by row, and is vacuumed after the first calls of each size (autovacuum is off, so that none falls into a measurement). At its full size two more are shown: replays before that vacuum, which can have to prune the page they read, and first calls right after it, which fill the gaps that it left in old pages: one at most in each, and only where results are of a size that leaves room. Replays are of random keys of the whole table.\n\n%s\n", &t)
	}
	if len(scale.Purges) > 0 {
		t := table{head: []string{"purge beside calls", "rows in the table", "rows deleted in a second", "callers", "calls/s", "p99", "p99 in ms: without, with"}}
		for _, p := range scale.Purges {
			t.add(p.Shape, grouped(p.Rows), fmt.Sprintf("%s of %s", grouped(int64(p.PerSecond)), grouped(int64(p.Target))), fmt.Sprint(p.Callers),
				times(p.RateRatio), times(p.P99Ratio), ms(p.Calm.P99)+", "+ms(p.Busy.P99))
		}
		fmt.Fprintf(w, "First calls with a purge beside them, interleaved with the same calls without one (medians of paired windows).\n\n%s\n", &t)
	}
}
