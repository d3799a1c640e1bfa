package inspect

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/remedy"
)

// listSQL is one page, along the purge's index, backwards, or with keys along the
// primary key, which begins with the id. An age is in microseconds, and null means any;
// so does a null place to go on from.
func listSQL(readable, keys bool, o Operations) string {
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

// A Cursor is a place in the list.
type Cursor struct {
	PurgeAfter string `json:"p"` // as PostgreSQL reads it, in UTC
	ID         string `json:"i"`
	Scope      string `json:"s"`
}

// Place is where the record stands in a list.
func (rec Record) Place() Cursor {
	return Cursor{strings.Trim(rec.place, `"`), rec.ID, rec.Scope}
}

func (c Cursor) String() string {
	text, err := json.Marshal(c)
	if err != nil {
		panic(err) // three strings
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

// purgeAfter is null at the beginning: a record can be kept until infinity, and is
// then the first.
func (c Cursor) purgeAfter() *string {
	if c.PurgeAfter == "" {
		return nil
	}
	return &c.PurgeAfter
}

// aPlace is what a place is; older releases have added the Z.
var aPlace = regexp.MustCompile(`^(-?infinity|\d{4,6}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z?( BC)?)$`)

// ReadCursor reads what String has written.
func ReadCursor(text string) (c Cursor, err error) {
	if text == "" {
		return Cursor{}, nil
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

// Filters are which records a list has. An empty one lets all pass.
type Filters struct {
	Scope, State string
	ID, Prefix   string        // of the key
	Newer, Older time.Duration // since the completion
	Show         bool          // with the results
}

// Page is the records that pass the filters, from the place on.
func (t *Table) Page(ctx context.Context, pool *pgxpool.Pool, q Filters, readable bool, after Cursor, limit int) (page []Record, err error) {
	keys := q.ID != "" || q.Prefix != ""
	args := []any{q.Scope, q.State, micros(q.Newer), micros(q.Older), after.purgeAfter(), after.ID, after.Scope, limit, q.Show}
	err = t.Reading(ctx, pool, func(tx pgx.Tx) error {
		var o Operations
		if q.State != Done && q.State != Expired { // which tell it apart without that table
			var err error
			if o, err = t.Operations(ctx, tx); err != nil {
				return err
			}
		}
		if keys {
			if _, err := tx.Exec(ctx, byKeySQL); err != nil {
				return err
			}
			args = append(args, orNull(q.ID), pattern(q.Prefix))
		}
		rows, _ := tx.Query(ctx, t.On(listSQL(readable, keys, o)), args...)
		page, err = pgx.CollectRows(rows, scanRecord)
		return err
	})
	return page, remedy.Of(err, t.Schema)
}

// micros is null for no age.
func micros(age time.Duration) *int64 {
	if age == 0 {
		return nil
	}
	n := age.Microseconds()
	return &n
}

// orNull is null for no filter.
func orNull(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// pattern is what like takes for the texts that begin so. PostgreSQL makes a range of
// the index of it, since the column is collate "C", in every encoding.
func pattern(prefix string) *string {
	if prefix == "" {
		return nil
	}
	text := strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(prefix) + "%"
	return &text
}
