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
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/keylock"
)

// A record is a row of the table, also one that a Store passes over since it has
// expired or has no result.
type record struct {
	Scope       string          `json:"scope"`
	ID          string          `json:"id"`
	State       string          `json:"state"` // done, expired, abandoned; in progress, not found
	CreatedAt   *time.Time      `json:"created_at,omitempty"`
	CompletedAt *time.Time      `json:"completed_at,omitempty"`
	ExpiresAt   *time.Time      `json:"expires_at,omitempty"`
	Fingerprint string          `json:"fingerprint,omitempty"`
	Origin      string          `json:"origin,omitempty"`
	ResultBytes int64           `json:"result_bytes"`
	Result      json.RawMessage `json:"result,omitempty"`
	Holders     []holder        `json:"holders,omitempty"`
	Cursor      string          `json:"cursor,omitempty"` // of list

	now, purgeAfter time.Time
}

const (
	done       = "done"
	expired    = "expired"
	abandoned  = "abandoned"
	inProgress = "in progress"
	notFound   = "not found"
)

// recordSQL is one row, whatever its state. The result stays in the server unless
// it is to be shown.
const recordSQL = `
select scope, id,
	case when completed_at is null then 'abandoned' when expires_at <= clock_timestamp() then 'expired' else 'done' end,
	completed_at, expires_at, purge_after, clock_timestamp(),
	fingerprint, coalesce(origin, ''), coalesce(octet_length(result), 0), case when $3 then result end
from idempotency_keys
where id = $1 and scope = $2`

func scanRecord(row pgx.CollectableRow) (rec record, err error) {
	var fingerprint []byte
	err = row.Scan(&rec.Scope, &rec.ID, &rec.State, &rec.CompletedAt, &rec.ExpiresAt, &rec.purgeAfter, &rec.now,
		&fingerprint, &rec.Origin, &rec.ResultBytes, (*[]byte)(&rec.Result))
	rec.Fingerprint = hex.EncodeToString(fingerprint)
	if rec.CompletedAt != nil && rec.ExpiresAt != nil {
		created := rec.purgeAfter.Add(rec.CompletedAt.Sub(*rec.ExpiresAt)) // both ends have the same retention
		rec.CreatedAt = &created
	}
	if rec.Result != nil && !json.Valid(rec.Result) {
		rec.Result, _ = json.Marshal(string(rec.Result)) // not ours, but to be seen
	}
	return rec, err
}

// A holder is a session whose transaction has the key's advisory lock: a call at
// work on it, or one that has just replayed it.
type holder struct {
	PID         int32    `json:"pid"`
	Application string   `json:"application,omitempty"`
	Client      string   `json:"client,omitempty"`
	State       string   `json:"state,omitempty"`
	Seconds     *float64 `json:"transaction_seconds"` // null: this role may not see it
	Waiting     string   `json:"waiting_for,omitempty"`
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
	return "for " + span(time.Duration(*h.Seconds*float64(time.Second)))
}

// holderColumns are those of a holder.
const holderColumns = `l.pid, coalesce(a.application_name, ''), coalesce(host(a.client_addr), ''), coalesce(a.state, ''),
	extract(epoch from clock_timestamp() - a.xact_start)::float8, coalesce(a.wait_event, '')`

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
	rows, _ := pool.Query(ctx, d.on(recordSQL), id, scope, result)
	rec, err := pgx.CollectExactlyOneRow(rows, scanRecord)
	if errors.Is(err, pgx.ErrNoRows) {
		rec, err = record{Scope: scope, ID: id, State: notFound}, nil
	}
	if len(holders) > 0 && (rec.State == notFound || rec.State == expired) {
		rec.State, rec.Holders = inProgress, holders
	}
	if err == nil && rec.State == notFound {
		err = provesAbsence(ctx, pool, rec)
	}
	return rec, remedied(err)
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
	return holders, remedied(err)
}

// absence is the error that says why there is no record.
func (rec record) absence() error {
	key := rec.key()
	switch rec.State {
	case inProgress:
		effect := "nothing has taken effect yet"
		if rec.CompletedAt != nil {
			effect = "an earlier call took effect at " + moment(*rec.CompletedAt) + ", and its record has expired; this one has not yet"
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
