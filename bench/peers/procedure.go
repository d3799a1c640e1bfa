package peers

import (
	"context"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

// Procedure is the name of this package where the operation also asks somebody else.
const Procedure = "idempotency.Procedure"

func init() {
	register(Peer{
		Name:    Procedure,
		About:   "This package with a Procedure of a Step, a Call and a Step, and the default Config.",
		Steps:   true,
		Prepare: prepareOurs,
		Open: func(ctx context.Context, env Env) (Client, error) {
			p := &procedure{provider: env.Provider}
			return open(ctx, env, p.do)
		},
	})
}

type procedure struct {
	provider string
	hooked   sync.Map // of *Call by ID: their hooks are not for the input
}

// An order is the input.
type order struct {
	Scope, ID string
	Amount    int64
	Body      []byte
}

func (p *procedure) do(ctx context.Context, store *idempotency.Store, call *Call) (answer string, err error) {
	if _, other := p.hooked.LoadOrStore(call.ID, call); !other {
		defer p.hooked.Delete(call.ID)
	}
	charging := idempotency.Procedure[order, string]{Name: "charge", Run: p.run}
	answer, _, err = charging.Do(ctx, store, call.key(), order{call.Scope, call.ID, call.Amount, call.Body})
	return answer, inProgress(err)
}

func (p *procedure) run(ctx context.Context, op *idempotency.Op, in order) (string, error) {
	call := &Call{Scope: in.Scope, ID: in.ID, Amount: in.Amount, Body: in.Body}
	if hooked, ok := p.hooked.Load(in.ID); ok {
		call = hooked.(*Call)
	}
	var made charge
	var err error
	if made.Row, err = idempotency.Step(ctx, op, "create", func(ctx context.Context, tx pgx.Tx) (int64, error) {
		return call.create(ctx, tx)
	}); err != nil {
		return "", err
	}
	if made.Provider, err = idempotency.Call(ctx, op, "charge", func(ctx context.Context, key string) (string, error) {
		return call.charge(ctx, p.provider, key)
	}); err != nil {
		return "", err
	}
	return idempotency.Step(ctx, op, "confirm", func(ctx context.Context, tx pgx.Tx) (string, error) {
		return call.confirm(ctx, tx, made)
	})
}
