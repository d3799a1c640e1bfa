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

// points measures first calls and replays, of one and of eight callers, on the
// full table and on an empty one.
func (b *bench) points(ctx context.Context, s shape, rows int64) (points []results.Point, err error) {
	full, err := b.open(ctx, s.database())
	if err != nil {
		return nil, err
	}
	defer full.pool.Close()
	empty, err := b.open(ctx, s.empty())
	if err != nil {
		return nil, err
	}
	defer empty.pool.Close()
	const seeds = 500
	if err := seed(ctx, empty, s, seeds); err != nil {
		return nil, err
	}
	for _, section := range []string{results.First, results.Replay} {
		ops := [2]measure.Operation{firstCall(full, s), firstCall(empty, s)}
		if section == results.Replay {
			ops = [2]measure.Operation{replay(full, s, rows), replay(empty, s, seeds)}
		}
		for _, callers := range []int{1, 8} {
			b.logf("%s, %d rows: %s, %d callers", s.name, rows, section, callers)
			p := results.Point{Shape: s.name, Rows: rows, Section: section, Callers: callers}
			if err := b.compare(ctx, &p, full, empty, ops); err != nil {
				return nil, err
			}
			points = append(points, p)
		}
	}
	return points, nil
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

// compare interleaves the two sides.
func (b *bench) compare(ctx context.Context, p *results.Point, full, empty *side, ops [2]measure.Operation) error {
	sides := [2]*side{full, empty}
	for i, on := range sides {
		on.all, on.wal = measure.Slice{}, 0
		warm := measure.During(ctx, p.Callers, ops[i], measure.Lasting(ctx, b.Slice))
		if len(warm.Errors) > 0 {
			return errors.Join(warm.Errors[:1]...)
		}
	}
	for round := range b.Rounds {
		var stretches [2]measure.Slice
		for i := range sides {
			at := (i + round) % len(sides)
			runtime.GC()
			before, err := b.server.Counters(ctx)
			if err != nil {
				return err
			}
			stretches[at] = measure.During(ctx, p.Callers, ops[at], measure.Lasting(ctx, b.Slice))
			after, err := b.server.Counters(ctx)
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
	p.Full, p.Empty = full.all.Load(), empty.all.Load()
	if p.Section == results.First {
		p.FullWAL = float64(full.wal) / float64(len(full.all.Latencies))
		p.EmptyWAL = float64(empty.wal) / float64(len(empty.all.Latencies))
	}
	return full.pool.QueryRow(ctx, "select pg_table_size('idempotency_keys'), pg_indexes_size('idempotency_keys')").Scan(&p.HeapBytes, &p.IndexBytes)
}
