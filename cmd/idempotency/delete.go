package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/inspect"
	"github.com/pgidem/idempotency/internal/keytable"
)

var deleteKey = &command{
	name:    "delete",
	args:    "SCOPE KEY",
	summary: "forget one key, so that the next call with it runs again",
	text: `What the call has written stays: if its client still retries, the operation takes
effect twice. It exits with 4, and changes nothing, while a call is in progress, and
with 3 if there is no record. With -json it says so in an object, too.

A procedure that has begun and not ended is not forgotten, but with -unfinished. If it
has begun a call, that may have taken effect: look at the other side before.`,
	setup: func(fs *flag.FlagSet) action {
		db := databaseFlags(fs, time.Minute)
		db.Use = keytable.Writing
		yes := fs.Bool("yes", false, "do not ask")
		asJSON := jsonFlag(fs)
		unended := fs.Bool("unfinished", false, "give up a procedure that has begun and not ended")
		return func(ctx context.Context, std stdio, args []string) error {
			tell := func(rec inspect.Record) error { return tellDeletion(std, rec, *asJSON) }
			if !*yes {
				if absent, err := db.askToDelete(ctx, std, args[0], args[1], *unended); err != nil {
					return err
				} else if absent != nil {
					return tell(*absent)
				}
			}
			if *unended {
				return db.changeOperation(ctx, args[0], args[1], func(ctx context.Context, store *idempotency.Store, key idempotency.Key) error {
					if err := store.Discard(ctx, key); err != nil {
						return err
					}
					return tell(inspect.Record{Scope: args[0], ID: args[1], State: deleted})
				})
			}
			return db.useTable(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
				rec, err := db.delete(ctx, pool, args[0], args[1])
				if err != nil {
					return err
				}
				return tell(rec)
			})
		}
	},
}

// deleted is the state of a record that this command has deleted.
const deleted = "deleted"

// A deletion is what became of it.
type deletion struct {
	Scope   string           `json:"scope"`
	ID      string           `json:"id"`
	Deleted bool             `json:"deleted"`
	State   string           `json:"state"` // deleted, not found, in progress
	Holders []inspect.Holder `json:"holders,omitempty"`
}

func tellDeletion(std stdio, rec inspect.Record, asJSON bool) (err error) {
	switch {
	case asJSON:
		err = jsonLine(std.out, deletion{rec.Scope, rec.ID, rec.State == deleted, rec.State, rec.Holders})
	case rec.State == deleted:
		_, err = fmt.Fprintln(std.out, "deleted")
	}
	if err != nil {
		return err
	}
	return stillHeld(rec)
}

// stillHeld is absence for a record that was found to be held before its holders were
// asked for.
func stillHeld(rec inspect.Record) error {
	if rec.State == inspect.InProgress && len(rec.Holders) == 0 {
		return exitError{exitInProgress, rec.Key() + " was in progress until now: nothing was changed, ask again"}
	}
	return absence(rec)
}

// askToDelete does not ask about what cannot be deleted: that is absent then.
func (d *database) askToDelete(ctx context.Context, std stdio, scope, id string, unended bool) (absent *inspect.Record, err error) {
	var rec inspect.Record
	err = d.useTable(ctx, func(ctx context.Context, pool *pgxpool.Pool) (err error) {
		rec, err = d.LookUp(ctx, pool, scope, id, false)
		return err
	})
	if err != nil {
		return nil, err
	}
	if absence(rec) != nil {
		return &rec, nil
	}
	if rec.State == inspect.Unfinished && !unended {
		return nil, errUnfinished(rec)
	}
	cfg, err := d.config()
	if err != nil {
		return nil, err
	}
	when := "without a result"
	if rec.CompletedAt != nil {
		when = "completed " + rec.CompletedAt.Relative(rec.Now)
	}
	return nil, confirm(ctx, std, fmt.Sprintf("this forgets key %s of scope %s (%s, %s) in %s; a retry runs the operation again",
		inspect.Plain(id), inspect.Plain(scope), rec.State, when, place(&cfg.ConnConfig.Config)))
}

func (d *database) delete(ctx context.Context, pool *pgxpool.Pool, scope, id string) (rec inspect.Record, err error) {
	store, err := d.store(pool, nil)
	if err != nil {
		return rec, err
	}
	rec = inspect.Record{Scope: scope, ID: id, State: deleted}
	err = store.Delete(d.Changing(ctx, keytable.Reading, nil), idempotency.Key{Scope: scope, ID: id})
	switch {
	case errors.Is(err, idempotency.ErrNotFound):
		rec.State = inspect.NotFound
		return rec, nil
	case errors.Is(err, idempotency.ErrUnfinished):
		return rec, errUnfinished(rec)
	case errors.Is(err, idempotency.ErrInProgress):
		rec.State = inspect.InProgress
		rec.Holders, err = d.Holders(ctx, pool, scope, id)
	}
	return rec, err
}

func errUnfinished(rec inspect.Record) error {
	return fmt.Errorf("%s belongs to a procedure that has begun and not ended: get tells how far it is; a retry goes on with it, and -unfinished gives it up", rec.Key())
}
