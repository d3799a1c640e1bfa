// Package sqlc is generated from its SQL, but for this file.
package sqlc

//go:generate go run github.com/sqlc-dev/sqlc/cmd/sqlc@v1.30.0 generate
