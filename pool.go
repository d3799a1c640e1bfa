package idempotency

import (
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/storepool"
)

func init() {
	storepool.Of = func(store any) *pgxpool.Pool { return store.(*Store).pool }
}
