// Package condition lets a caller within this module have its say in the transactions in
// which a Store deletes records, before they delete anything.
package condition

import (
	"context"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
)

type contextKey struct{}

// A Check looks at the tables that a transaction is going to name. Operations reports
// whether that of the operations is one of those it has looked at, and is there.
type Check func(context.Context, pgx.Tx) (operations bool, err error)

type condition struct {
	check      Check
	operations atomic.Bool // what the last check has said
}

// With returns the context for calls whose transactions begin with check, before the
// planner is told what suits a purge. Its error ends the transaction. The calls are made
// one after the other.
func With(ctx context.Context, check Check) context.Context {
	return context.WithValue(ctx, contextKey{}, &condition{check: check})
}

// Meet calls the check of ctx, if it has one.
func Meet(ctx context.Context, tx pgx.Tx) error {
	c, ok := ctx.Value(contextKey{}).(*condition)
	if !ok {
		return nil
	}
	operations, err := c.check(ctx, tx)
	c.operations.Store(operations)
	return err
}

// Operations reports whether the table of the operations may be named in a statement.
// Where the check has not found it, somebody can have made one since.
func Operations(ctx context.Context) bool {
	c, ok := ctx.Value(contextKey{}).(*condition)
	return !ok || c.operations.Load()
}
