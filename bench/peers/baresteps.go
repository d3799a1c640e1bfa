package peers

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// BareSteps is the name of two bare transactions with a request between them.
const BareSteps = "bare transactions and request"

func init() {
	register(Peer{
		Name:    BareSteps,
		About:   "Two transactions without idempotency, and the request to the provider between them, with the client's key.",
		Steps:   true,
		Prepare: prepareBare,
		Open: func(ctx context.Context, env Env) (Client, error) {
			pool, err := env.Pool(ctx)
			return bareSteps{bare{pool}, env.Provider}, err
		},
	})
}

type bareSteps struct {
	bare
	provider string
}

func (b bareSteps) Do(ctx context.Context, call *Call) (answer string, err error) {
	var made charge
	err = pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error {
		made.Row, err = call.create(ctx, tx)
		return err
	})
	if err != nil {
		return "", err
	}
	if made.Provider, err = call.charge(ctx, b.provider, call.ID); err != nil {
		return "", err
	}
	err = pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error {
		answer, err = call.confirm(ctx, tx, made)
		return err
	})
	return answer, err
}
