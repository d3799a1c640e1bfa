// Package transport is what the packages idemhttp, idemgrpc and idemconnect share:
// the transaction as a handler sees it, and where the handler finds it; what an error
// of package idempotency means for whoever sent the request; keys.
package transport

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

// A Run is one run of a handler, as its context knows it. The three packages have one
// context key, so that code under any of them finds the transaction with the Tx of any.
type Run struct {
	Tx  *WatchedTx
	Key idempotency.Key
}

type runKey struct{}

// In returns the context for the handler.
func (r *Run) In(ctx context.Context) context.Context {
	return context.WithValue(ctx, runKey{}, r)
}

// RunOf returns the run that ctx belongs to, or nil.
func RunOf(ctx context.Context) *Run {
	r, _ := ctx.Value(runKey{}).(*Run)
	return r
}

// Tx returns the transaction of the run that ctx belongs to, or nil.
func Tx(ctx context.Context) pgx.Tx {
	if r := RunOf(ctx); r != nil {
		return r.Tx
	}
	return nil
}
