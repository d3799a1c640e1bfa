package inspect

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/keytable"
	"github.com/pgidem/idempotency/internal/remedy"
)

// A Record is a row of the table, also one that a Store passes over since it has
// expired or has no result.
type Record struct {
	Scope       string          `json:"scope"`
	ID          string          `json:"id"`
	State       string          `json:"state"` // done, expired, unfinished, abandoned; in progress, not found
	CreatedAt   *Instant        `json:"created_at,omitempty"`
	CompletedAt *Instant        `json:"completed_at,omitempty"`
	ExpiresAt   *Instant        `json:"expires_at,omitempty"`
	PurgeAfter  *Instant        `json:"purge_after,omitempty"` // of one without a result: the claim plus the retention
	Fingerprint string          `json:"fingerprint,omitempty"`
	Origin      string          `json:"origin,omitempty"`
	ResultBytes *int64          `json:"result_bytes"` // null: this role may not read the result
	Result      json.RawMessage `json:"result,omitempty"`
	Holders     []Holder        `json:"holders,omitempty"`
	Operation   *Operation      `json:"operation,omitempty"` // of an unfinished one, by get
	Cursor      string          `json:"cursor,omitempty"`    // of list

	Now Instant `json:"-"` // by the server's clock

	purgeAfter Instant
	version    string // of a record that was seen, see Version
	place      string // purge_after as a timestamp in UTC, as JSON has it under every DateStyle
}

// The states of a key.
const (
	Done       = "done"
	Expired    = "expired"
	Unfinished = "unfinished"
	Abandoned  = "abandoned"
	InProgress = "in progress"
	NotFound   = "not found"
)

// Two rules hold for the statements of this package, since they run in whatever
// session a human has. What they return looks the same under every setting: times
// as Instant has them, bytes in hex, numbers whole. And every operator and function
// is resolved exactly in pg_catalog, with casts written out and polymorphic functions
// qualified: PostgreSQL prefers an exact match in any schema of the search_path to
// one of its own with an implicit cast, and would run it with the human's rights.

// recordColumns are what scanRecord reads. The result stays in the server unless it
// is to be shown, and is not named at all where the role may not read it.
func recordColumns(state, show string, readable bool) string {
	return recordColumnsOf(state, show, `encode(result, 'hex'::text)`, readable)
}

func recordColumnsOf(state, show, result string, readable bool) string {
	length := `coalesce(octet_length(result), 0)`
	if !readable {
		length, result = `null::integer`, `null::text`
	}
	return `scope, id, ` + state + `,
	extract(epoch from completed_at)::text, extract(epoch from expires_at)::text, extract(epoch from purge_after)::text, extract(epoch from clock_timestamp())::text,
	pg_catalog.to_json(purge_after at time zone 'UTC')::text,
	coalesce(encode(fingerprint, 'hex'::text), ''), coalesce(origin, ''), ` + length + `, case when ` + show + ` then ` + result + ` end`
}

// recordSQL is one row, whatever its state.
func recordSQL(readable bool) string {
	return recordSQLOf(recordColumns(Operations{}.stateSQL(`clock_timestamp()`), `$3::bool`, readable))
}

func recordSQLOf(columns string) string {
	return `
select ` + columns + `
from idempotency_keys
where id = $1::text and scope = $2::text`
}

const mayReadSQL = `
select current_user::text, has_column_privilege('idempotency_keys'::regclass::oid, 'result'::text, 'select'::text)`

// MayRead reports whether the role may read results. It is an error if it may not,
// and they are to be shown.
func (t *Table) MayRead(ctx context.Context, q Querier, show bool) (readable bool, err error) {
	var role string
	if err := q.QueryRow(ctx, t.On(mayReadSQL)).Scan(&role, &readable); err != nil {
		return false, remedy.Of(err, t.Schema)
	}
	if show && !readable {
		return false, fmt.Errorf("-show-result: role %s may not read the column result: grant select (result) on %s to %s, or leave the flag out",
			Plain(role), Qualified(t.Schema, keytable.Name), pgx.Identifier{role}.Sanitize())
	}
	return readable, nil
}

func scanRecord(row pgx.CollectableRow) (rec Record, err error) { return scanRecordAnd(row) }

// scanRecordAnd reads more columns, behind those of the record.
func scanRecordAnd(row pgx.CollectableRow, more ...any) (rec Record, err error) {
	var result *string
	err = row.Scan(append([]any{&rec.Scope, &rec.ID, &rec.State, &rec.CompletedAt, &rec.ExpiresAt, &rec.purgeAfter, &rec.Now, &rec.place,
		&rec.Fingerprint, &rec.Origin, &rec.ResultBytes, &result}, more...)...)
	if err != nil {
		return rec, err
	}
	if rec.CompletedAt == nil {
		rec.PurgeAfter = &rec.purgeAfter
	} else if rec.ExpiresAt != nil {
		rec.CreatedAt = rec.purgeAfter.Plus(*rec.CompletedAt, *rec.ExpiresAt) // both ends have the same retention
	}
	if result != nil {
		if rec.Result, err = hex.DecodeString(*result); err != nil {
			return rec, err
		}
		if !rec.CutOff() && !json.Valid(rec.Result) {
			rec.Result, _ = json.Marshal(string(rec.Result)) // not ours, but to be seen
		}
	}
	return rec, nil
}

// LookUp returns what is known about a key. It asks for the lock first: a call
// that has none any more has a record by then, or has failed. A call that is at
// work counts more than the expired row that it takes over.
func (t *Table) LookUp(ctx context.Context, pool *pgxpool.Pool, scope, id string, result bool) (Record, error) {
	holders, err := t.Holders(ctx, pool, scope, id)
	if err != nil {
		return Record{}, err
	}
	readable, err := t.MayRead(ctx, pool, result)
	if err != nil {
		return Record{}, err
	}
	var rec Record
	err = t.Reading(ctx, pool, func(tx pgx.Tx) (err error) {
		rec, err = t.record(ctx, tx, recordSQL(readable), scope, id, result)
		return err
	})
	rec.IsHeldBy(holders)
	if err == nil && rec.State == NotFound {
		err = ProvesAbsence(ctx, pool, rec.Key())
	}
	return rec, remedy.Of(err, t.Schema)
}

// record is what the tables have about a key, whoever holds it.
func (t *Table) record(ctx context.Context, tx pgx.Tx, sql, scope, id string, result bool) (Record, error) {
	rows, _ := tx.Query(ctx, t.On(sql), id, scope, result)
	rec, err := pgx.CollectExactlyOneRow(rows, scanRecord)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Record{Scope: scope, ID: id, State: NotFound, ResultBytes: new(int64)}, nil
	case err == nil && rec.State == Abandoned:
		err = t.findOperation(ctx, tx, &rec)
	}
	return rec, err
}

// IsHeldBy makes it the record of a call in progress, if there is one. Others that have the
// lock of a key whose record is done read that.
func (rec *Record) IsHeldBy(holders []Holder) bool {
	if len(holders) == 0 || rec.State == Done || rec.State == Abandoned {
		return false
	}
	rec.State, rec.Holders = InProgress, holders
	return true
}

const standbySQL = `select pg_is_in_recovery()`

// ProvesAbsence is an error on a standby: it can be behind, and has the locks of
// no call in progress.
func ProvesAbsence(ctx context.Context, q Querier, key string) error {
	var standby bool
	if err := q.QueryRow(ctx, standbySQL).Scan(&standby); err != nil || !standby {
		return err
	}
	return fmt.Errorf("there is no record of %s here, but this server is a standby, which can be behind and knows of no call in progress: ask the primary, for example with target_session_attrs=read-write", key)
}

// Key names it in a sentence.
func (rec Record) Key() string {
	return fmt.Sprintf("key %s of scope %s", Plain(rec.ID), Plain(rec.Scope))
}

// CutOff reports whether Result has the beginning alone.
func (rec Record) CutOff() bool {
	return rec.Result != nil && rec.ResultBytes != nil && int64(len(rec.Result)) < *rec.ResultBytes
}

// ResultSize is in words.
func (rec Record) ResultSize() string {
	if rec.ResultBytes == nil {
		return "not for this role to read"
	}
	return Size(*rec.ResultBytes)
}

// DefaultRetention is that of idempotency.Config.
const DefaultRetention = 24 * time.Hour

// Claimed is what a row without a completion knows of its time. The retention of the
// program that has claimed it does not stand in it.
func Claimed(purgeAfter, now Instant) string {
	text := "one retention before " + purgeAfter.String()
	if purgeAfter.Infinite != "" {
		return text
	}
	return text + ": with the default of 24h at " + Instant{Time: purgeAfter.Add(-DefaultRetention)}.In(now)
}

// Due is when the purge looks at the record for the first time.
func (rec Record) Due() Instant { return rec.purgeAfter }
