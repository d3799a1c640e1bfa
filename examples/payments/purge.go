package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/pgidem/idempotency"
)

// purgeUntil removes what has expired, now and then, until ctx ends. It may run
// in every process.
func purgeUntil(ctx context.Context, store *idempotency.Store, log *slog.Logger) {
	ticker := time.NewTicker(5 * time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if n, err := store.Purge(ctx); err != nil && ctx.Err() == nil {
			log.Warn("purge", "error", err)
		} else if n > 0 {
			log.Info("purge", "records", n)
		}
	}
}
