package idempotency

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// A body is the caller's function, returning its value as it is stored.
type body func(ctx context.Context, tx pgx.Tx) ([]byte, error)

// A result carries the value of one call between the caller's type and JSON.
type result[T any] struct {
	limit int
	value T // as decoded from what the last run stored
}

// recorder decodes what it has encoded while everything can still be rolled
// back: a value that does not survive storage must fail its first call.
func (r *result[T]) recorder(fn func(context.Context, pgx.Tx) (T, error)) body {
	return func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		value, err := fn(ctx, tx)
		if err != nil {
			return nil, err
		}
		stored, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUndecodable, err)
		}
		if len(stored) > r.limit {
			return nil, fmt.Errorf("%w: %d bytes, Config.MaxResult is %d", ErrTooLarge, len(stored), r.limit)
		}
		r.value, err = decode[T](stored)
		return stored, err
	}
}

func (r *result[T]) answer(rec *record, replayed bool, err error) (T, bool, error) {
	if err == nil && replayed {
		r.value, err = decode[T](rec.result)
	}
	if err != nil {
		var none T
		return none, false, err
	}
	return r.value, replayed, nil
}

func decode[T any](stored []byte) (T, error) {
	var value T
	if err := json.Unmarshal(stored, &value); err != nil {
		var none T
		return none, fmt.Errorf("%w: %w", ErrUndecodable, err)
	}
	return value, nil
}
