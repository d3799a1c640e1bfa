// Package recipes shows where the idempotency key comes from, and what to do with each
// error, for webhooks, message brokers, cron jobs, forms and outboxes. Each file is one
// recipe, to be read and copied; docs/recipes.md of the repository puts them side by side.
//
// All recipes do the same business: they charge a customer for an order. settle.go decides
// for all of them what becomes of a message whose function has failed.
package recipes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// schema is that of the business.
const schema = `create table charges (id bigint generated always as identity primary key,
	order_id text not null, cents bigint not null check (cents > 0))`

// An order is the content of every message here.
type order struct {
	ID    string `json:"id"`
	Cents int64  `json:"cents"`
}

// A receipt is the value that is recorded, and the answer to every duplicate.
type receipt struct {
	Charge int64  `json:"charge"`
	Order  string `json:"order"`
}

// errMalformed: the message can never be processed, whoever tries.
var errMalformed = errors.New("the message is no order")

// charge has no effects except through tx, so that it may run again.
func charge(ctx context.Context, tx pgx.Tx, message []byte) (receipt, error) {
	var o order
	if err := json.Unmarshal(message, &o); err != nil {
		return receipt{}, fmt.Errorf("%w: %w", errMalformed, err)
	}
	r := receipt{Order: o.ID}
	const insert = "insert into charges (order_id, cents) values ($1, $2) returning id"
	err := tx.QueryRow(ctx, insert, o.ID, o.Cents).Scan(&r.Charge)
	return r, err
}

// A work is what a consumer does for a message: charge, here.
type work = func(ctx context.Context, tx pgx.Tx, message []byte) (receipt, error)
