package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

var scopeFirst = []edit{{"primary key (id, scope)", "primary key (scope, id)"}}

// keys: the order of the primary key, on a table that has grown, right after a
// checkpoint, when the first change of each page is logged with the whole page.
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
		if err := l.fill(ctx, s, l.rows, time.Hour); err != nil {
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
		t.add(at.name, at.walPerOp(), at.ratio(lanes[0]), megabytes(indexes[i]), grouped(indexes[i]/int64(l.rows)))
	}
	l.show(fmt.Sprintf("Order of the primary key: %s rows in %s scopes, then a checkpoint and %s calls",
		grouped(int64(l.rows)), grouped(int64(l.scopes)), grouped(rounds*per)), t)
	return nil
}

// fill copies finished records into a table, as calls of the past would have left
// them: keys in the order of their time, and due for the purge that much from now.
func (l *lab) fill(ctx context.Context, s *site, rows int, due time.Duration) error {
	began := time.Now().Add(-time.Hour)
	step := time.Hour / time.Duration(rows)
	_, err := s.pool.CopyFrom(ctx, pgx.Identifier{"idempotency_keys"},
		[]string{"purge_after", "id", "scope", "completed_at", "expires_at", "fingerprint", "result"},
		pgx.CopyFromSlice(rows, func(i int) ([]any, error) {
			at := began.Add(time.Duration(i) * step)
			ends := at.Add(time.Hour + due)
			return []any{ends, s.idOf(at), fmt.Sprintf("customer-%d", rand.IntN(l.scopes)), at, ends, make([]byte, 32), smallResult}, nil
		}))
	if err != nil {
		return err
	}
	_, err = s.pool.Exec(ctx, "vacuum (analyze) idempotency_keys")
	return err
}

// idOf is an id that was made at some time.
func (s *site) idOf(at time.Time) string {
	id := uuid.New()
	if !s.randomIDs {
		ms := at.UnixMilli()
		for i := range 6 {
			id[i] = byte(ms >> (8 * (5 - i)))
		}
		id[6] = id[6]&0x0f | 0x70
	}
	return id.String()
}
