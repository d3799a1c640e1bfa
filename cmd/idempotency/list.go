package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/inspect"
)

// shownTimes explains the table.
const shownTimes = `One that is unfinished or abandoned has no time but its purge_after, which is the claim plus the
Retention of the program: in brackets under EXPIRES is when that is over, although the
record stays. On a terminal, long scopes, keys and results are cut so that a line fits.`

var list = &command{
	name:    "list",
	summary: "list records, the last to expire first",
	text: `Where all were made with the same retention, that is the newest first; else ask for
the newest with -newer. It lists what has taken effect. Calls in progress cannot be seen here: see stats.
With -id or -prefix it reads only the keys that match, and lists them by key and scope.
Where there is more, it says with which -after to go on; in JSON each record has it
as its cursor. On a large table another filter that few records pass reads far.

` + shownTimes,
	setup: func(fs *flag.FlagSet) action {
		db := databaseFlags(fs, time.Minute)
		q := new(listing)
		fs.StringVar(&q.scope, "scope", "", "only this `SCOPE`")
		fs.Var(&q.id, "id", "only this `KEY`, in all scopes")
		fs.Var(&q.prefix, "prefix", "only keys that begin with this `TEXT`")
		fs.StringVar(&q.state, "state", "", "only in this `STATE`: done, expired, unfinished or abandoned")
		fs.Var(&q.newer, "newer", "only completed within this `time`, such as 15m or 7d")
		fs.Var(&q.older, "older", "only completed longer than this `time` ago")
		fs.IntVar(&q.limit, "limit", 50, "at most so many `records`, 0 for all")
		fs.StringVar(&q.after, "after", "", "go on after this `CURSOR`")
		fs.BoolVar(&q.show, "show-result", false, "show the recorded results")
		asJSON := jsonFlag(fs)
		return func(ctx context.Context, std stdio, _ []string) error {
			if err := q.validate(); err != nil {
				return err
			}
			return db.useTable(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
				readable, err := db.MayRead(ctx, pool, q.show)
				if err != nil {
					return err
				}
				none, err := q.write(std, *asJSON, func(after inspect.Cursor, limit int) ([]inspect.Record, error) {
					return db.page(ctx, pool, q, readable, after, limit)
				})
				if none {
					fmt.Fprintln(std.err, "idempotency: no records", q.filters())
				}
				return err
			})
		}
	},
}

// A keyFilter is an id, or the beginning of one. An empty one is a mistake: mostly a
// variable of a script that is not set, which would list everything.
type keyFilter string

func (k *keyFilter) String() string { return string(*k) }

func (k *keyFilter) Set(text string) error {
	if text == "" {
		return errors.New("it is empty")
	}
	*k = keyFilter(text)
	return nil
}

type listing struct {
	scope, state, after string
	id, prefix          keyFilter
	newer, older        age
	limit               int
	show                bool
	from                inspect.Cursor
}

func (q *listing) validate() (err error) {
	bad := func(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...), true} }
	states := []string{"", inspect.Done, inspect.Expired, inspect.Unfinished, inspect.Abandoned}
	switch {
	case !slices.Contains(states, q.state):
		return bad("-state %s: it has to be done, expired, unfinished or abandoned", q.state)
	case q.id != "" && q.prefix != "":
		return bad("give -id or -prefix, not both")
	case q.limit < 0:
		return bad("-limit %d: it has to be 0 or more", q.limit)
	case (q.state == inspect.Unfinished || q.state == inspect.Abandoned) && (q.newer > 0 || q.older > 0):
		return bad("-state %s with -newer or -older: these go by the completion, which an %[1]s record does not have", q.state)
	case q.newer > 0 && q.older >= q.newer:
		return bad("-older %v and -newer %v: nothing can be both", time.Duration(q.older), time.Duration(q.newer))
	}
	q.from, err = inspect.ReadCursor(q.after)
	if err != nil {
		return bad("-after %s: it is not a cursor that list has printed", q.after)
	}
	return nil
}

// listPage and shownPage bound what is read, and held, at a time: a result can be
// large.
const (
	listPage  = 1000
	shownPage = 20
)

// write prints one page after the other, and reports whether there was nothing to
// print. A table is aligned by the page.
func (q *listing) write(std stdio, asJSON bool, next func(after inspect.Cursor, limit int) ([]inspect.Record, error)) (none bool, err error) {
	after, printed := q.from, 0
	for {
		want := listPage
		if q.show {
			want = shownPage
		}
		if q.limit > 0 {
			want = min(want, q.limit-printed)
		}
		page, err := next(after, want+1) // one more tells whether there is more
		if err != nil {
			return false, err
		}
		more := len(page) > want
		page = page[:min(len(page), want)]
		if err := q.print(std, asJSON, page, printed == 0); err != nil {
			return false, err
		}
		if len(page) > 0 {
			after = page[len(page)-1].Place()
		}
		printed += len(page)
		switch {
		case !more:
			return printed == 0, nil
		case q.limit > 0 && printed >= q.limit:
			fmt.Fprintf(std.err, "idempotency: there is more: add -after %s\n", after)
			return false, nil
		}
	}
}

func (q *listing) filters() string {
	if q.scope == "" && q.id == "" && q.prefix == "" && q.state == "" && q.newer == 0 && q.older == 0 && q.after == "" {
		return "in the table"
	}
	return "pass these filters"
}

func (q *listing) print(std stdio, asJSON bool, page []inspect.Record, first bool) error {
	if asJSON {
		for _, rec := range page {
			rec.Cursor = rec.Place().String()
			if err := jsonLine(std.out, rec); err != nil {
				return err
			}
		}
		return nil
	}
	if len(page) == 0 {
		return nil
	}
	var lines [][]string
	if first {
		lines = append(lines, []string{"SCOPE", "KEY", "STATE", "COMPLETED", "AGE", "EXPIRES", "RESULT"})
	}
	for _, rec := range page {
		lines = append(lines, cells(rec, q.show))
	}
	return fitted(std.out, lines, 0, 1, 6)
}

func cells(rec inspect.Record, show bool) []string {
	completed, old, expires := "-", "-", "-"
	if rec.CompletedAt != nil && rec.ExpiresAt != nil {
		completed, expires = rec.CompletedAt.String(), rec.ExpiresAt.Relative(rec.Now)
		if rec.CompletedAt.Infinite == "" {
			old = inspect.Span(rec.Now.Sub(rec.CompletedAt.Time))
		}
	}
	if rec.PurgeAfter != nil {
		expires = "(" + rec.PurgeAfter.Relative(rec.Now) + ")"
	}
	result := rec.ResultSize()
	if show && rec.Result != nil {
		result = compact(rec.Result)
	}
	return []string{inspect.Plain(rec.Scope), inspect.Plain(rec.ID), rec.State, completed, old, expires, result}
}

func (d *database) page(ctx context.Context, pool *pgxpool.Pool, q *listing, readable bool, after inspect.Cursor, limit int) ([]inspect.Record, error) {
	return d.Page(ctx, pool, inspect.Filters{
		Scope: q.scope, State: q.state, ID: string(q.id), Prefix: string(q.prefix),
		Newer: time.Duration(q.newer), Older: time.Duration(q.older), Show: q.show,
	}, readable, after, limit)
}
