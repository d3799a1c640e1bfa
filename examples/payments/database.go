package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/golang-migrate/migrate/v4"
	migratepgx "github.com/golang-migrate/migrate/v4/database/pgx/v5"
	"github.com/golang-migrate/migrate/v4/source/iofs"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pgidem/idempotency/migrations"
)

// limit bounds what must not be interrupted: to make and to drop a database.
const limit = 20 * time.Second

// parseURL reads DATABASE_URL.
func parseURL(url string) (*pgxpool.Config, error) {
	if url == "" {
		return nil, errors.New("DATABASE_URL is not set: run make demo, or set DATABASE_URL to a server on which you may create databases")
	}
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	return cfg, nil
}

// createDatabase makes a database for this run alone, so that the demo finds
// the same start on any server and touches nothing that is there.
func createDatabase(ctx context.Context, server *pgxpool.Config) (name string, err error) {
	conn, err := reach(ctx, server)
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	// Not interrupted: a database that is half made cannot be dropped.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	name = fmt.Sprintf("payments_demo_%08x", rand.Uint32())
	if _, err := conn.Exec(ctx, "create database "+name+" template template0"); err != nil {
		return "", fmt.Errorf("creating a database for the demo: %w", err)
	}
	return name, nil
}

func reach(ctx context.Context, server *pgxpool.Config) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, server.ConnConfig)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the server of DATABASE_URL (make demo starts one when it is not set): %w", err)
	}
	return conn, nil
}

// dropDatabase takes no context, because it has to happen after Ctrl-C, too.
func dropDatabase(server *pgxpool.Config, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, server.ConnConfig)
	if err == nil {
		defer conn.Close(ctx)
		// force: a worker that has just been killed may still be connected.
		_, err = conn.Exec(ctx, "drop database "+name+" with (force)")
	}
	if err != nil {
		return fmt.Errorf("the database %s is left behind: %w", name, err)
	}
	return nil
}

// open returns a pool on one database of the server.
func open(ctx context.Context, server *pgxpool.Config, database string) (*pgxpool.Pool, error) {
	cfg := server.Copy()
	cfg.ConnConfig.Database = database
	return pgxpool.NewWithConfig(ctx, cfg)
}

//go:embed migrations/*.sql
var migrationFiles embed.FS

// createTables runs the migrations of the idempotency package and then this
// program's own. Each keeps its version in a table of its own, so neither has
// to know how far the other is.
func createTables(ctx context.Context, pool *pgxpool.Pool) error {
	if err := migrations.Up(ctx, pool, ""); err != nil {
		return err
	}
	if err := migrateUp(pool); err != nil {
		return fmt.Errorf("creating the tables of payments: %w", err)
	}
	return nil
}

func migrateUp(pool *pgxpool.Pool) error {
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
