package main

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/migrations"
)

var migrate = &command{
	name:    "migrate",
	summary: "create, upgrade or remove the tables",
	text: `A run that was interrupted needs no repair: run it again. Connect to PostgreSQL
itself, not to PgBouncer in transaction mode.`,
	subs: []*command{migrateUp, migrateDown, migrateVersion, migrateSQL},
}

var migrateUp = &command{
	name:    "up",
	summary: "create the tables, or upgrade them to the newest version",
	text: `Running it again, or several times at once, is harmless. A schema that does not
exist is created.`,
	setup: func(fs *flag.FlagSet) action {
		db := databaseFlags(fs, time.Minute)
		return func(ctx context.Context, std stdio, _ []string) error {
			return db.use(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
				if err := migrations.Up(ctx, pool, db.Schema); err != nil {
					return err
				}
				_, err := fmt.Fprintln(std.out, "up to date")
				return err
			})
		}
	},
}

var migrateDown = &command{
	name:    "down",
	summary: "drop the tables, with all recorded results and unfinished operations",
	text: `Afterwards nothing keeps a repeated call from running again, and no procedure that
has begun goes on. The schema itself stays.`,
	setup: func(fs *flag.FlagSet) action {
		db := databaseFlags(fs, time.Minute)
		yes := fs.Bool("yes", false, "do not ask")
		return func(ctx context.Context, std stdio, _ []string) error {
			if !*yes {
				cfg, err := db.config()
				if err != nil {
					return err
				}
				what := "this drops the tables, with all recorded results and unfinished operations, in " + place(&cfg.ConnConfig.Config)
				if err := confirm(ctx, std, what); err != nil {
					return err
				}
			}
			return db.use(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
				if err := migrations.Down(ctx, pool, db.Schema); err != nil {
					return err
				}
				_, err := fmt.Fprintln(std.out, "removed")
				return err
			})
		}
	},
}

var migrateVersion = &command{
	name:    "version",
	summary: "print the number of the last migration that is applied",
	text:    `0 means none. It only reads.`,
	setup: func(fs *flag.FlagSet) action {
		db := databaseFlags(fs, time.Minute)
		return func(ctx context.Context, std stdio, _ []string) error {
			return db.use(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
				version, err := migrations.Version(ctx, pool, db.Schema)
				if err != nil {
					return err
				}
				if latest := uint(len(upFiles())); version < latest {
					fmt.Fprintf(std.err, "idempotency: version %d is the newest: run 'idempotency migrate up'\n", latest)
				}
				_, err = fmt.Fprintln(std.out, version)
				return err
			})
		}
	},
}

var migrateSQL = &command{
	name:    "sql",
	summary: "print the statements of up",
	text: `For psql, or for a migration of your own. It needs no database. With -schema, the
schema has to exist when the statements run.

The statements are content with whatever is called idempotency_keys there, or
idempotency_operations, and whoever may create in the schema could have made it, with
functions that then run with the rights of those who use it. 'idempotency migrate up' refuses that; where you run the
statements, let only trusted roles create in the schema, and run 'idempotency doctor'.`,
	setup: func(fs *flag.FlagSet) action {
		var schema string
		schemaFlag(fs, &schema)
		return func(_ context.Context, std stdio, _ []string) error {
			_, err := fmt.Fprint(std.out, script(schema))
			return err
		}
	},
}

// script is the text of all up migrations.
func script(schema string) string {
	var parts []string
	if schema != "" {
		parts = append(parts, "set search_path to "+pgx.Identifier{schema}.Sanitize()+";\n")
	}
	for _, name := range upFiles() {
		text, err := migrations.FS.ReadFile(name)
		if err != nil {
			panic(err) // an embedded file
		}
		parts = append(parts, "-- "+name+"\n"+string(text))
	}
	return strings.Join(parts, "\n")
}

func upFiles() []string {
	names, err := fs.Glob(migrations.FS, "*.up.sql") // sorted
	if err != nil {
		panic(err) // the pattern is constant
	}
	return names
}
