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

// logFailedPurges is for the ones that the loop outlives, such as those of a lost
// connection.
func logFailedPurges(log *slog.Logger) func(context.Context, idempotency.Event) {
	return func(ctx context.Context, e idempotency.Event) {
		if e.Operation == "Purge" && e.Err != nil && ctx.Err() == nil {
			log.WarnContext(ctx, "expired keys were not removed", "error", e.Err)
		}
	}
}
