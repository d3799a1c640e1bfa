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
	execute(ctx context.Context, tx pgx.Tx) (stored []byte, err error)
	decode(stored []byte) error
}

// A result is the work of a caller with values of type T.
type result[T any] struct {
	fn    func(context.Context, pgx.Tx) (T, error)
	limit int
	value T // as decoded from what was stored
}

// execute runs the function and encodes its value. It decodes the value again while
// everything can still be rolled back: one that does not survive storage must fail
// its first call.
func (r *result[T]) execute(ctx context.Context, tx pgx.Tx) ([]byte, error) {
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
	return stored, r.decode(stored)
}

func (r *result[T]) decode(stored []byte) error {
	var value T
	if err := json.Unmarshal(stored, &value); err != nil {
		return fmt.Errorf("%w: %w", ErrUndecodable, err)
	}
	r.value = value
	return nil
}

func (r *result[T]) values(replayed bool, err error) (T, bool, error) {
	if err != nil {
		var none T
		return none, false, err
	}
	return r.value, replayed, nil
}
