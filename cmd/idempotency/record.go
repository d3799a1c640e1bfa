package main

import (
	"fmt"

	"github.com/pgidem/idempotency/internal/inspect"
)

// absence is the error that says why there is no record.
func absence(rec inspect.Record) error {
	key := rec.Key()
	switch rec.State {
	case inspect.InProgress:
		effect := "nothing has taken effect yet"
		switch {
		case rec.Operation != nil:
			effect = progress(rec.Operation)
		case rec.PurgeAfter != nil:
			effect = "what its procedure has done stays done: get tells what"
		case rec.CompletedAt != nil:
			effect = "an earlier call took effect at " + rec.CompletedAt.String() + ", and its record has expired; this one has not yet"
		}
		if rec.Holders[0].Replicating() {
			return exitError{exitInProgress, fmt.Sprintf("%s is being committed: %s: it waits for a synchronous standby (see pg_stat_replication): do not end it, that would show a commit that a failover can lose",
				key, rec.Holders[0])}
		}
		return exitError{exitInProgress, fmt.Sprintf("%s is in progress: %s: %s: ask again, or %s",
			key, rec.Holders[0], effect, rec.Holders[0].Remedy())}
	case inspect.NotFound:
		return exitError{exitNotFound, "no record of " + key + ": no call with it has taken effect, or its record expired and was purged"}
	}
	return nil
}
