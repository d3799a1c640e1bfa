package idemconnect

import (
	"context"
	"errors"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/transport"
)

// Tx returns the transaction of a call, from the context of its handler. It is nil where
// there is none: the call passed through. It is closed ([pgx.ErrTxClosed]) once the
// handler has returned. Commit and Rollback are refused without any effect: a handler
// that returns a nil error commits, and one that returns an error rolls back.
//
// Under package idemhttp or idemgrpc it is the transaction of the request, so that code
// under several of them needs to know one.
func Tx(ctx context.Context) pgx.Tx { return transport.Tx(ctx) }

// Final makes err one that is recorded: the transaction commits, and every retry gets the
// same code, message, details and metadata. It is for refusals that a retry cannot
// change, such as a declined card. To undo writes before, use a savepoint
// ([pgx.BeginFunc]). Any other error rolls everything back, and the next call with the
// key is executed.
//
// It is found in an error that wraps it, and is nil for a nil err.
func Final(err error) error {
	if err == nil {
		return nil
	}
	return &finalError{err}
}

type finalError struct{ error }

func (f *finalError) Unwrap() error { return f.error }

// asError returns the error of package connect that err is or wraps, or nil.
func asError(err error) *connect.Error {
	e, _ := errors.AsType[*connect.Error](err)
	return e
}

// statusOf is what connect-go sends for an error.
func statusOf(err error) (code connect.Code, message string, details []*connect.ErrorDetail) {
	if e := asError(err); e != nil {
		return e.Code(), e.Message(), e.Details()
	}
	switch {
	case errors.Is(err, context.Canceled):
		return connect.CodeCanceled, err.Error(), nil
	case errors.Is(err, context.DeadlineExceeded):
		return connect.CodeDeadlineExceeded, err.Error(), nil
	}
	return connect.CodeUnknown, err.Error(), nil
}
