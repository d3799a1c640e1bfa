package doctor

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
)

// CheckAt is Check with the clock of a machine.
func CheckAt(ctx context.Context, pool *pgxpool.Pool, cfg idempotency.Config, now func() time.Time) ([]Finding, error) {
	return check(ctx, pool, cfg, program, now)
}
