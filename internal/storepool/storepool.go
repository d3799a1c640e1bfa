// Package storepool gives the pool of a Store to the packages of this module that ask its
// database something else than a Store does.
package storepool

import "github.com/jackc/pgx/v5/pgxpool"

// Of returns the pool of an *idempotency.Store, which this package cannot name: package
// idempotency imports it, and sets Of.
var Of func(store any) *pgxpool.Pool
