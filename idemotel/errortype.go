package idemotel

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency"
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// errorTypes are the errors that a caller can decide on; the first that fits.
var errorTypes = []struct {
	err  error
	name string
}{
	{idempotency.ErrOutcomeUnknown, "outcome_unknown"},
	{idempotency.ErrInProgress, "in_progress"},
	{idempotency.ErrKeyReused, "key_reused"},
	{idempotency.ErrInvalidKey, "invalid_key"},
	{idempotency.ErrAbandoned, "abandoned"},
	{idempotency.ErrTooLarge, "too_large"},
	{idempotency.ErrUndecodable, "undecodable"},
	{idempotency.ErrUnfinished, "unfinished"},
	{idempotency.ErrStepsChanged, "steps_changed"},
	{idempotency.ErrCallExpired, "call_expired"},
	{context.Canceled, "canceled"},
	{context.DeadlineExceeded, "timeout"},
}

// errorType has few values, as the conventions ask: the names above, an SQLSTATE,
// what an ErrorType method of the error says, or its Go type. Never its text.
func errorType(err error) attribute.KeyValue {
	for _, known := range errorTypes {
		if errors.Is(err, known.err) {
			return semconv.ErrorTypeKey.String(known.name)
		}
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return semconv.ErrorTypeKey.String(pgErr.Code)
	}
	return semconv.ErrorType(err)
}
