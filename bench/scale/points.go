package scale

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/bench/measure"
	"github.com/pgidem/idempotency/bench/peers"
	"github.com/pgidem/idempotency/bench/results"
)

// A side is one of the two tables that are compared.
type side struct {
	pool  *pgxpool.Pool
	store *idempotency.Store
	all   measure.Slice
	wal   int64
}

func (b *bench) open(ctx context.Context, database string) (*side, error) {
	cfg, err := pgxpool.ParseConfig(b.server.DSN(database, ""))
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = int32(b.Pool)
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &side{pool: pool, store: idempotency.New(pool)}, nil
}

// A section is what is measured on a full table and on an empty one.
type section struct {
	name   string
	ops    [2]measure.Operation
	vacuum bool // the full table, before
}

// points measures first calls and replays, of one and of eight callers, on the
// full table and on an empty one, as far as that is not done.
func (b *bench) points(ctx context.Context, s shape, rows int64, p *progress) error {
	full, err := b.open(ctx, s.database())
	if err != nil {
		return err
	}
	defer full.pool.Close()
	empty, err := b.open(ctx, s.empty())
	if err != nil {
		return err
	}
	defer empty.pool.Close()
	const seeds = 500
	if err := seed(ctx, empty, s, seeds); err != nil {
		return err
	}
	news := [2]measure.Operation{firstCall(full, s), firstCall(empty, s)}
	olds := [2]measure.Operation{replay(full, s, rows), replay(empty, s, seeds)}
	sections := []section{{results.First, news, false}, {results.Replay, olds, true}}
	if rows == b.Rows {
		// The table is not vacuumed behind our back (see prepare), so at its full size
		// both can be shown: before a vacuum a replay may have to tidy the page it reads,
		// and after one first calls fill the gaps in old pages.
		sections = []section{
			{results.First, news, false}, {results.ReplayUnvacuumed, olds, false},
			{results.Replay, olds, true}, {results.FirstVacuumed, news, true},
		}
	}
	m := meeting{b, s, rows, full, empty}
	for _, sec := range sections {
		if p.has(rows, sec.name) {
			continue
		}
		points, err := m.compare(ctx, sec)
		if err != nil {
			return err
		}
		p.Points = append(p.Points, points...)
		if err := b.save(ctx, s, *p); err != nil {
			return err
		}
	}
	return nil
}

// seed empties a table, and records keys in it.
func seed(ctx context.Context, empty *side, s shape, keys int64) error {
	if _, err := empty.pool.Exec(ctx, "truncate idempotency_keys, charges"); err != nil {
		return err
	}
	for i := range keys {
		if _, _, err := idempotency.Do(ctx, empty.store, s.keyOf(1+i), charge(s.keyOf(1+i))); err != nil {
			return err
		}
	}
	return nil
}

func charge(key idempotency.Key) func(context.Context, pgx.Tx) (string, error) {
	return func(ctx context.Context, tx pgx.Tx) (string, error) {
		return peers.CallOf(key.ID).Write(ctx, tx)
	}
}

func firstCall(on *side, s shape) measure.Operation {
	return func(ctx context.Context, _ int) error {
		key := s.newKey()
		_, replayed, err := idempotency.Do(ctx, on.store, key, charge(key))
		if err == nil && replayed {
			err = fmt.Errorf("the new key %v was replayed", key)
		}
		return err
	}
}

// replay replays random rows of the first ones.
func replay(on *side, s shape, rows int64) measure.Operation {
	return func(ctx context.Context, _ int) error {
		key := s.keyOf(1 + rand.Int64N(rows))
		_, replayed, err := idempotency.Do(ctx, on.store, key, charge(key))
		if err == nil && !replayed {
			err = fmt.Errorf("the recorded key %v was executed", key)
		}
		return err
	}
}

// A meeting is of a full table of some size with an empty one.
type meeting struct {
	*bench
	shape       shape
	rows        int64
	full, empty *side
}

// compare measures a section with one and with eight callers, after a checkpoint:
// the first change of a page then logs it in whole.
func (m meeting) compare(ctx context.Context, sec section) (points []results.Point, err error) {
	before := []string{"checkpoint"}
	if sec.vacuum {
		before = []string{"vacuum (analyze) idempotency_keys", "checkpoint"}
	}
	for _, sql := range before {
		if _, err := m.full.pool.Exec(ctx, sql); err != nil {
			return nil, err
		}
	}
	for _, callers := range []int{1, 8} {
		m.logf("%s, %d rows: %s, %d callers", m.shape.name, m.rows, sec.name, callers)
		p := results.Point{Shape: m.shape.name, Rows: m.rows, Section: sec.name, Callers: callers}
		if err := m.interleave(ctx, &p, sec.ops); err != nil {
			return nil, err
		}
		points = append(points, p)
	}
	return points, nil
}

func (m meeting) interleave(ctx context.Context, p *results.Point, ops [2]measure.Operation) error {
	sides := [2]*side{m.full, m.empty}
	for i, on := range sides {
		on.all, on.wal = measure.Slice{}, 0
		warm := measure.During(ctx, p.Callers, ops[i], measure.Lasting(ctx, m.Slice))
		if len(warm.Errors) > 0 {
			return errors.Join(warm.Errors[:1]...)
		}
	}
	for round := range m.Rounds {
		var stretches [2]measure.Slice
		for i := range sides {
			at := (i + round) % len(sides)
			runtime.GC()
			before, err := m.server.Counters(ctx)
			if err != nil {
				return err
			}
			stretches[at] = measure.During(ctx, p.Callers, ops[at], measure.Lasting(ctx, m.Slice))
			after, err := m.server.Counters(ctx)
			if err != nil {
				return err
			}
			sides[at].wal += after.Minus(before).WAL
			sides[at].all.Add(stretches[at])
			if failed := stretches[at].Errors; len(failed) > 0 {
				return failed[0]
			}
		}
		p.Ratios = append(p.Ratios, measure.Ratio(stretches[0].Mean(), stretches[1].Mean()))
	}
	p.Ratio = measure.Median(p.Ratios)
	p.Full, p.Empty = m.full.all.Load(), m.empty.all.Load()
	p.FullWAL = float64(m.full.wal) / float64(max(len(m.full.all.Latencies), 1))
	p.EmptyWAL = float64(m.empty.wal) / float64(max(len(m.empty.all.Latencies), 1))
	return m.full.pool.QueryRow(ctx, "select pg_table_size('idempotency_keys'), pg_indexes_size('idempotency_keys')").Scan(&p.HeapBytes, &p.IndexBytes)
}
