package idemhttp

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/transport"
)

// A run is one run of a handler.
type run struct {
	transport.Run
	rolledBack atomic.Bool // by RollBack
}

type runKey struct{}

// Tx returns the transaction of a request, from the context of the request
// that a handler under a [Middleware] gets. It is nil where there is none: the
// method passed through. It is closed ([pgx.ErrTxClosed]) once the handler has
// returned.
//
// Under package idemgrpc or idemconnect it is the transaction of the call, so that
// code under several of them needs to know one.
func Tx(ctx context.Context) pgx.Tx { return transport.Tx(ctx) }

// Key returns the key of a request, with its scope, from the context of the
// request that a handler under a [Middleware] gets: for logs, and for the calls
// that the handler makes. It is the zero Key where there is none.
func Key(ctx context.Context) idempotency.Key {
	if r := transport.RunOf(ctx); r != nil {
		return r.Key
	}
	return idempotency.Key{}
}

// RollBack says that the response of a request is not final, whatever
// [Config.Record] says of it: it is sent, everything is rolled back, and the
// next request with the key is executed. It is for failures that have no status
// of their own, such as the errors of GraphQL and JSON-RPC under 200. It does
// nothing where there is no [Middleware]. ctx is the context of the request that
// a handler under a [Middleware] gets.
func RollBack(ctx context.Context) {
	if r, ok := ctx.Value(runKey{}).(*run); ok {
		r.rolledBack.Store(true)
	}
}

// A rolledBack error carries a response that is sent although, or because,
// nothing was kept.
type rolledBack struct {
	cause error // of the last statement that failed; Do runs again for some
}

func (e *rolledBack) Error() string { return "idemhttp: the handler's response is not final" }
func (e *rolledBack) Unwrap() error { return e.cause }

// An unrecordableError is of a response that cannot be recorded.
type unrecordableError struct{ cause error }

func (e *unrecordableError) Error() string { return e.cause.Error() }
func (e *unrecordableError) Unwrap() error { return e.cause }

// run is the function of [idempotency.Do]: one run of the handler.
func (x *exchange) run(ctx context.Context, tx pgx.Tx, key idempotency.Key) (record, error) {
	x.detach()
	x.response = newResponse(x.w)
	now := &run{Run: transport.Run{Tx: transport.Watch(tx), Key: key}}
	x.handle(context.WithValue(now.In(ctx), runKey{}, now), now)

	if ctx.Err() == nil { // else it may have stopped half-way, and is not recorded
		if err := x.comparedWithBefore(now); err != nil {
			return record{}, err
		}
	}
	if err := x.response.finish(); err != nil {
		return record{}, &unrecordableError{err}
	}
	switch {
	case now.rolledBack.Load() || !x.m.cfg.Record(x.response.status, x.response.header, x.response.trailer):
		return record{}, &rolledBack{now.Tx.Seen()}
	case now.Tx.Broken():
		return record{}, fmt.Errorf("idemhttp: the handler answered %d although a statement of its transaction failed: %w", x.response.status, now.Tx.Seen())
	case ctx.Err() != nil:
		// A handler that sees its context end may return without a word, which
		// is an empty 200: not one to record.
		return record{}, fmt.Errorf("idemhttp: the request ended before its handler: %w (%w)", ctx.Err(), context.Cause(ctx))
	}
	return x.response.record(x.m)
}

// handle runs the handler, and ends its use of the transaction also when it
// panics.
func (x *exchange) handle(ctx context.Context, now *run) {
	x.ran = x.request(ctx)
	defer now.Tx.End()
	x.next.ServeHTTP(x.response, x.ran)
}
