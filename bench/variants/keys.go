package main

import (
	"context"
	"fmt"
)

var scopeFirst = []edit{{from: "primary key (id, scope)", to: "primary key (scope, id)"}}

func keyVariants() []variant {
	return []variant{
		ours("(id, scope), time-ordered ids"),
		{name: "(scope, id), time-ordered ids", table: scopeFirst},
		{name: "(id, scope), random ids", randomIDs: true},
		{name: "(scope, id), random ids", randomIDs: true, table: scopeFirst},
	}
}

// keys: the order of the primary key, on a table that has grown, right after a
// checkpoint, when the first change of each page is logged with the whole page. There
// is no vacuum before, so that the pages of the table are new ones.
func (l *lab) keys(ctx context.Context) error {
	all, err := l.sites(ctx, way{async: true}, keyVariants()...)
	if err != nil {
		return err
	}
	defer l.leave(all)
	var indexes []int64
	for _, s := range all {
		if err := l.fill(ctx, s); err != nil {
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

// fillSQL makes rows as calls have left them, with ids in the order of time or not.
const fillSQL = `
insert into idempotency_keys (id, scope, completed_at, expires_at, purge_after, fingerprint, result)
select case when $4::bool then gen_random_uuid()::text else lpad(to_hex(1700000000000000 + i), 16, '0') || substr(md5(i::text), 1, 20) end,
	'customer-' || floor(random() * $2::int), now(), now() + interval '24 hours', now() + interval '24 hours', decode(repeat('00', 32), 'hex'), $3::bytea
from generate_series(1, $1::int) i`

func (l *lab) fill(ctx context.Context, s *site) error {
	for _, q := range []query{ask(fillSQL, l.rows, l.scopes, smallResult, s.randomIDs), ask("analyze idempotency_keys")} {
		if _, err := s.pool.Exec(ctx, q.sql, q.args...); err != nil {
			return err
		}
	}
	return nil
}
