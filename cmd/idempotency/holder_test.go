package main

import (
	"strings"
	"testing"
)

// internal/failover has real standbys; here is what the command says of one.
func TestCommitThatWaitsForAStandbyIsNotToBeEnded(t *testing.T) {
	t.Parallel()
	rec := record{Scope: "s", ID: "i", State: inProgress, Holders: []holder{{PID: 4711, State: "active", Waiting: "SyncRep"}}}
	text := rec.absence().Error()
	if strings.Contains(text, "pg_terminate_backend") || !strings.Contains(text, "waits for a synchronous standby") || !strings.Contains(text, "process 4711") {
		t.Error(text)
	}
}
