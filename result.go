package idempotency

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// work is what a call is for: the caller's function, with its value as it is
// stored.
type work interface {
	run(ctx context.Context, tx pgx.Tx) (stored []byte, err error)
	replay(stored []byte) error
}

// A result is the work of a caller with values of type T.
type result[T any] struct {
	fn    func(context.Context, pgx.Tx) (T, error)
	limit int
	value T // as decoded from what was stored
}

// run decodes what it has encoded while everything can still be rolled back: a
// value that does not survive storage must fail its first call.
func (r *result[T]) run(ctx context.Context, tx pgx.Tx) ([]byte, error) {
	value, err := r.fn(ctx, tx)
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
	return stored, r.replay(stored)
}

func (r *result[T]) replay(stored []byte) error {
	var value T
	if err := json.Unmarshal(stored, &value); err != nil {
		return fmt.Errorf("%w: %w", ErrUndecodable, err)
	}
	r.value = value
	return nil
}

func (r *result[T]) answer(replayed bool, err error) (T, bool, error) {
	if err != nil {
		var none T
		return none, false, err
	}
	return r.value, replayed, nil
}
