// Package ormtest shows, in its tests, idemsql with GORM, sqlx, bun, ent and the
// code of sqlc, and with the driver lib/pq. It is a module of its own, so that
// these stay out of the requirements of the root module. docs/sql.md quotes it.
package ormtest
