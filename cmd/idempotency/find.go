package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/inspect"
	"github.com/pgidem/idempotency/internal/keylock"
)

var find = &command{
	name:    "find",
	args:    "KEY",
	summary: "find the records of one key in all scopes",
	text: `It goes along the primary key, however large the table is, and exits with 3 if there is
no record in any scope. A call in progress has no visible row, and its lock is made of
the scope and the key together: so it is found, with exit code 4, only where an expired
record of the key is there, or a procedure that has begun. Otherwise find says how many calls could be it, and
'get SCOPE KEY' knows.

` + shownTimes,
	setup: func(fs *flag.FlagSet) action {
		db := databaseFlags(fs, time.Minute)
		asJSON := jsonFlag(fs)
		return func(ctx context.Context, std stdio, args []string) error {
			q := &listing{}
			if err := q.id.Set(args[0]); err != nil {
				return usageError{"KEY: " + err.Error(), true}
			}
			return db.useTable(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
				return db.find(ctx, pool, std, q, *asJSON)
			})
		}
	},
}

// find asks for the locks first, as lookUp does.
func (d *database) find(ctx context.Context, pool *pgxpool.Pool, std stdio, q *listing, asJSON bool) error {
	held, err := d.HeldLocks(ctx, pool)
	if err != nil {
		return err
	}
	readable, err := d.MayRead(ctx, pool, false)
	if err != nil {
		return err
	}
	var busy *inspect.Record
	none, err := q.write(std, asJSON, func(after inspect.Cursor, limit int) ([]inspect.Record, error) {
		page, err := d.page(ctx, pool, q, readable, after, limit)
		for i := range page {
			number := keylock.ID(page[i].Scope, page[i].ID)
			if page[i].IsHeldBy(held[number]) {
				busy = &page[i]
			}
			delete(held, number) // a call of which the key is known
		}
		return page, err
	})
	if err != nil {
		return err
	}
	others := couldBe(len(held), q.id)
	switch {
	case busy != nil:
		return absence(*busy)
	case none:
		if err := inspect.ProvesAbsence(ctx, pool, "key "+inspect.Plain(string(q.id))); err != nil {
			return err
		}
		return exitError{exitNotFound, fmt.Sprintf("no record of key %s in any scope: no call with it has taken effect, or its record expired and was purged; %s", inspect.Plain(string(q.id)), others)}
	case len(held) > 0:
		fmt.Fprintln(std.err, "idempotency: in other scopes:", others)
	}
	return nil
}

// couldBe is about the calls of which nobody but their own session knows the key.
func couldBe(calls int, id keyFilter) string {
	switch calls {
	case 0:
		return "no call is in progress"
	case 1:
		return "1 call is in progress that could be with this key: get SCOPE " + inspect.Plain(string(id)) + " tells"
	default:
		return inspect.Count(int64(calls)) + " calls are in progress, each of which could be with this key: get SCOPE " + inspect.Plain(string(id)) + " tells"
	}
}
