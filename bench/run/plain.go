package run

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/bench/peers"
	"github.com/pgidem/idempotency/bench/results"
)

// A plain client sends what this package sends, with pgx and nothing else: what
// it allocates is not for the package to save. The statements are those that the
// package was seen to send, so they are always its own.
type plain struct {
	conn     *pgxpool.Conn
	recorded *peers.Call
	batches  [][]pgx.QueuedQuery // of a first call: up to the business write, and after it; then of a replay
}

// countPlain counts the allocations of a plain client.
func (b *bench) countPlain(ctx context.Context, e *entrant) (p results.Plain, err error) {
	pool, err := b.env(e, results.Socket).Pool(ctx)
	if err != nil {
		return p, err
	}
	defer pool.Close()
	client := &plain{}
	if err := client.watch(ctx, pool); err != nil {
		return p, err
	}
	if client.conn, err = pool.Acquire(ctx); err != nil {
		return p, err
	}
	defer client.conn.Release()
	var first, replay results.Cost
	err = errors.Join(
		countAllocations(ctx, b.Calls, client.first, &first),
		countAllocations(ctx, b.Calls, client.replay, &replay))
	return results.Plain{First: first.Allocations, Replay: replay.Allocations}, err
}

// watch sees what a first call sends, and its replay.
func (p *plain) watch(ctx context.Context, pool *pgxpool.Pool) error {
	cfg := pool.Config()
	cfg.ConnConfig.Tracer = p
	watched, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer watched.Close()
	p.recorded = peers.NewCall()
	key := idempotency.Key{Scope: p.recorded.Scope, ID: p.recorded.ID, Fingerprint: idempotency.FingerprintOf(p.recorded.Body)}
	store := idempotency.New(watched)
	for range 2 {
		if _, _, err = idempotency.Do(ctx, store, key, func(ctx context.Context, tx pgx.Tx) (string, error) {
			return p.recorded.Write(ctx, tx)
		}); err != nil {
			return err
		}
	}
	if len(p.batches) != 3 {
		return fmt.Errorf("a first call and a replay have sent %d batches, not 3", len(p.batches))
	}
	return nil
}

// TraceBatchStart is called by pgx.
func (p *plain) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	var queries []pgx.QueuedQuery
	for _, q := range data.Batch.QueuedQueries {
		queries = append(queries, pgx.QueuedQuery{SQL: q.SQL, Arguments: slices.Clone(q.Arguments)})
	}
	p.batches = append(p.batches, queries)
	return ctx
}

// TraceBatchQuery, TraceBatchEnd, TraceQueryStart and TraceQueryEnd are called by pgx.
func (*plain) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (*plain) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}
func (*plain) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (*plain) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// A claimed is what the claim returns, and the record is sent with.
type claimed struct {
	began int64
	table uint32
}

// batch is a recorded one, for another key and claim. The record ends with the claim.
func (p *plain) batch(of int, id string, c claimed) *pgx.Batch {
	var batch pgx.Batch
	for _, q := range p.batches[of] {
		args := slices.Clone(q.Arguments)
		for i, arg := range args {
			switch arg := arg.(type) {
			case string:
				if arg == p.recorded.ID {
					args[i] = id
				}
			case uint32:
				args[i-1], args[i] = c.began, c.table
			}
		}
		batch.Queue(q.SQL, args...)
	}
	return &batch
}

// begin sends the first batch. Its last two are the claim and the read.
func (p *plain) begin(ctx context.Context, id string) (c claimed, err error) {
	sent := p.conn.SendBatch(ctx, p.batch(0, id, c))
	defer func() { err = errors.Join(err, sent.Close()) }()
	for range len(p.batches[0]) - 2 {
		if _, err := sent.Exec(); err != nil {
			return c, err
		}
	}
	var same bool
	return c, sent.QueryRow().Scan(&c.began, &c.table, &same)
}

func (p *plain) first(ctx context.Context, _ int) error {
	call := peers.NewCall()
	c, err := p.begin(ctx, call.ID)
	if err != nil {
		return err
	}
	if _, err := call.Write(ctx, p.conn); err != nil {
		return err
	}
	return p.conn.SendBatch(ctx, p.batch(1, call.ID, c)).Close()
}

func (p *plain) replay(ctx context.Context, _ int) (err error) {
	sent := p.conn.SendBatch(ctx, p.batch(2, p.recorded.ID, claimed{}))
	defer func() { err = errors.Join(err, sent.Close()) }()
	if _, err := sent.Exec(); err != nil {
		return err
	}
	rows, err := sent.Query()
	if err != nil {
		return err
	}
	defer rows.Close()
	var answer []byte
	for rows.Next() {
		for _, value := range rows.RawValues() {
			answer = append(answer, value...)
		}
	}
	if answer == nil {
		return errors.New("no answer was read")
	}
	return rows.Err()
}
