package peers

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/migrations"
)

// Ours is the name of this package.
const Ours = "idempotency"

func init() {
	register(Peer{
		Name:    Ours,
		About:   "This package: idempotency.Do with the default Config and a fingerprint of the request.",
		Prepare: prepareOurs,
		Open:    openOurs,
	})
}

func prepareOurs(ctx context.Context, env Env) error {
	pool, err := env.Pool(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	return migrations.Up(ctx, pool, "")
}

type ours struct {
	pool  *pgxpool.Pool
	store *idempotency.Store

	mu      sync.Mutex
	asked   map[string]int       // how often Unknown was asked for an id
	fresher []*idempotency.Store // each of which meets an id once
}

func openOurs(ctx context.Context, env Env) (Client, error) {
	pool, err := env.Pool(ctx)
	if err != nil {
		return nil, err
	}
	return &ours{pool: pool, store: idempotency.New(pool), asked: make(map[string]int)}, nil
}

func (o *ours) Close() { o.pool.Close() }

func (o *ours) Do(ctx context.Context, call *Call) (answer string, err error) {
	return doOurs(ctx, o.store, call)
}

// Unknown asks through a Store that has not met the key.
func (o *ours) Unknown(ctx context.Context, call *Call) (answer string, err error) {
	return doOurs(ctx, o.fresh(call.ID), call)
}

func (o *ours) fresh(id string) *idempotency.Store {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := o.asked[id]
	o.asked[id] = n + 1
	if n == len(o.fresher) {
		o.fresher = append(o.fresher, idempotency.New(o.pool))
	}
	return o.fresher[n]
}

func doOurs(ctx context.Context, store *idempotency.Store, call *Call) (answer string, err error) {
	key := idempotency.Key{Scope: call.Scope, ID: call.ID, Fingerprint: idempotency.FingerprintOf(call.Body)}
	answer, _, err = idempotency.Do(ctx, store, key, func(ctx context.Context, tx pgx.Tx) (string, error) {
		answer, err := call.Write(ctx, tx)
		call.Written(ctx)
		return answer, err
	})
	if errors.Is(err, idempotency.ErrInProgress) {
		err = fmt.Errorf("%w: %w", ErrInProgress, err)
	}
	return answer, err
}
