package idemhttp

import (
	"context"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

// A run is one run of a handler, as its context knows it.
type run struct {
	tx         *watchedTx
	key        idempotency.Key
	rolledBack atomic.Bool // by RollBack
}

type runKey struct{}

func runOf(ctx context.Context) *run {
	r, _ := ctx.Value(runKey{}).(*run)
	return r
}

// Tx returns the transaction of a request, from the context of the request
// that a handler under a [Middleware] gets. It is nil where there is none: the
// method passed through. It is closed ([pgx.ErrTxClosed]) once the handler has
// returned.
func Tx(ctx context.Context) pgx.Tx {
	if r := runOf(ctx); r != nil {
		return r.tx
	}
	return nil
}

// Key returns the key of a request, with its scope, from the context of the
// request that a handler under a [Middleware] gets: for logs, and for the calls
// that the handler makes. It is the zero Key where there is none.
func Key(ctx context.Context) idempotency.Key {
	if r := runOf(ctx); r != nil {
		return r.key
	}
	return idempotency.Key{}
}

// RollBack says that the response of a request is not final, whatever
// [Config.Record] says of it: it is sent, everything is rolled back, and the
// next request with the key is executed. It is for failures that have no status
// of their own, such as the errors of GraphQL and JSON-RPC under 200. It does
// nothing where there is no transaction. ctx is the context of the request that
// a handler under a [Middleware] gets.
func RollBack(ctx context.Context) {
	if r := runOf(ctx); r != nil {
		r.rolledBack.Store(true)
	}
}
