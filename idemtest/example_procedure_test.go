package idemtest_test

import (
	"context"
	"io"
	"net/http"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemtest"
)

// A cardClient is your client of the card provider.
type cardClient struct{ url string }

func (c cardClient) charge(ctx context.Context, key string, cents int) (id string, err error) {
	return ask(ctx, http.MethodPost, c.url+"/v1/charges", key, map[string]int{"cents": cents})
}

// newPayment is the program under test: a charge at a provider, and its receipt in a table.
func newPayment(cards cardClient) idempotency.Procedure[order, string] {
	return idempotency.Procedure[order, string]{Name: "pay", Run: func(ctx context.Context, op *idempotency.Op, in order) (string, error) {
		charge, err := idempotency.Call(ctx, op, "charge", func(ctx context.Context, key string) (string, error) {
			return cards.charge(ctx, key, 1000)
		})
		if err != nil {
			return "", err
		}
		return idempotency.Step(ctx, op, "receipt", func(ctx context.Context, tx pgx.Tx) (string, error) {
			_, err := tx.Exec(ctx, `insert into charges (request) values ($1)`, in.ID)
			return charge, err
		})
	}}
}

// A procedure that charges at a provider. The provider is the test's own.
func ExampleStormProcedure() {
	asTest(func(t testing.TB) {
		pool := openTestDatabase(t)
		idemtest.StormProcedure(t, pool, 20, idemtest.ProcedureProgram[order, string]{
			Start: func(_ *pgxpool.Pool, provider string) idempotency.Procedure[order, string] {
				return newPayment(cardClient{provider})
			},
			Input:   func(id string) order { return order{ID: id} },
			Effects: countCharges,
			Answer: func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, `{"id": "ch_1"}`)
			},
		})
	})
	// Output: passed
}

// What a report looks like: this procedure charges in a step.
func ExampleStormProcedure_report() {
	asTest(func(t testing.TB) {
		pool := openTestDatabase(t)
		idemtest.StormProcedure(t, pool, 20, idemtest.ProcedureProgram[order, string]{
			Start: func(_ *pgxpool.Pool, provider string) idempotency.Procedure[order, string] {
				cards := cardClient{provider}
				return idempotency.Procedure[order, string]{Name: "pay", Run: func(ctx context.Context, op *idempotency.Op, in order) (string, error) {
					return idempotency.Step(ctx, op, "receipt", func(ctx context.Context, tx pgx.Tx) (string, error) {
						if _, err := tx.Exec(ctx, `insert into charges (request) values ($1)`, in.ID); err != nil {
							return "", err
						}
						return cards.charge(ctx, in.ID, 1000)
					})
				}}
			},
			Input:   func(id string) order { return order{ID: id} },
			Effects: countCharges,
		})
	})
	// Output:
	// idemtest: Storm, an attempt that is made to stop before its result is recorded, one that goes on, and a replay:
	// step "receipt" had an effect outside of the database
	// 	expected:    requests to the provider by the function of a Call, with the key that it is given
	// 	found:       POST /v1/charges in step "receipt", at idemtest/example_procedure_test.go:68
	// 	most likely: the request is sent in a Step: when the step's transaction is rolled back and the step runs again, the request is sent again. Send it in a Call
}
