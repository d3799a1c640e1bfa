package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

const purgeIndex = "create index if not exists idempotency_keys_purge_after on idempotency_keys (purge_after)"

// onExpiresAt is a purge that goes by the exact time.
var onExpiresAt = []edit{
	{"where purge_after <= now() and expires_at <= now()", "where expires_at <= now()"},
	{"order by purge_after", "order by expires_at"},
}

func purgeIndexIs(sql string) []edit { return []edit{{purgeIndex, sql}} }

// expiry: how the purge finds what has expired, and what that costs the calls.
func (l *lab) expiry(ctx context.Context) error {
	all, err := l.sites(ctx, way{async: true},
		ours("btree (purge_after)"),
		variant{name: "btree (expires_at)", calls: onExpiresAt,
			table: purgeIndexIs("create index on idempotency_keys (expires_at)")},
		variant{name: "btree (expires_at) where expires_at is not null", calls: onExpiresAt,
			table: purgeIndexIs("create index on idempotency_keys (expires_at) where expires_at is not null")},
		variant{name: "btree (purge_after) where completed_at is not null",
			calls: []edit{{"where purge_after <= now() and expires_at <= now()", "where purge_after <= now() and expires_at <= now() and completed_at is not null"}},
			table: purgeIndexIs("create index on idempotency_keys (purge_after) where completed_at is not null")},
		variant{name: "brin (purge_after)", table: purgeIndexIs("create index on idempotency_keys using brin (purge_after)")},
		variant{name: "brin (expires_at)", calls: onExpiresAt,
			table: purgeIndexIs("create index on idempotency_keys using brin (expires_at)")},
		variant{name: "none", table: purgeIndexIs("select 1")})
	if err != nil {
		return err
	}
	defer l.leave(all)
	if err := l.exec(ctx, "checkpoint"); err != nil {
		return err
	}
	const rounds, per, callers = 10, 300, 8
	lanes, err := l.turns(ctx, all, rounds, per, callers, func(ctx context.Context, s *site) error {
		return s.alone(ctx, s.request(1000, smallResult))
	})
	if err != nil {
		return err
	}
	t := newTable("index for the purge", "WAL B per call", "time", "HOT updates", "its MB", "pages that a purge of 1,000 touches", "its WAL B per row", "its ms")
	for _, at := range lanes {
		hot, err := l.hot(ctx, at.site)
		if err != nil {
			return err
		}
		if err := l.fill(ctx, at.site, l.rows, l.rows/4); err != nil {
			return fmt.Errorf("%s: fill: %w", at.name, err)
		}
		// It also makes a BRIN index know what it has to know.
		if _, err := at.pool.Exec(ctx, "vacuum idempotency_keys"); err != nil {
			return err
		}
		p, err := l.purgeOnce(ctx, at.site)
		if err != nil {
			return fmt.Errorf("%s: purge: %w", at.name, err)
		}
		size, err := l.number(ctx, "select coalesce(sum(pg_relation_size(indexrelid)), 0)::bigint from pg_index where indrelid = $1::regclass and not indisprimary", at.schema+".idempotency_keys")
		if err != nil {
			return err
		}
		t.add("`"+at.name+"`", at.walPerOp(), at.ratio(lanes[0]), hot, megabytes(size), grouped(p.pages), grouped(p.wal/p.rows), fmt.Sprintf("%.1f", p.ms))
	}
	l.show(fmt.Sprintf("Index for the purge: %s calls on an empty table; then %s rows, of which a quarter has expired", grouped(int64(lanes[0].ops)), grouped(int64(l.rows))), t)
	return nil
}

// A purged is what one statement of a purge cost.
type purged struct {
	rows, pages, wal int64
	ms               float64
}

// purgeOnce purges three times, and returns the middle one.
func (l *lab) purgeOnce(ctx context.Context, s *site) (purged, error) {
	var all []purged
	for range 3 {
		p, err := l.purge(ctx, s)
		if err != nil {
			return p, err
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b purged) int { return int(a.pages - b.pages) })
	return all[1], nil
}

func (l *lab) purge(ctx context.Context, s *site) (p purged, err error) {
	var plans string
	sql := "explain (analyze, buffers, format json) " + strings.ReplaceAll(s.sql.purge, "$1", "1000")
	before, err := l.wal(ctx)
	if err != nil {
		return p, err
	}
	if err := s.pool.QueryRow(ctx, sql).Scan(&plans); err != nil {
		return p, err
	}
	after, err := l.wal(ctx)
	if err != nil {
		return p, err
	}
	var explained []struct {
		Plan struct {
			Hit  int64 `json:"Shared Hit Blocks"`
			Read int64 `json:"Shared Read Blocks"`
		}
		Time float64 `json:"Execution Time"`
	}
	if err := json.Unmarshal([]byte(plans), &explained); err != nil {
		return p, err
	}
	plan := explained[0].Plan
	return purged{rows: 1000, pages: plan.Hit + plan.Read, wal: after - before, ms: explained[0].Time}, nil
}

// hot is the share of updates that stayed out of the indexes. Sessions report
// that when they end.
func (l *lab) hot(ctx context.Context, s *site) (string, error) {
	s.pool.Reset()
	time.Sleep(100 * time.Millisecond) // until they have ended
	var updates, hot int64
	err := l.admin.QueryRow(ctx, "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relid = $1::regclass",
		s.schema+".idempotency_keys").Scan(&updates, &hot)
	return percent(hot, updates), err
}
