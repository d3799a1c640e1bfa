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
		Open: func(ctx context.Context, env Env) (Client, error) {
			return open(ctx, env, doOurs)
		},
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
	do    func(context.Context, *idempotency.Store, *Call) (answer string, err error)

	mu      sync.Mutex
	asked   map[string]int       // how often Unknown was asked for an id
	fresher []*idempotency.Store // each of which meets an id once
}

func open(ctx context.Context, env Env, do func(context.Context, *idempotency.Store, *Call) (string, error)) (Client, error) {
	pool, err := env.Pool(ctx)
	if err != nil {
		return nil, err
	}
	return &ours{pool: pool, store: idempotency.New(pool), do: do, asked: make(map[string]int)}, nil
}

func (o *ours) Close() { o.pool.Close() }

func (o *ours) Do(ctx context.Context, call *Call) (answer string, err error) {
	return o.do(ctx, o.store, call)
}

// Unknown asks through a Store that has not met the key.
func (o *ours) Unknown(ctx context.Context, call *Call) (answer string, err error) {
	return o.do(ctx, o.fresh(call.ID), call)
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
	answer, _, err = idempotency.Do(ctx, store, call.key(), func(ctx context.Context, tx pgx.Tx) (string, error) {
		answer, err := call.Write(ctx, tx)
		call.Written(ctx)
		return answer, err
	})
	return answer, inProgress(err)
}

func (c *Call) key() idempotency.Key {
	return idempotency.Key{Scope: c.Scope, ID: c.ID, Fingerprint: idempotency.FingerprintOf(c.Body)}
}

// inProgress translates an error of this package.
func inProgress(err error) error {
	if errors.Is(err, idempotency.ErrInProgress) {
		return fmt.Errorf("%w: %w", ErrInProgress, err)
	}
	return err
}
