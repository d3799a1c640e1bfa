package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

// A RideOrder is what a rider asks for. It is stored as it is for as long as the ride has
// not ended: so Card is the provider's token for a card, and not its number.
type RideOrder struct {
	Account string
	Amount  Money
	Card    string
}

// A Ride is what has become of it.
type Ride struct {
	ID      int64  `json:"id"`
	Account string `json:"account"`
	Amount  Money  `json:"amount"`
	State   string `json:"state"` // paid or declined
	Charge  string `json:"charge"`
}

// rideWith is the operation behind POST /rides. The card provider is another service, so
// that no transaction of ours can undo what it does. Each step is a transaction, and the
// call to the provider is between two of them. When a process dies, the next attempt, in
// any process, goes on after what is recorded: the ride is not created again, and the
// provider is asked again with the same key.
func rideWith(cards cardProvider) idempotency.Procedure[RideOrder, Ride] {
	return idempotency.Procedure[RideOrder, Ride]{
		Name: "ride",
		Run: func(ctx context.Context, op *idempotency.Op, order RideOrder) (Ride, error) {
			id, err := idempotency.Step(ctx, op, "create", func(ctx context.Context, tx pgx.Tx) (int64, error) {
				return insertRide(ctx, tx, order)
			})
			if err != nil {
				return Ride{}, err
			}
			charge, err := idempotency.Call(ctx, op, "charge", func(ctx context.Context, key string) (cardCharge, error) {
				return cards.charge(ctx, key, order.Card, order.Amount)
			})
			if err != nil {
				return Ride{}, err
			}
			return idempotency.Step(ctx, op, "confirm", func(ctx context.Context, tx pgx.Tx) (Ride, error) {
				return confirmRide(ctx, tx, id, charge)
			})
		},
	}
}

func insertRide(ctx context.Context, tx pgx.Tx, order RideOrder) (id int64, err error) {
	const sql = `insert into rides (account, amount) values ($1, $2) returning id`
	if err := tx.QueryRow(ctx, sql, order.Account, order.Amount).Scan(&id); err != nil {
		return 0, fmt.Errorf("creating a ride of %s: %w", order.Account, err)
	}
	return id, nil
}

// confirmRide acts on what the provider has said. A declined card is an outcome, too.
func confirmRide(ctx context.Context, tx pgx.Tx, id int64, charge cardCharge) (Ride, error) {
	state := "paid"
	if charge.Declined {
		state = "declined"
	}
	const sql = `update rides set state = $2, charge = $3 where id = $1 returning id, account, amount, state, charge`
	rows, _ := tx.Query(ctx, sql, id, state, charge.ID) // CollectOneRow returns its error
	ride, err := pgx.CollectOneRow(rows, pgx.RowToStructByPos[Ride])
	if err != nil {
		return Ride{}, fmt.Errorf("confirming ride %d: %w", id, err)
	}
	return ride, nil
}
