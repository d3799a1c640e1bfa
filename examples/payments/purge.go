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
