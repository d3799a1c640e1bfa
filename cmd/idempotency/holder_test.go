package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/pgidem/idempotency/internal/inspect"
)

// internal/failover has real standbys; here is what the command says of one.
func TestCommitThatWaitsForAStandbyIsNotToBeEnded(t *testing.T) {
	t.Parallel()
	rec := inspect.Record{Scope: "s", ID: "i", State: inspect.InProgress, Holders: []inspect.Holder{{PID: 4711, State: "active", Waiting: "SyncRep"}}}
	text := absence(rec).Error()
	if strings.Contains(text, "pg_terminate_backend") || !strings.Contains(text, "waits for a synchronous standby") || !strings.Contains(text, "process 4711") {
		t.Error(text)
	}
}

// Its lock can be gone when its holders are asked for.
func TestKeyWhoseHolderHasJustEndedIsStillAConflict(t *testing.T) {
	t.Parallel()
	err := stillHeld(inspect.Record{Scope: "s", ID: "i", State: inspect.InProgress})
	if e, ok := errors.AsType[exitError](err); !ok || e.code != exitInProgress || !strings.Contains(e.text, "key i of scope s was in progress until now: nothing was changed, ask again") {
		t.Error(err)
	}
}
