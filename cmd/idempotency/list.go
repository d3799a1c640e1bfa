package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/remedy"
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
				readable, err := db.mayRead(ctx, pool, q.show)
				if err != nil {
					return err
				}
				none, err := q.write(std, *asJSON, func(after cursor, limit int) ([]record, error) {
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

// listSQL is one page, along the purge's index, backwards, or with keys along the
// primary key, which begins with the id. An age is in microseconds, and null means any;
// so does a null place to go on from.
func listSQL(readable, keys bool, o operations) string {
	place := `($5::text is null or (purge_after, id, scope) < ($5::text::timestamp at time zone 'UTC', $6::text, $7::text))
order by purge_after desc, id desc, scope desc`
	if keys {
		place = `($5::text is null or (id, scope) > ($6::text, $7::text))
	and ($10::text is null or id = $10::text)
	and ($11::text is null or id like $11::text)
order by id, scope`
	}
	return `
select ` + recordColumns(`state`, `$9::bool`, readable) + `
from idempotency_keys, lateral (
	select ` + o.stateSQL(`now()`) + `) s (state)
where ($1::text = '' or scope = $1::text)
	and ($2::text = '' or state = $2::text)
	and ($3::bigint is null or completed_at > now() - $3::bigint::float8 * interval '1 microsecond')
	and ($4::bigint is null or completed_at <= now() - $4::bigint::float8 * interval '1 microsecond')
	and ` + place + `
limit $8::bigint`
}

// byKeySQL makes PostgreSQL use the primary key. It would do so anyway where its
// statistics are right; but on a table that is small, or was small when it was
// analyzed, it can prefer to read all of it. A plan that does not know the key (a
// generic one) could not make a range of a prefix.
const byKeySQL = `
select set_config('enable_seqscan'::text, 'off'::text, true), set_config('plan_cache_mode'::text, 'force_custom_plan'::text, true)`

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

// orNull is null for no filter.
func (k keyFilter) orNull() *string {
	if k == "" {
		return nil
	}
	return (*string)(&k)
}

// pattern is what like takes for the texts that begin so. PostgreSQL makes a range of
// the index of it, since the column is collate "C", in every encoding.
func (k keyFilter) pattern() *string {
	if k == "" {
		return nil
	}
	text := strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(string(k)) + "%"
	return &text
}

type listing struct {
	scope, state, after string
	id, prefix          keyFilter
	newer, older        age
	limit               int
	show                bool
	from                cursor
}

func (q *listing) validate() (err error) {
	bad := func(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...), true} }
	states := []string{"", done, expired, unfinished, abandoned}
	switch {
	case !slices.Contains(states, q.state):
		return bad("-state %s: it has to be done, expired, unfinished or abandoned", q.state)
	case q.id != "" && q.prefix != "":
		return bad("give -id or -prefix, not both")
	case q.limit < 0:
		return bad("-limit %d: it has to be 0 or more", q.limit)
	case (q.state == unfinished || q.state == abandoned) && (q.newer > 0 || q.older > 0):
		return bad("-state %s with -newer or -older: these go by the completion, which an %[1]s record does not have", q.state)
	case q.newer > 0 && q.older >= q.newer:
		return bad("-older %v and -newer %v: nothing can be both", time.Duration(q.older), time.Duration(q.newer))
	}
	q.from, err = readCursor(q.after)
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
func (q *listing) write(std stdio, asJSON bool, next func(after cursor, limit int) ([]record, error)) (none bool, err error) {
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
			after = page[len(page)-1].cursor()
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

func (q *listing) print(std stdio, asJSON bool, page []record, first bool) error {
	if asJSON {
		for _, rec := range page {
			rec.Cursor = rec.cursor().String()
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
		lines = append(lines, rec.cells(q.show))
	}
	return fitted(std.out, lines, 0, 1, 6)
}

func (rec record) cells(show bool) []string {
	completed, old, expires := "-", "-", "-"
	if rec.CompletedAt != nil && rec.ExpiresAt != nil {
		completed, expires = rec.CompletedAt.String(), rec.ExpiresAt.relative(rec.now)
		if rec.CompletedAt.infinite == "" {
			old = span(rec.now.Sub(rec.CompletedAt.Time))
		}
	}
	if rec.PurgeAfter != nil {
		expires = "(" + rec.PurgeAfter.relative(rec.now) + ")"
	}
	result := rec.resultSize()
	if show && rec.Result != nil {
		result = compact(rec.Result)
	}
	return []string{plain(rec.Scope), plain(rec.ID), rec.State, completed, old, expires, result}
}

func (d *database) page(ctx context.Context, pool *pgxpool.Pool, q *listing, readable bool, after cursor, limit int) (page []record, err error) {
	keys := q.id != "" || q.prefix != ""
	args := []any{q.scope, q.state, q.newer.micros(), q.older.micros(), after.purgeAfter(), after.ID, after.Scope, limit, q.show}
	err = d.reading(ctx, pool, func(tx pgx.Tx) error {
		var o operations
		if q.state != done && q.state != expired { // which tell it apart without that table
			var err error
			if o, err = d.operations(ctx, tx); err != nil {
				return err
			}
		}
		if keys {
			if _, err := tx.Exec(ctx, byKeySQL); err != nil {
				return err
			}
			args = append(args, q.id.orNull(), q.prefix.pattern())
		}
		rows, _ := tx.Query(ctx, d.on(listSQL(readable, keys, o)), args...)
		page, err = pgx.CollectRows(rows, scanRecord)
		return err
	})
	return page, remedy.Of(err, d.schema)
}

// micros is null for no age.
func (a age) micros() *int64 {
	if a == 0 {
		return nil
	}
	n := time.Duration(a).Microseconds()
	return &n
}

// A cursor is a place in the list.
type cursor struct {
	PurgeAfter string `json:"p"` // as PostgreSQL reads it, in UTC
	ID         string `json:"i"`
	Scope      string `json:"s"`
}

func (rec record) cursor() cursor {
	return cursor{strings.Trim(rec.place, `"`), rec.ID, rec.Scope}
}

func (c cursor) String() string {
	text, err := json.Marshal(c)
	if err != nil {
		panic(err) // three strings
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

// purgeAfter is null at the beginning: a record can be kept until infinity, and is
// then the first.
func (c cursor) purgeAfter() *string {
	if c.PurgeAfter == "" {
		return nil
	}
	return &c.PurgeAfter
}

// aPlace is what a place is; older releases have added the Z.
var aPlace = regexp.MustCompile(`^(-?infinity|\d{4,6}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z?( BC)?)$`)

func readCursor(text string) (c cursor, err error) {
	if text == "" {
		return cursor{}, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, err
	}
	if !aPlace.MatchString(c.PurgeAfter) {
		return c, errors.New("no time")
	}
	return c, nil
}
