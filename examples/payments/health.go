package main

import (
	"context"
	"net/http"
	"time"
)

// healthz says that the process lives. It asks nobody: a database that is down
// is no reason to restart the service.
func healthz(w http.ResponseWriter, _ *http.Request) {
	respond(w, http.StatusOK, map[string]string{"status": "ok"})
}

// readyz says that requests can be served: the database answers, and the tables
// are there.
func (a *api) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	const sql = `select 'idempotency_keys'::regclass, 'charges'::regclass, 'rides'::regclass, 'api_keys'::regclass`
	if _, err := a.pool.Exec(ctx, sql); err != nil {
		a.log.WarnContext(ctx, "not ready", "error", err)
		w.Header().Set("Retry-After", "1")
		refuse(w, unavailable, "The database does not answer, or has no tables.")
		return
	}
	respond(w, http.StatusOK, map[string]string{"status": "ready"})
}
