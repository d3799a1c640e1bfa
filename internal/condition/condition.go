// Package condition lets a caller within this module have its say in the transactions in
// which a Store deletes records, before they delete anything.
package condition

import (
	"context"

	"github.com/jackc/pgx/v5"
)

type contextKey struct{}

// With returns the context for calls whose transactions begin with check, before the
// planner is told what suits a purge. Its error ends the transaction.
func With(ctx context.Context, check func(context.Context, pgx.Tx) error) context.Context {
	return context.WithValue(ctx, contextKey{}, check)
}

// Check calls the check of ctx, if it has one.
func Check(ctx context.Context, tx pgx.Tx) error {
	if check, ok := ctx.Value(contextKey{}).(func(context.Context, pgx.Tx) error); ok {
		return check(ctx, tx)
	}
	return nil
}
