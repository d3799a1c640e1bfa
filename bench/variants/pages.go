package main

import (
	"context"
	"fmt"
)

// byCTID records as under SERIALIZABLE. PostgreSQL prunes a page that an index, or a
// range of ctids, leads to, but not one that a ctid leads to.
var byCTID = []edit{{" and ctid >= $3 and ctid <= $3", " and ctid = $3"}}

// pages: what a call leaves on its page. The claim's version of the row is dead when
// the call has committed. If nothing prunes it, the next vacuum makes it room for
// calls on pages that were long written, each of which is logged in whole.
func (l *lab) pages(ctx context.Context) error {
	all, err := l.sites(ctx, way{async: true},
		ours("fillfactor 95, record by range (as it is)"),
		variant{name: "fillfactor 95, record by ctid (as it is under SERIALIZABLE)", calls: byCTID},
		variant{name: "fillfactor 90, record by range", table: fillfactorIs("90")},
		variant{name: "fillfactor 90, record by ctid", table: fillfactorIs("90"), calls: byCTID},
		variant{name: "fillfactor 100, record by range", table: fillfactorIs("100")},
		variant{name: "fillfactor 100, record by ctid", table: fillfactorIs("100"), calls: byCTID},
	)
	if err != nil {
		return err
	}
	defer l.leave(all)
	const rounds, per, callers = 10, 600, 8
	calls := func(ctx context.Context, s *site) error {
		return s.alone(ctx, s.request(1000, smallResult))
	}
	if err := l.exec(ctx, "checkpoint"); err != nil {
		return err
	}
	fresh, err := l.turns(ctx, all, rounds, per, callers, calls)
	if err != nil {
		return err
	}
	var heaps []int64
	for _, s := range all {
		// Pages in use: callers that meet at the end of a table add many at a time.
		heap, err := l.number(ctx, fmt.Sprintf("select 8192 * count(distinct (ctid::text::point)[0]) / count(*) from %s.idempotency_keys", s.schema))
		if err != nil {
			return err
		}
		heaps = append(heaps, heap)
		if _, err := s.pool.Exec(ctx, "vacuum idempotency_keys"); err != nil {
			return err
		}
	}
	if err := l.exec(ctx, "checkpoint"); err != nil {
		return err
	}
	after, err := l.turns(ctx, all, 2, per/2, callers, calls)
	if err != nil {
		return err
	}
	t := newTable("table and record", "WAL B per call", "heap B per row", "HOT updates", "WAL B per call after a vacuum and a checkpoint")
	for i, at := range fresh {
		hot, err := l.hot(ctx, at.site)
		if err != nil {
			return err
		}
		t.add(at.name, at.walPerOp(), grouped(heaps[i]), hot, after[i].walMean())
	}
	l.show(fmt.Sprintf("Pages: %s calls of %d callers on an empty table, a vacuum, a checkpoint, and %s calls", grouped(int64(fresh[0].ops)), callers, grouped(int64(after[0].ops))), t)
	return nil
}
