package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
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
				rec, err := db.lookUp(ctx, pool, args[0], args[1], *show)
				if err != nil {
					return err
				}
				if *asJSON {
					err = jsonLine(std.out, rec)
				} else if rec.absence() == nil {
					err = rec.print(std.out, *show)
				}
				if err != nil {
					return err
				}
				return rec.absence()
			})
		}
	},
}

func jsonFlag(fs *flag.FlagSet) *bool {
	return fs.Bool("json", false, "write JSON, for programs: one object a line")
}

var meanings = map[string]string{
	done:       "done: the call took effect, and a retry gets its result",
	expired:    "expired: the call took effect, and a retry would run again",
	unfinished: "unfinished: a retry, or Store.Complete, goes on with it; Store.Settle enters the outcome of a call",
	abandoned:  "abandoned: a function ended its transaction itself; look at what it has written, then use delete",
}

func (rec record) resultSize() string {
	if rec.ResultBytes == nil {
		return "not for this role to read"
	}
	return size(*rec.ResultBytes)
}

func (rec record) print(w io.Writer, show bool) error {
	lines := [][]string{{"scope:", plain(rec.Scope)}, {"key:", plain(rec.ID)}, {"state:", meanings[rec.State]}}
	at := func(name string, t *instant) {
		if t != nil {
			lines = append(lines, []string{name, t.in(rec.now)})
		}
	}
	if rec.Operation != nil {
		lines = append(lines, rec.Operation.lines(rec.now)...)
	}
	at("created:", rec.CreatedAt)
	if rec.PurgeAfter != nil {
		lines = append(lines, []string{"claimed:", claimed(*rec.PurgeAfter, rec.now)})
	}
	at("completed:", rec.CompletedAt)
	at("expires:", rec.ExpiresAt)
	text := func(name, value string) {
		if value != "" {
			lines = append(lines, []string{name, plain(value)})
		}
	}
	text("fingerprint:", rec.Fingerprint)
	text("origin:", rec.Origin)
	result := rec.resultSize()
	if !show && rec.ResultBytes != nil {
		result += ", hidden (-show-result)"
	}
	if err := columns(w, append(lines, []string{"result:", result})); err != nil || !show || rec.Result == nil {
		return err
	}
	_, err := fmt.Fprintln(w, indented(rec.Result))
	return err
}

// defaultRetention is that of idempotency.Config.
const defaultRetention = 24 * time.Hour

// claimed is what a row without a completion knows of its time. The retention of the
// program that has claimed it does not stand in it.
func claimed(purgeAfter, now instant) string {
	text := "one retention before " + purgeAfter.String()
	if purgeAfter.infinite != "" {
		return text
	}
	return text + ": with the default of 24h at " + instant{Time: purgeAfter.Add(-defaultRetention)}.in(now)
}
