package inspect

import (
	"context"
	"errors"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/keylock"
)

// What is here reads a bounded number of rows, however many there are, and says so where it
// has reached the bound.

const (
	// WalkRows is how many keys are read, at most, to find those of one scope. No index
	// leads with the scope.
	WalkRows = 20_000

	// oldestRows is how many of the keys that the purge would look at are read to find one
	// that has expired.
	oldestRows = 1000

	// backlogRows is how many of the unfinished operations are read.
	backlogRows = 10_000
)

// Find is LookUp within tx, of a Look. A result is cut off behind most bytes; 0 leaves it
// where it is. On a standby there may be a record where none is found.
func (t *Table) Find(ctx context.Context, tx pgx.Tx, scope, id string, most int) (rec Record, standby bool, err error) {
	holders, err := t.Holders(ctx, tx, scope, id)
	if err != nil {
		return rec, false, err
	}
	readable, err := t.MayRead(ctx, tx, false)
	if err != nil {
		return rec, false, err
	}
	rec, err = t.record(ctx, tx, beginningSQL(readable, most), scope, id, most > 0)
	if err == nil && rec.State == NotFound {
		err = tx.QueryRow(ctx, standbySQL).Scan(&standby)
	}
	rec.IsHeldBy(holders)
	return rec, standby, err
}

// beginningSQL is recordSQL with the first bytes of the result.
func beginningSQL(readable bool, most int) string {
	return recordSQLOf(recordColumnsOf(Operations{}.stateSQL(`clock_timestamp()`), `$3::bool`,
		`encode(pg_catalog.substring(result, 1, `+strconv.Itoa(most)+`), 'hex'::text)`, readable))
}

// FindAll is the records of one key in all scopes, behind the place, and whether there are
// more than limit. Of each, IsHeldBy has been called. It goes along the primary key.
func (t *Table) FindAll(ctx context.Context, tx pgx.Tx, id string, after Cursor, limit int) (page []Record, more bool, err error) {
	held, err := t.HeldLocks(ctx, tx)
	if err != nil {
		return nil, false, err
	}
	readable, o, err := t.rights(ctx, tx)
	if err != nil {
		return nil, false, err
	}
	args := []any{"", "", nil, nil, after.purgeAfter(), after.ID, after.Scope, limit + 1, false, id, nil}
	rows, _ := tx.Query(ctx, t.On(listSQL(readable, true, o)), args...)
	page, err = pgx.CollectRows(rows, scanRecord)
	for i := range page {
		page[i].IsHeldBy(held[keylock.ID(page[i].Scope, page[i].ID)])
	}
	if len(page) > limit {
		return page[:limit], true, err
	}
	return page, false, err
}

func (t *Table) rights(ctx context.Context, tx pgx.Tx) (readable bool, o Operations, err error) {
	if readable, err = t.MayRead(ctx, tx, false); err != nil {
		return false, o, err
	}
	o, err = t.Operations(ctx, tx)
	return readable, o, err
}

// A Walk is what was found of a scope along the purge's index, from the last to expire
// backwards.
type Walk struct {
	Records []Record
	Next    *Cursor // where to go on; nil: nothing is behind
	Reached *Record // the last key that was read, of whatever scope, if the bound was reached
}

// walkSQL is the keys of one scope among the next WalkRows, and the last one of these. The
// state of others is not asked for.
func walkSQL(readable bool, o Operations, rows int) string {
	result := `result`
	if !readable {
		result = `null::bytea as result`
	}
	bound := strconv.Itoa(rows)
	return `
select ` + recordColumns(`state`, `false`, readable) + `, place = ` + bound + `::bigint
from (
	select id, scope, case when scope = $1::text then ` + o.stateSQL(`now()`) + ` else '' end as state,
		completed_at, expires_at, purge_after, fingerprint, origin, ` + result + `,
		row_number() over (order by purge_after desc, id desc, scope desc) as place
	from idempotency_keys
	where $2::text is null or (purge_after, id, scope) < ($2::text::timestamp at time zone 'UTC', $3::text, $4::text)
	order by purge_after desc, id desc, scope desc
	limit ` + bound + `::bigint) walk
where scope = $1::text or place = ` + bound + `::bigint
order by purge_after desc, id desc, scope desc
limit $5::bigint`
}

// WalkScope finds up to limit keys of a scope.
func (t *Table) WalkScope(ctx context.Context, tx pgx.Tx, scope string, after Cursor, limit int) (w Walk, err error) {
	return t.walkScope(ctx, tx, scope, after, limit, WalkRows)
}

func (t *Table) walkScope(ctx context.Context, tx pgx.Tx, scope string, after Cursor, limit, bound int) (w Walk, err error) {
	readable, o, err := t.rights(ctx, tx)
	if err != nil {
		return w, err
	}
	rows, _ := tx.Query(ctx, t.On(walkSQL(readable, o, bound)), scope, after.purgeAfter(), after.ID, after.Scope, limit+1)
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s step, err error) {
		s.Record, err = scanRecordAnd(row, &s.last)
		return s, err
	})
	if err != nil {
		return w, err
	}
	for _, s := range found {
		if len(w.Records) == limit { // there is one more, of this scope or at the bound
			w.Next = new(w.Records[limit-1].Place())
			return w, nil
		}
		if s.Scope == scope {
			w.Records = append(w.Records, s.Record)
		}
		if s.last {
			w.Reached, w.Next = &s.Record, new(s.Place())
		}
	}
	return w, nil
}

// A step of a walk is the last one if it is at the bound.
type step struct {
	Record
	last bool
}

// oldestWithinSQL is oldestSQL where the keys at the front of the index can be many that
// never expire: abandoned ones, above all.
const oldestWithinSQL = `
select extract(epoch from expires_at)::text from (
	select purge_after, expires_at from idempotency_keys
	where purge_after <= now()
	order by purge_after
	limit $1::bigint) walk
where expires_at <= now()
order by purge_after
limit 1`

// OldestWithin fills in the oldest expired record, if it is found within the bound.
func (t *Table) OldestWithin(ctx context.Context, tx pgx.Tx, s *Statistic) error {
	err := tx.QueryRow(ctx, t.On(oldestWithinSQL), oldestRows).Scan(&s.OldestExpired)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	return err
}

// BacklogWithin is Backlog of the operations within the bound, and whether there are more.
func (t *Table) BacklogWithin(ctx context.Context, tx pgx.Tx, o Operations) (b *Backlog, more bool, err error) {
	if !o.readable {
		return nil, false, nil
	}
	b = new(Backlog)
	sql := o.backlogSQLOf(o.within(`$1::bigint`))
	err = tx.QueryRow(ctx, t.On(sql), backlogRows).Scan(&b.Operations, &b.InCalls, &b.Failed, &b.Oldest)
	return b, b.Operations >= backlogRows, err
}

// within has the columns that this role may read. No index has an order that says more.
func (o Operations) within(bound string) string {
	columns := `id, scope, name, labels, attempts, started_at, progressed_at, due_at`
	if o.outcomes {
		columns += `, results`
	}
	if o.error {
		columns += `, error`
	}
	return `(select ` + columns + ` from idempotency_operations limit ` + bound + `) walk`
}

func (o Operations) stalledSQL() string {
	return `
select ` + o.columns() + `, scope, id
from ` + o.within(`$1::bigint`) + `
order by progressed_at, id, scope
limit $2::bigint`
}

// Stalled are the unfinished operations within the bound that have not progressed for the
// longest time, and whether this role may read them. Where somebody is at work, IsHeldBy has
// been called.
func (t *Table) Stalled(ctx context.Context, tx pgx.Tx, o Operations, limit int) (page []Record, readable bool, err error) {
	if !o.readable {
		return nil, false, nil
	}
	held, err := t.HeldLocks(ctx, tx)
	if err != nil {
		return nil, true, err
	}
	rows, _ := tx.Query(ctx, t.On(o.stalledSQL()), backlogRows, limit)
	page, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (rec Record, err error) {
		rec.State = Unfinished
		rec.Operation, err = scanOperation(row, &rec.Scope, &rec.ID)
		return rec, err
	})
	for i := range page {
		page[i].IsHeldBy(held[keylock.ID(page[i].Scope, page[i].ID)])
	}
	return page, true, err
}

const onlyReadsSQL = `select not has_table_privilege('idempotency_keys'::regclass::oid, 'insert'::text)`

// OnlyReads reports whether the role cannot make calls.
func (t *Table) OnlyReads(ctx context.Context, tx pgx.Tx) (only bool, err error) {
	err = tx.QueryRow(ctx, t.On(onlyReadsSQL)).Scan(&only)
	return only, err
}

// Now is the time by the server's clock.
func (t *Table) Now(ctx context.Context, tx pgx.Tx) (now Instant, err error) {
	err = tx.QueryRow(ctx, `select extract(epoch from clock_timestamp())::text`).Scan(&now)
	return now, err
}
