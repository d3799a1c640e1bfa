package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/inspect"
)

var get = &command{
	name:    "get",
	args:    "SCOPE KEY",
	summary: "tell what became of one key",
	text: `A record is proof that the call took effect: both commit together. It is done, or
expired (it took effect, and the key is free again), unfinished (a procedure has begun:
get tells which of its steps and calls are done), or abandoned (a function ended its
transaction itself: its writes are there, its result is not). Without one it exits with
4 if a call is in progress, and else with 3.

The result can be confidential, and is shown only with -show-result.`,
	setup: func(fs *flag.FlagSet) action {
		db := databaseFlags(fs, time.Minute)
		show := fs.Bool("show-result", false, "show the recorded result")
		asJSON := jsonFlag(fs)
		return func(ctx context.Context, std stdio, args []string) error {
			return db.useTable(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
				rec, err := db.LookUp(ctx, pool, args[0], args[1], *show)
				if err != nil {
					return err
				}
				if *asJSON {
					err = jsonLine(std.out, rec)
				} else if absence(rec) == nil {
					err = printRecord(rec, std.out, *show)
				}
				if err != nil {
					return err
				}
				return absence(rec)
			})
		}
	},
}

func jsonFlag(fs *flag.FlagSet) *bool {
	return fs.Bool("json", false, "write JSON, for programs: one object a line")
}

var meanings = map[string]string{
	inspect.Done:       "done: the call took effect, and a retry gets its result",
	inspect.Expired:    "expired: the call took effect, and a retry would run again",
	inspect.Unfinished: "unfinished: a retry, or Store.Complete, goes on with it; Store.Settle enters the outcome of a call",
	inspect.Abandoned:  "abandoned: a function ended its transaction itself; look at what it has written, then use delete",
}

func printRecord(rec inspect.Record, w io.Writer, show bool) error {
	lines := [][]string{{"scope:", inspect.Plain(rec.Scope)}, {"key:", inspect.Plain(rec.ID)}, {"state:", meanings[rec.State]}}
	at := func(name string, t *inspect.Instant) {
		if t != nil {
			lines = append(lines, []string{name, t.In(rec.Now)})
		}
	}
	if rec.Operation != nil {
		lines = append(lines, operationLines(rec.Operation, rec.Now)...)
	}
	at("created:", rec.CreatedAt)
	if rec.PurgeAfter != nil {
		lines = append(lines, []string{"claimed:", inspect.Claimed(*rec.PurgeAfter, rec.Now)})
	}
	at("completed:", rec.CompletedAt)
	at("expires:", rec.ExpiresAt)
	text := func(name, value string) {
		if value != "" {
			lines = append(lines, []string{name, inspect.Plain(value)})
		}
	}
	text("fingerprint:", rec.Fingerprint)
	text("origin:", rec.Origin)
	result := rec.ResultSize()
	if !show && rec.ResultBytes != nil {
		result += ", hidden (-show-result)"
	}
	if err := columns(w, append(lines, []string{"result:", result})); err != nil || !show || rec.Result == nil {
		return err
	}
	_, err := fmt.Fprintln(w, indented(rec.Result))
	return err
}
