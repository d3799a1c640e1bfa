package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
)

var deleteKey = &command{
	name:    "delete",
	args:    "SCOPE KEY",
	summary: "forget one key, so that the next call with it runs again",
	text: `What the call has written stays: if its client still retries, the operation takes
effect twice. It exits with 4, and changes nothing, while a call is in progress, and
with 3 if there is no record.`,
	setup: func(fs *flag.FlagSet) action {
		db := databaseFlags(fs, time.Minute)
		yes := fs.Bool("yes", false, "do not ask")
		return func(ctx context.Context, std stdio, args []string) error {
			if !*yes {
				if err := db.askToDelete(ctx, std, args[0], args[1]); err != nil {
					return err
				}
			}
			return db.useTable(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
				if err := db.delete(ctx, pool, args[0], args[1]); err != nil {
					return err
				}
				_, err := fmt.Fprintln(std.out, "deleted")
				return err
			})
		}
	},
}

// askToDelete does not ask about what cannot be deleted.
func (d *database) askToDelete(ctx context.Context, std stdio, scope, id string) error {
	var rec record
	err := d.useTable(ctx, func(ctx context.Context, pool *pgxpool.Pool) (err error) {
		rec, err = d.lookUp(ctx, pool, scope, id, false)
		if err == nil {
			err = rec.absence()
		}
		return err
	})
	if err != nil {
		return err
	}
	cfg, err := d.config()
	if err != nil {
		return err
	}
	when := "without a result"
	if rec.CompletedAt != nil {
		when = "completed " + rec.CompletedAt.relative(rec.now)
	}
	return confirm(ctx, std, fmt.Sprintf("this forgets key %s of scope %s (%s, %s) in %s; a retry runs the operation again",
		plain(id), plain(scope), rec.State, when, place(&cfg.ConnConfig.Config)))
}

func (d *database) delete(ctx context.Context, pool *pgxpool.Pool, scope, id string) error {
	store, err := d.store(pool, nil)
	if err != nil {
		return err
	}
	err = store.Delete(ctx, idempotency.Key{Scope: scope, ID: id})
	rec := record{Scope: scope, ID: id, State: notFound}
	switch {
	case errors.Is(err, idempotency.ErrNotFound):
		return rec.absence()
	case !errors.Is(err, idempotency.ErrInProgress):
		return err
	}
	if rec.Holders, err = d.holders(ctx, pool, scope, id); err != nil {
		return err
	}
	if rec.State = inProgress; len(rec.Holders) == 0 {
		return exitError{exitInProgress, fmt.Sprintf("key %s of scope %s was in progress until now: nothing was deleted, ask again", plain(id), plain(scope))}
	}
	return rec.absence()
}
