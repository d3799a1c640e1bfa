package main

import (
	"context"
	"fmt"
	"time"
)

var scopeFirst = []edit{{"primary key (id, scope)", "primary key (scope, id)"}}

// keys: the order of the primary key, on a table that has grown, right after a
// checkpoint, when the first change of each page is logged with the whole page. There
// is no vacuum before, so that the pages of the table are new ones (see pages).
func (l *lab) keys(ctx context.Context) error {
	all, err := l.sites(ctx, way{async: true},
		ours("(id, scope), time-ordered ids"),
		variant{name: "(scope, id), time-ordered ids", table: scopeFirst},
		variant{name: "(id, scope), random ids", randomIDs: true},
		variant{name: "(scope, id), random ids", randomIDs: true, table: scopeFirst})
	if err != nil {
		return err
	}
	defer l.leave(all)
	var indexes []int64
	for _, s := range all {
		if err := l.fill(ctx, s, l.rows, 0); err != nil {
			return fmt.Errorf("%s: fill: %w", s.name, err)
		}
		n, err := l.number(ctx, "select pg_relation_size($1::regclass)", s.schema+".idempotency_keys_pkey")
		if err != nil {
			return err
		}
		indexes = append(indexes, n)
	}
	if err := l.exec(ctx, "checkpoint"); err != nil {
		return err
	}
	const rounds, per, callers = 10, 500, 8
	lanes, err := l.turns(ctx, all, rounds, per, callers, func(ctx context.Context, s *site) error {
		return s.alone(ctx, s.request(l.scopes, smallResult))
	})
	if err != nil {
		return err
	}
	t := newTable("primary key", "WAL B per call", "time", "its index MB", "index B per row")
	for i, at := range lanes {
		t.add(at.name, at.walMean(), at.ratio(lanes[0]), megabytes(indexes[i]), grouped(indexes[i]/int64(l.rows)))
	}
	l.show(fmt.Sprintf("Order of the primary key: %s rows in %s scopes, then a checkpoint and %s calls",
		grouped(int64(l.rows)), grouped(int64(l.scopes)), grouped(int64(lanes[0].ops))), t)
	return nil
}

// fill makes rows as calls make them, of which a part has expired: the oldest.
func (l *lab) fill(ctx context.Context, s *site, rows, expired int) error {
	if _, err := s.pool.Exec(ctx, s.callsProcedure()); err != nil {
		return err
	}
	for _, st := range []stretch{
		{calls: expired, scopes: l.scopes, every: 1, result: smallResult},
		{calls: rows - expired, scopes: l.scopes, every: 1, result: smallResult, lifetime: 24 * time.Hour},
	} {
		if err := s.make(ctx, st); err != nil {
			return err
		}
	}
	_, err := s.pool.Exec(ctx, "analyze idempotency_keys")
	return err
}
