package idempotency

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/kept"
)

// work is what a call is for: the caller's function, with its value as it is
// stored.
type work interface {
	decode(stored []byte) error
}

// transactional is a work in one transaction.
type transactional interface {
	work
	execute(ctx context.Context, tx pgx.Tx) (stored []byte, err error)
}

// A result is the work of a caller with values of type T.
type result[T any] struct {
	fn    func(context.Context, pgx.Tx) (T, error)
	limit int
	value T // as decoded from what was stored
}

// execute runs the function and encodes its value, in place, so that methods on the
// pointer of its type count. It decodes the value again while everything can still be
// rolled back: one that does not survive storage must fail its first call.
func (r *result[T]) execute(ctx context.Context, tx pgx.Tx) ([]byte, error) {
	value, err := r.fn(ctx, tx)
	if err != nil {
		return nil, err
	}
	return encode(&value, &r.value, r.limit, undecodable)
}

// encode returns value as it is stored, and reads it back. An error of the type of the
// value goes through refused.
func encode[T any](value, read *T, limit int, refused func(error) error) ([]byte, error) {
	stored, err := json.Marshal(value)
	if err != nil {
		return nil, refused(kept.NotWritten(value, err))
	}
	if err := checkSize(len(stored), limit); err != nil {
		return nil, err
	}
	if err := decodeInto(stored, read); err != nil {
		return nil, refused(kept.NotRead(value, err))
	}
	if err := kept.Check(value, read, stored); err != nil {
		return nil, refused(err)
	}
	return stored, nil
}

// undecodable is the error of a first call.
func undecodable(err error) error {
	return fmt.Errorf("%w, and nothing of this call was kept: %w", ErrUndecodable, err)
}

// unstorable is the error of a value of a procedure, of which other steps can be kept.
func unstorable(err error) error { return fmt.Errorf("%w: %w", ErrUndecodable, err) }

// decode reads the record of an operation that has taken effect before.
func (r *result[T]) decode(stored []byte) error { return replayInto(stored, &r.value) }

func (r *result[T]) values(replayed bool, err error) (T, bool, error) {
	return valuesOf(r.value, replayed, err)
}

func checkSize(bytes, limit int) error {
	if bytes > limit {
		return fmt.Errorf("%w: %d bytes, Config.MaxResult is %d", ErrTooLarge, bytes, limit)
	}
	return nil
}

func decodeInto[T any](stored []byte, into *T) error {
	var value T // a former one would show through what is not in stored
	err := json.Unmarshal(stored, &value)
	if err == nil {
		*into = value
	}
	return err
}

func replayInto[T any](stored []byte, into *T) error {
	if err := decodeInto(stored, into); err != nil {
		return fmt.Errorf("%w: the operation took effect earlier, and its record cannot be read as %v: %w", ErrUndecodable, reflect.TypeFor[T](), kept.Advised(err))
	}
	return nil
}

func valuesOf[T any](value T, replayed bool, err error) (T, bool, error) {
	if err != nil {
		var none T
		return none, false, err
	}
	return value, replayed, nil
}
