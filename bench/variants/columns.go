package main

import (
	"context"
	"fmt"
)

const ourColumns = `	purge_after  timestamptz not null,
	id           text collate "C" not null,
	scope        text collate "C" not null,
	completed_at timestamptz,
	expires_at   timestamptz,
	fingerprint  bytea,
	result       bytea,
	origin       text collate "C",
`

func columnsAre(columns string) []edit { return []edit{{ourColumns, columns}} }

// columns: their order and number, in bytes.
func (l *lab) columns(ctx context.Context) error {
	all, err := l.sites(ctx, way{async: true},
		ours("as it is: purge_after, id, scope, completed_at, expires_at, fingerprint, result, origin"),
		variant{name: "the key first, then the times", table: columnsAre(`
	id           text collate "C" not null,
	scope        text collate "C" not null,
	purge_after  timestamptz not null,
	completed_at timestamptz,
	expires_at   timestamptz,
	fingerprint  bytea,
	result       bytea,
	origin       text collate "C",
`)},
		variant{name: "all fixed-width columns first", table: columnsAre(`
	purge_after  timestamptz not null,
	completed_at timestamptz,
	expires_at   timestamptz,
	id           text collate "C" not null,
	scope        text collate "C" not null,
	fingerprint  bytea,
	result       bytea,
	origin       text collate "C",
`)},
		variant{name: "what the record sets first, the key last", table: columnsAre(`
	completed_at timestamptz,
	expires_at   timestamptz,
	fingerprint  bytea,
	result       bytea,
	origin       text collate "C",
	purge_after  timestamptz not null,
	id           text collate "C" not null,
	scope        text collate "C" not null,
`)},
		variant{name: "the times last", table: columnsAre(`
	purge_after  timestamptz not null,
	id           text collate "C" not null,
	scope        text collate "C" not null,
	fingerprint  bytea,
	result       bytea,
	origin       text collate "C",
	completed_at timestamptz,
	expires_at   timestamptz,
`)},
		variant{name: "a ninth column, created_at, set by the claim", table: columnsAre(
			"\tcreated_at timestamptz not null default now(),\n" + ourColumns)},
		variant{name: "a ninth column that stays null", table: columnsAre(ourColumns + "\tremark text,\n")},
		variant{name: "id as uuid: not any text",
			table: []edit{{`id           text collate "C" not null`, "id uuid not null"}},
			calls: []edit{{"select $1::text, $2::text,", "select $1::uuid, $2::text,"}}},
		variant{name: "result in a table of its own",
			extra: []string{`create table results (
				id text collate "C" not null, scope text collate "C" not null, fingerprint bytea, result bytea, origin text collate "C",
				primary key (id, scope))`},
			calls: []edit{
				{"set fingerprint = $4, result = $5, origin = $7, completed_at", "set completed_at"},
				{"	returning 1\n)", "	returning 1\n), result as (insert into results (id, scope, fingerprint, result, origin) values ($1, $2, $4, $5, $7))"},
			}},
		variant{name: "no index for the purge (what that costs)", table: purgeIndexIs("select 1")},
	)
	if err != nil {
		return err
	}
	defer l.leave(all)
	if err := l.exec(ctx, "checkpoint"); err != nil {
		return err
	}
	const rounds, per = 10, 300
	lanes, err := l.turns(ctx, all, rounds, per, 1, func(ctx context.Context, s *site) error {
		return s.alone(ctx, s.request(1000, smallResult))
	})
	if err != nil {
		return err
	}
	t := newTable("columns", "WAL B per call", "heap B per row", "a row's own B", "indexes B per row", "HOT updates")
	for _, at := range lanes {
		b, err := l.bytesPerRow(ctx, at.site)
		if err != nil {
			return fmt.Errorf("%s: %w", at.name, err)
		}
		hot, err := l.hot(ctx, at.site)
		if err != nil {
			return err
		}
		t.add(at.name, at.walPerOp(), grouped(b.heap), grouped(b.tuple), grouped(b.indexes), hot)
	}
	l.show(fmt.Sprintf("Columns: %s calls with a result of 300 B and a fingerprint, the business write left out", grouped(int64(lanes[0].ops))), t)
	return nil
}

type bytesOfRow struct{ heap, tuple, indexes int64 }

func (l *lab) bytesPerRow(ctx context.Context, s *site) (b bytesOfRow, err error) {
	err = l.admin.QueryRow(ctx, fmt.Sprintf(`
		select sum(pg_table_size(c.oid))::bigint / k.n, k.size, sum(pg_indexes_size(c.oid))::bigint / k.n
		from pg_class c, (select count(*) n, avg(pg_column_size(k.*))::bigint size from %[1]s.idempotency_keys k) k
		where c.relnamespace = '%[1]s'::regnamespace and c.relkind = 'r' and c.relname in ('idempotency_keys', 'results')
		group by k.n, k.size`, s.schema)).Scan(&b.heap, &b.tuple, &b.indexes)
	return b, err
}
