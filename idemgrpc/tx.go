package idemgrpc

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/transport"
	"google.golang.org/grpc/status"
)

// Tx returns the transaction of a call, from the context of its handler. It is nil where
// there is none: the method is not one of [Config.Methods]. It is closed
// ([pgx.ErrTxClosed]) once the handler has returned. Commit and Rollback are refused
// without any effect: a handler that returns nil commits, and one that returns an error
// rolls back.
//
// Under package idemhttp or idemconnect it is the transaction of the request, so that
// code under several of them needs to know one.
func Tx(ctx context.Context) pgx.Tx { return transport.Tx(ctx) }

// Final makes the status of err one that is recorded: the transaction commits, and every
// retry gets the same status, with its details. It is for refusals that a retry cannot
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

// GRPCStatus makes grpc-go send the status of the error inside.
func (f *finalError) GRPCStatus() *status.Status { return statusOf(f.error) }

// statusOf is what grpc-go sends for an error.
func statusOf(err error) *status.Status {
	s, ok := status.FromError(err)
	if !ok {
		s = status.FromContextError(err)
	}
	return s
}
