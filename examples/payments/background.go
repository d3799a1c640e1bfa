package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/pgidem/idempotency"
)

// purgeUntil removes what has expired, every few minutes, until ctx ends. It may
// run in every process: one of them works at a time.
func purgeUntil(ctx context.Context, store *idempotency.Store, log *slog.Logger) {
	if err := store.PurgeEvery(ctx, 5*time.Minute); ctx.Err() == nil {
		log.Error("expired keys are no longer removed", "error", err)
	}
}

// completeUntil finishes the rides that no client has come back for. It may run in
// every process, too.
func completeUntil(ctx context.Context, store *idempotency.Store, abandoned time.Duration, ride idempotency.Completable, log *slog.Logger) {
	if err := store.CompleteEvery(ctx, min(abandoned, time.Minute), abandoned, ride); ctx.Err() == nil {
		log.Error("abandoned rides are no longer finished", "error", err)
	}
}

// logBackground is for the failures that the loops outlive, such as those of a lost
// connection. A ride that fails in a request has an account, and is the Middleware's
// to report.
func logBackground(log *slog.Logger) func(context.Context, idempotency.Event) {
	return func(ctx context.Context, e idempotency.Event) {
		switch {
		case e.Err == nil || ctx.Err() != nil:
		case e.Operation == "Purge":
			log.WarnContext(ctx, "expired keys were not removed", "error", e.Err)
		case e.Operation == "Procedure" && e.Outcome == "failed" && account(ctx) == "":
			log.WarnContext(ctx, "an abandoned ride was not finished", "error", e.Err)
		}
	}
}
