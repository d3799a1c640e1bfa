package main

import (
	"context"
	"embed"
	"errors"
	"fmt"

	"github.com/golang-migrate/migrate/v4"
	migratepgx "github.com/golang-migrate/migrate/v4/database/pgx/v5"
	"github.com/golang-migrate/migrate/v4/source/iofs"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgidem/idempotency/migrations"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migrateUp runs the migrations of the idempotency package and then this
// program's own. Each keeps its version in a table of its own, so neither has
// to know how far the other is. Several processes may do so at once.
func migrateUp(ctx context.Context, pool *pgxpool.Pool) error {
	if err := migrations.Up(ctx, pool, ""); err != nil {
		return err
	}
	if err := migrateOwn(pool); err != nil {
		return fmt.Errorf("making the tables of payments: %w", err)
	}
	return nil
}

func migrateOwn(pool *pgxpool.Pool) error {
	files, err := iofs.New(migrationFiles, "migrations")
	if err != nil {
		return err
	}
	db := stdlib.OpenDB(*pool.Config().ConnConfig)
	defer db.Close()
	driver, err := migratepgx.WithInstance(db, &migratepgx.Config{MigrationsTable: "payments_migrations"})
	if err != nil {
		return err
	}
	defer driver.Close()
	m, err := migrate.NewWithInstance("iofs", files, "pgx5", driver)
	if err != nil {
		return err
	}
	if err := m.Up(); !errors.Is(err, migrate.ErrNoChange) {
		return err
	}
	return nil
}
