package run

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
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
	batches  [][]pgx.QueuedQuery // of a first call: up to the business write, and after it
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

// watch sees what a first call sends.
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
	_, _, err = idempotency.Do(ctx, idempotency.New(watched), key, func(ctx context.Context, tx pgx.Tx) (string, error) {
		return p.recorded.Write(ctx, tx)
	})
	if err == nil && len(p.batches) != 2 {
		err = fmt.Errorf("a first call has sent %d batches, not 2", len(p.batches))
	}
	return err
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

// batch is a recorded one, for another key and row.
func (p *plain) batch(of int, id string, row pgtype.TID) *pgx.Batch {
	var batch pgx.Batch
	for _, q := range p.batches[of] {
		args := make([]any, len(q.Arguments))
		for i, arg := range q.Arguments {
			switch arg.(type) {
			case string:
				if arg == p.recorded.ID {
					arg = id
				}
			case pgtype.TID:
				arg = row
			}
			args[i] = arg
		}
		batch.Queue(q.SQL, args...)
	}
	return &batch
}

// begin sends the first batch. Its last two are the claim and the read.
func (p *plain) begin(ctx context.Context, id string) (row pgtype.TID, answer []byte, err error) {
	sent := p.conn.SendBatch(ctx, p.batch(0, id, row))
	defer func() { err = errors.Join(err, sent.Close()) }()
	for range len(p.batches[0]) - 2 {
		if _, err := sent.Exec(); err != nil {
			return row, nil, err
		}
	}
	err = sent.QueryRow().Scan(&row)
	if !errors.Is(err, pgx.ErrNoRows) {
		return row, nil, err
	}
	rows, err := sent.Query()
	if err != nil {
		return row, nil, err
	}
	defer rows.Close()
	if rows.Next() {
		for _, value := range rows.RawValues() {
			answer = append(answer, value...)
		}
	}
	return row, answer, rows.Err()
}

func (p *plain) first(ctx context.Context, _ int) error {
	call := peers.NewCall()
	row, answer, err := p.begin(ctx, call.ID)
	switch {
	case err != nil:
		return err
	case answer != nil || !row.Valid:
		return errors.New("a new key was not claimed")
	}
	if _, err := call.Write(ctx, p.conn); err != nil {
		return err
	}
	return p.conn.SendBatch(ctx, p.batch(1, call.ID, row)).Close()
}

func (p *plain) replay(ctx context.Context, _ int) error {
	_, answer, err := p.begin(ctx, p.recorded.ID)
	if err == nil && answer == nil {
		err = errors.New("no answer was read")
	}
	if err != nil {
		return err
	}
	_, err = p.conn.Exec(ctx, "rollback")
	return err
}
