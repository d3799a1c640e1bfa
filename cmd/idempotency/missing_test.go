package main

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/inspect"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// Somebody could make the table after the look, and nothing would examine it any more.
func TestNothingIsDoneWhereTheTableIsMissing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	for _, schema := range []string{"", "public", "nowhere"} {
		db := &database{Table: inspect.Table{Schema: schema}, url: pgtest.URL(pool)}
		worked := false
		work := func(pgx.Tx) error { worked = true; return nil }
		err := db.useTable(t.Context(), func(ctx context.Context, pool *pgxpool.Pool) error { return db.Reading(ctx, pool, work) })
		if worked || err == nil || !strings.Contains(err.Error(), "is missing: run migrations.Up") {
			t.Errorf("schema %q: worked: %v, %v", schema, worked, err)
		}
	}
}
