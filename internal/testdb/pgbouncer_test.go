package main

import (
	"context"

	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

func needPgBouncer(t *testing.T) {
	t.Helper()
	if _, err := findPgBouncer(); err != nil {
		t.Skip(err)
	}
}

func TestPgBouncerIsBetweenTheCommandAndTheServer(t *testing.T) {
	needPgBouncer(t)
	t.Parallel()
	p := prepare(t, "-pgbouncer", "-mode", "exec", "--", "sh", "-c", `echo "$DATABASE_URL $DATABASE_URL_DIRECT"; `+waiting)
	line := p.start(t)
	pooled, direct, _ := strings.Cut(strings.TrimSpace(line), " ")
	defer p.end(t)
	defer p.Process.Kill()
	if !strings.Contains(pooled, "default_query_exec_mode=exec") {
		t.Errorf("DATABASE_URL is %s", pooled)
	}
	// Two clients take turns on one connection of the server.
	if first, second := backend(t, pooled), backend(t, pooled); first != second {
		t.Errorf("clients of the pooler are on the backends %d and %d", first, second)
	}
	if first, second := backend(t, direct), backend(t, direct); first == second {
		t.Errorf("direct clients are on one backend %d", first)
	}
}

// backend connects and returns the process that serves it.
func backend(t *testing.T, url string) (pid int) {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if err := conn.QueryRow(ctx, "select pg_backend_pid()").Scan(&pid); err != nil {
		t.Fatal(err)
	}
	return pid
}
