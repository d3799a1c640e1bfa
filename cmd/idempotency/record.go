package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/keylock"
	"github.com/pgidem/idempotency/internal/remedy"
)

// A record is a row of the table, also one that a Store passes over since it has
// expired or has no result.
type record struct {
	Scope       string          `json:"scope"`
	ID          string          `json:"id"`
	State       string          `json:"state"` // done, expired, abandoned; in progress, not found
	CreatedAt   *instant        `json:"created_at,omitempty"`
	CompletedAt *instant        `json:"completed_at,omitempty"`
	ExpiresAt   *instant        `json:"expires_at,omitempty"`
	Fingerprint string          `json:"fingerprint,omitempty"`
	Origin      string          `json:"origin,omitempty"`
	ResultBytes *int64          `json:"result_bytes"` // null: this role may not read the result
	Result      json.RawMessage `json:"result,omitempty"`
	Holders     []holder        `json:"holders,omitempty"`
	Cursor      string          `json:"cursor,omitempty"` // of list

	now, purgeAfter instant
	place           string // purge_after as a timestamp in UTC, as JSON has it under every DateStyle
}

const (
	done       = "done"
	expired    = "expired"
	abandoned  = "abandoned"
	inProgress = "in progress"
	notFound   = "not found"
)

// Two rules hold for the statements of this command, since they run in whatever
// session a human has. What they return looks the same under every setting: times
// as instant has them, bytes in hex, numbers whole. And every operator and function
// is resolved exactly in pg_catalog, with casts written out and polymorphic functions
// qualified: PostgreSQL prefers an exact match in any schema of the search_path to
// one of its own with an implicit cast, and would run it with the human's rights.

// recordColumns are what scanRecord reads. The result stays in the server unless it
// is to be shown, and is not named at all where the role may not read it.
func recordColumns(state, show string, readable bool) string {
	length, result := `coalesce(octet_length(result), 0)`, `encode(result, 'hex'::text)`
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
	return `
select ` + recordColumns(`case when completed_at is null then 'abandoned' when expires_at <= clock_timestamp() then 'expired' else 'done' end`, `$3::bool`, readable) + `
from idempotency_keys
where id = $1::text and scope = $2::text`
}

const mayReadSQL = `
select current_user::text, has_column_privilege('idempotency_keys'::regclass::oid, 'result'::text, 'select'::text)`

// mayRead reports whether the role may read results. It is an error if it may not,
// and they are to be shown.
func (d *database) mayRead(ctx context.Context, pool *pgxpool.Pool, show bool) (readable bool, err error) {
	var role string
	if err := pool.QueryRow(ctx, d.on(mayReadSQL)).Scan(&role, &readable); err != nil {
		return false, remedy.Of(err, d.schema)
	}
	if show && !readable {
		return false, fmt.Errorf("-show-result: role %s may not read the column result: grant select (result) on %s to %s, or leave the flag out",
			plain(role), qualified(d.schema), pgx.Identifier{role}.Sanitize())
	}
	return readable, nil
}

func scanRecord(row pgx.CollectableRow) (rec record, err error) {
	var result *string
	err = row.Scan(&rec.Scope, &rec.ID, &rec.State, &rec.CompletedAt, &rec.ExpiresAt, &rec.purgeAfter, &rec.now, &rec.place,
		&rec.Fingerprint, &rec.Origin, &rec.ResultBytes, &result)
	if err != nil {
		return rec, err
	}
	if rec.CompletedAt != nil && rec.ExpiresAt != nil {
		rec.CreatedAt = rec.purgeAfter.plus(*rec.CompletedAt, *rec.ExpiresAt) // both ends have the same retention
	}
	if result != nil {
		if rec.Result, err = hex.DecodeString(*result); err != nil {
			return rec, err
		}
		if !json.Valid(rec.Result) {
			rec.Result, _ = json.Marshal(string(rec.Result)) // not ours, but to be seen
		}
	}
	return rec, nil
}

// A holder is a session whose transaction has the key's advisory lock: a call at
// work on it, or one that has just replayed it.
type holder struct {
	PID         int32    `json:"pid"`
	Application string   `json:"application,omitempty"`
	Client      string   `json:"client,omitempty"`
	State       string   `json:"state,omitempty"`
	Seconds     *seconds `json:"transaction_seconds"` // null: this role may not see it
	Waiting     string   `json:"waiting_for,omitempty"`
}

// seconds come from the server as microseconds, a whole number.
type seconds float64

func (s *seconds) ScanInt64(micros pgtype.Int8) error {
	*s = seconds(micros.Int64) / 1e6
	return nil
}

// replicating: the COMMIT has taken effect on this server, and waits for another.
func (h holder) replicating() bool { return h.Waiting == "SyncRep" }

func (h holder) String() string {
	text := fmt.Sprintf("process %d", h.PID)
	var about []string
	for _, part := range []string{h.Application, h.Client, h.State} {
		if part != "" {
			about = append(about, plain(part))
		}
	}
	if len(about) > 0 {
		text += " (" + strings.Join(about, ", ") + ")"
	}
	return text + " " + h.since()
}

func (h holder) since() string {
	if h.Seconds == nil {
		return "since a time that this role may not see (a member of pg_monitor may)"
	}
	return "for " + span(time.Duration(float64(*h.Seconds)*float64(time.Second)))
}

// holderColumns are those of a holder.
const holderColumns = `l.pid, coalesce(a.application_name, ''), coalesce(host(a.client_addr), ''), coalesce(a.state, ''),
	(extract(epoch from clock_timestamp() - a.xact_start) * 1000000::numeric)::bigint, coalesce(a.wait_event, '')`

// holderSQL looks for the lock that claims take: a number of 64 bits, of which
// pg_locks shows the two halves. The row of a call in progress is invisible.
const holderSQL = `
select ` + holderColumns + `
from pg_locks l left join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory' and l.granted and l.objsubid = 1
	and l.database = (select oid from pg_database where datname = current_database())
	and (l.classid::bigint << 32) | l.objid::bigint = $1::bigint # 'idempotency_keys'::regclass::oid::bigint`

// lookUp returns what is known about a key. It asks for the lock first: a call
// that has none any more has a record by then, or has failed. A call that is at
// work counts more than the expired row that it takes over.
func (d *database) lookUp(ctx context.Context, pool *pgxpool.Pool, scope, id string, result bool) (record, error) {
	holders, err := d.holders(ctx, pool, scope, id)
	if err != nil {
		return record{}, err
	}
	readable, err := d.mayRead(ctx, pool, result)
	if err != nil {
		return record{}, err
	}
	rows, _ := pool.Query(ctx, d.on(recordSQL(readable)), id, scope, result)
	rec, err := pgx.CollectExactlyOneRow(rows, scanRecord)
	if errors.Is(err, pgx.ErrNoRows) {
		rec, err = record{Scope: scope, ID: id, State: notFound, ResultBytes: new(int64)}, nil
	}
	if len(holders) > 0 && (rec.State == notFound || rec.State == expired) {
		rec.State, rec.Holders = inProgress, holders
	}
	if err == nil && rec.State == notFound {
		err = provesAbsence(ctx, pool, rec)
	}
	return rec, remedy.Of(err, d.schema)
}

const standbySQL = `select pg_is_in_recovery()`

// provesAbsence is an error on a standby: it can be behind, and has the locks of
// no call in progress.
func provesAbsence(ctx context.Context, pool *pgxpool.Pool, rec record) error {
	var standby bool
	if err := pool.QueryRow(ctx, standbySQL).Scan(&standby); err != nil || !standby {
		return err
	}
	return fmt.Errorf("there is no record of %s here, but this server is a standby, which can be behind and knows of no call in progress: ask the primary, for example with target_session_attrs=read-write", rec.key())
}

func (rec record) key() string {
	return fmt.Sprintf("key %s of scope %s", plain(rec.ID), plain(rec.Scope))
}

func (d *database) holders(ctx context.Context, pool *pgxpool.Pool, scope, id string) ([]holder, error) {
	rows, _ := pool.Query(ctx, d.on(holderSQL), keylock.ID(scope, id))
	holders, err := pgx.CollectRows(rows, pgx.RowToStructByPos[holder])
	return holders, remedy.Of(err, d.schema)
}

// absence is the error that says why there is no record.
func (rec record) absence() error {
	key := rec.key()
	switch rec.State {
	case inProgress:
		effect := "nothing has taken effect yet"
		if rec.CompletedAt != nil {
			effect = "an earlier call took effect at " + rec.CompletedAt.String() + ", and its record has expired; this one has not yet"
		}
		if rec.Holders[0].replicating() {
			return exitError{exitInProgress, fmt.Sprintf("%s is being committed: %s: it waits for a synchronous standby (see pg_stat_replication): do not end it, that would show a commit that a failover can lose",
				key, rec.Holders[0])}
		}
		return exitError{exitInProgress, fmt.Sprintf("%s is in progress: %s: %s: ask again, or end it with select pg_terminate_backend(%d)",
			key, rec.Holders[0], effect, rec.Holders[0].PID)}
	case notFound:
		return exitError{exitNotFound, "no record of " + key + ": no call with it has taken effect, or its record expired and was purged"}
	}
	return nil
}
