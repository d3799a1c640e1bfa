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
	"github.com/pgidem/idempotency/internal/keytable"
	"github.com/pgidem/idempotency/internal/remedy"
)

// A record is a row of the table, also one that a Store passes over since it has
// expired or has no result.
type record struct {
	Scope       string          `json:"scope"`
	ID          string          `json:"id"`
	State       string          `json:"state"` // done, expired, unfinished, abandoned; in progress, not found
	CreatedAt   *instant        `json:"created_at,omitempty"`
	CompletedAt *instant        `json:"completed_at,omitempty"`
	ExpiresAt   *instant        `json:"expires_at,omitempty"`
	PurgeAfter  *instant        `json:"purge_after,omitempty"` // of one without a result: the claim plus the retention
	Fingerprint string          `json:"fingerprint,omitempty"`
	Origin      string          `json:"origin,omitempty"`
	ResultBytes *int64          `json:"result_bytes"` // null: this role may not read the result
	Result      json.RawMessage `json:"result,omitempty"`
	Holders     []holder        `json:"holders,omitempty"`
	Operation   *operation      `json:"operation,omitempty"` // of an unfinished one, by get
	Cursor      string          `json:"cursor,omitempty"`    // of list

	now, purgeAfter instant
	place           string // purge_after as a timestamp in UTC, as JSON has it under every DateStyle
}

const (
	done       = "done"
	expired    = "expired"
	unfinished = "unfinished"
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
select ` + recordColumns(operations{}.stateSQL(`clock_timestamp()`), `$3::bool`, readable) + `
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
			plain(role), qualified(d.schema, keytable.Name), pgx.Identifier{role}.Sanitize())
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
	if rec.CompletedAt == nil {
		rec.PurgeAfter = &rec.purgeAfter
	} else if rec.ExpiresAt != nil {
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
	PID         int32    `json:"pid"` // 0: a prepared transaction, which no process has
	Application string   `json:"application,omitempty"`
	User        string   `json:"user,omitempty"`
	Client      string   `json:"client,omitempty"` // its address, or [local] for a Unix socket
	State       string   `json:"state,omitempty"`
	Start       *instant `json:"transaction_start"`   // null: this role may not see it
	Seconds     *seconds `json:"transaction_seconds"` // likewise
	Waiting     string   `json:"waiting_for,omitempty"`
	Grant       string   `json:"grant,omitempty"` // what would show the rest to this role
}

// targets are where to scan the holderColumns into.
func (h *holder) targets() []any {
	return []any{&h.PID, &h.Application, &h.User, &h.Client, &h.State, &h.Start, &h.Seconds, &h.Waiting, &h.Grant}
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
	if h.PID == 0 {
		return "a prepared transaction (see pg_prepared_xacts)"
	}
	text := fmt.Sprintf("process %d", h.PID)
	var about []string
	for _, part := range []struct{ name, value string }{{"", h.Application}, {"user ", h.User}, {"client ", h.Client}, {"", h.State}} {
		if part.value != "" {
			about = append(about, part.name+plain(part.value))
		}
	}
	if len(about) > 0 {
		text += " (" + strings.Join(about, ", ") + ")"
	}
	return text + " " + h.since()
}

func (h holder) since() string {
	switch {
	case h.Grant != "":
		return "since a time that this role may not see, like the client and the state (a member of pg_monitor may: " + plain(h.Grant) + ")"
	case h.Seconds == nil || h.Start == nil:
		return "since a time that the server does not tell"
	}
	return "for " + span(time.Duration(float64(*h.Seconds)*float64(time.Second))) + ", since " + h.Start.String()
}

// remedy is how to end it.
func (h holder) remedy() string {
	if h.PID == 0 {
		return "commit prepared or rollback prepared ends it"
	}
	return fmt.Sprintf("end it with select pg_terminate_backend(%d)", h.PID)
}

// holderColumns are those of a holder. Of the sessions of other roles, everybody sees
// the process, the user and the application, and a member of pg_read_all_stats, which
// pg_monitor is, all: PostgreSQL's manual, "The Cumulative Statistics System".
const holderColumns = `coalesce(l.pid, 0), coalesce(a.application_name, ''), coalesce(a.usename::text, ''),
	coalesce(host(a.client_addr), case when a.client_port = -1 then '[local]' end, ''), coalesce(a.state, ''),
	extract(epoch from a.xact_start)::text, (extract(epoch from clock_timestamp() - a.xact_start) * 1000000::numeric)::bigint, coalesce(a.wait_event, ''),
	case when a.pid is not null and a.state is null then 'grant pg_monitor to '::text || quote_ident(current_user::text) else '' end`

// keyLocks are the locks that claims take: a number of 64 bits, of which pg_locks
// shows the two halves. The row of a call in progress is invisible.
const keyLocks = `pg_locks l left join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory' and l.granted and l.objsubid = 1
	and l.database = (select oid from pg_database where datname = current_database())`

// lockNumber is what keylock.ID has made of the key.
const lockNumber = `((l.classid::bigint << 32) | l.objid::bigint) # 'idempotency_keys'::regclass::oid::bigint`

const holderSQL = `
select ` + holderColumns + `
from ` + keyLocks + `
	and ` + lockNumber + ` = $1::bigint`

// ofCalls takes for a call what has, in the transaction with such a lock, also the lock of a
// write to the table, or, as while a procedure asks somebody else, of having read its
// operation.
const ofCalls = `exists (
		select from pg_locks t
		where t.virtualtransaction = l.virtualtransaction and t.locktype = 'relation' and t.granted
			and (t.mode = 'RowExclusiveLock' and t.relation = 'idempotency_keys'::regclass::oid or t.relation = to_regclass('idempotency_operations'::text)::oid))`

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
	var rec record
	err = d.reading(ctx, pool, func(tx pgx.Tx) (err error) {
		rows, _ := tx.Query(ctx, d.on(recordSQL(readable)), id, scope, result)
		rec, err = pgx.CollectExactlyOneRow(rows, scanRecord)
		if err == nil && rec.State == abandoned {
			err = d.findOperation(ctx, tx, &rec)
		}
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		rec, err = record{Scope: scope, ID: id, State: notFound, ResultBytes: new(int64)}, nil
	}
	rec.isHeldBy(holders)
	if err == nil && rec.State == notFound {
		err = provesAbsence(ctx, pool, rec.key())
	}
	return rec, remedy.Of(err, d.schema)
}

// isHeldBy makes it the record of a call in progress, if there is one. Others that have the
// lock of a key whose record is done read that.
func (rec *record) isHeldBy(holders []holder) bool {
	if len(holders) == 0 || rec.State == done || rec.State == abandoned {
		return false
	}
	rec.State, rec.Holders = inProgress, holders
	return true
}

const standbySQL = `select pg_is_in_recovery()`

// provesAbsence is an error on a standby: it can be behind, and has the locks of
// no call in progress.
func provesAbsence(ctx context.Context, pool *pgxpool.Pool, key string) error {
	var standby bool
	if err := pool.QueryRow(ctx, standbySQL).Scan(&standby); err != nil || !standby {
		return err
	}
	return fmt.Errorf("there is no record of %s here, but this server is a standby, which can be behind and knows of no call in progress: ask the primary, for example with target_session_attrs=read-write", key)
}

func (rec record) key() string {
	return fmt.Sprintf("key %s of scope %s", plain(rec.ID), plain(rec.Scope))
}

func (d *database) holders(ctx context.Context, pool *pgxpool.Pool, scope, id string) ([]holder, error) {
	rows, _ := pool.Query(ctx, d.on(holderSQL), keylock.ID(scope, id))
	holders, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (h holder, err error) {
		err = row.Scan(h.targets()...)
		return h, err
	})
	return holders, remedy.Of(err, d.schema)
}

// absence is the error that says why there is no record.
func (rec record) absence() error {
	key := rec.key()
	switch rec.State {
	case inProgress:
		effect := "nothing has taken effect yet"
		switch {
		case rec.Operation != nil:
			effect = rec.Operation.progress()
		case rec.PurgeAfter != nil:
			effect = "what its procedure has done stays done: get tells what"
		case rec.CompletedAt != nil:
			effect = "an earlier call took effect at " + rec.CompletedAt.String() + ", and its record has expired; this one has not yet"
		}
		if rec.Holders[0].replicating() {
			return exitError{exitInProgress, fmt.Sprintf("%s is being committed: %s: it waits for a synchronous standby (see pg_stat_replication): do not end it, that would show a commit that a failover can lose",
				key, rec.Holders[0])}
		}
		return exitError{exitInProgress, fmt.Sprintf("%s is in progress: %s: %s: ask again, or %s",
			key, rec.Holders[0], effect, rec.Holders[0].remedy())}
	case notFound:
		return exitError{exitNotFound, "no record of " + key + ": no call with it has taken effect, or its record expired and was purged"}
	}
	return nil
}
