package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
)

// A Service is what clients call. It runs each business function once per key,
// in the transaction that also records the result.
type Service struct {
	store *idempotency.Store
}

// NewService returns a Service on the tables of pool. A program needs one.
func NewService(pool *pgxpool.Pool, cfg idempotency.Config) (*Service, error) {
	store, err := idempotency.NewWithConfig(pool, cfg)
	if err != nil {
		return nil, err
	}
	return &Service{store}, nil
}

// Charge executes the order of a client, once per key. The client makes a key
// for each order, here its number, and sends the same one with every retry:
// then it need not know what became of the call before.
func (s *Service) Charge(ctx context.Context, key string, order Order) (receipt Receipt, replayed bool, err error) {
	return idempotency.Do(ctx, s.store, chargeKey(key, order),
		func(ctx context.Context, tx pgx.Tx) (Receipt, error) {
			return Charge(ctx, tx, order)
		})
}

// chargeKey names the operation. The scope keeps the keys of two accounts
// apart. The fingerprint is what was asked for: the same key with anything else
// is a mistake of the client, and must get neither a charge nor the receipt of
// another one.
func chargeKey(key string, order Order) idempotency.Key {
	return idempotency.Key{
		Scope:       order.Account,
		ID:          key,
		Fingerprint: idempotency.FingerprintOf([]byte("charge"), strconv.AppendInt(nil, int64(order.Amount), 10)),
	}
}

// Receipts returns what is recorded for an account, by key.
func (s *Service) Receipts(ctx context.Context, account string) (map[string]Receipt, error) {
	receipts := make(map[string]Receipt)
	for record, err := range s.store.All(ctx, account) {
		if err != nil {
			return nil, err
		}
		var receipt Receipt
		if err := json.Unmarshal(record.Result, &receipt); err != nil {
			return nil, fmt.Errorf("the record of %s: %w", record.Key.ID, err)
		}
		receipts[record.Key.ID] = receipt
	}
	return receipts, nil
}
