package idempotency

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// Every statement is a constant, so that it can be read, explained and exchanged by
// itself. None depends on session state.

// settingsSQL frees the key of a client that is gone or frozen: PostgreSQL ends a
// transaction that is silent for too long, and looks once a second, while a
// statement runs, whether the client is still there. One select costs less than
// two SETs, and about as much as none.
const settingsSQL = `
select set_config('idle_in_transaction_session_timeout', $1, true),
	set_config('client_connection_check_interval', '1000', true)`

// claimSQL takes a key that has no row. The unique index decides who gets it;
// the advisory lock only lets a duplicate see, without waiting on the index and
// without an error, that somebody is at work. Its number is mixed with the
// table's oid, so that the same key in two schemas does not meet. PostgreSQL
// frees it with the transaction.
//
// An existing row is found before anything is written: no transaction id, no
// write-ahead log. What it returns is an ownRow.
const claimSQL = `
insert into idempotency_keys (id, scope, purge_after)
select $1::text, $2::text, now() + $4::bigint * interval '1 microsecond'
where pg_try_advisory_xact_lock($3::bigint # 'idempotency_keys'::regclass::oid::bigint)
on conflict (id, scope) do nothing
returning ctid, current_setting('transaction_isolation') = 'serializable'`

// readSQL reads the row of a key that claimSQL, in the same transaction, did
// not get. It is a statement of its own because it needs a newer snapshot: the
// insert can have waited for the row to be committed.
//
// The last condition keeps it from running after a claim that succeeded (only
// that one has a transaction id by then). Without it the read takes a predicate
// lock that makes distinct keys fail each other under SERIALIZABLE.
const readSQL = `
select fingerprint, result, coalesce(origin, ''), expires_at is null, coalesce(expires_at <= clock_timestamp(), false)
from idempotency_keys
where id = $1 and scope = $2 and pg_current_xact_id_if_assigned() is null`

// readInTxSQL is readSQL for a transaction that may have written before. It is
// sent only when the claim failed.
const readInTxSQL = `
select fingerprint, result, coalesce(origin, ''), expires_at is null, coalesce(expires_at <= clock_timestamp(), false)
from idempotency_keys
where id = $1 and scope = $2`

// ownsSQL tells whether the transaction itself is at work on the key, before the
// savepoint: a row without a result is then its own, and not an abandoned one.
const ownsSQL = `
select exists (select from pg_locks
	where locktype = 'advisory' and objsubid = 1 and pid = pg_backend_pid()
		and (classid::bigint << 32 | objid::bigint) = ($1::bigint # 'idempotency_keys'::regclass::oid::bigint))`

// takeOverSQL locks an expired row. PostgreSQL checks the condition once more
// on the row it has locked, so a row that was renewed meanwhile is not returned;
// one that is locked belongs to a call that is taking it over. The claim before
// it may have failed for the advisory lock, which a taker needs too: without it,
// duplicates would wait on the index for as long as its transaction runs.
const takeOverSQL = `
select ctid, current_setting('transaction_isolation') = 'serializable'
from idempotency_keys
where id = $1 and scope = $2 and expires_at <= clock_timestamp()
	and pg_try_advisory_xact_lock($3::bigint # 'idempotency_keys'::regclass::oid::bigint)
for update skip locked`

// recordSQL completes the row that the transaction owns, and fails by a
// division by zero if that is not exactly one row: COMMIT is already on its way
// behind it. Found through the index, or by a range of ctids, the row's page is
// pruned in passing, so that the claims' dead versions of earlier rows make room
// on it; by "ctid =" it is not. Left to a vacuum, they become gaps in old pages,
// which attract later claims, and after a checkpoint each such page is logged in
// whole.
//
// The retention begins at clock_timestamp(): now() is the transaction's start.
// purge_after becomes what claimSQL has set, to the bit, which keeps the update
// out of the indexes (a heap-only tuple); only after a take-over is it new.
const recordSQL = recordHead + ` and ctid >= $3 and ctid <= $3` + recordTail

// recordSerializableSQL finds the row by its ctid alone. A scan of the index, or of
// the page, makes distinct keys conflict under SERIALIZABLE.
const recordSerializableSQL = recordHead + ` and ctid = $3` + recordTail

// Id and scope keep the statement on one shard where the table is distributed.
const recordHead = `
with recorded as (
	update idempotency_keys
	set fingerprint = $4, result = $5, origin = $7, completed_at = clock_timestamp(),
		expires_at = clock_timestamp() + $6::bigint * interval '1 microsecond',
		purge_after = now() + $6::bigint * interval '1 microsecond'
	where id = $1 and scope = $2`

const recordTail = `
	returning 1
)
select 1 / count(*) from recorded`

// settleSQL is a small transactional write. Its COMMIT waits for the write-ahead
// log, and for the synchronous standbys, up to and with every commit that was
// visible to it.
const settleSQL = `select pg_logical_emit_message(true, 'idempotency', '')`

const getSQL = `
select fingerprint, result, coalesce(origin, ''), purge_after, completed_at, expires_at
from idempotency_keys
where id = $1 and scope = $2 and (expires_at is null or expires_at > clock_timestamp())`

// listSQL is one page of a scope, after the id $2. The primary key leads with
// the id: this reads past the rows of all other scopes.
const listSQL = `
select id, fingerprint, result, coalesce(origin, ''), purge_after, completed_at, expires_at
from idempotency_keys
where scope = $1 and id > $2 and (expires_at is null or expires_at > clock_timestamp())
order by id
limit $3`

// lockSQL is the advisory lock of claimSQL.
const lockSQL = `select pg_try_advisory_xact_lock($1::bigint # 'idempotency_keys'::regclass::oid::bigint)`

// deleteSQL passes over a row that a call has locked to take it over, and
// existsSQL then tells such a row from none.
const deleteSQL = `
delete from idempotency_keys
where id = $1 and scope = $2 and ctid = any(array(
	select ctid from idempotency_keys where id = $1 and scope = $2 for update skip locked))`

const existsSQL = `select exists (select from idempotency_keys where id = $1 and scope = $2)`

// purgeSQL deletes one batch, oldest first. The index is on purge_after, which is
// at most one transaction's duration earlier than expires_at. The lock re-checks
// the condition on the newest version of each row, and the delete checks it
// again: a row that was taken over since it was selected stays.
const purgeSQL = `
delete from idempotency_keys
where ctid = any(array(
	select ctid from idempotency_keys
	where purge_after <= now() and expires_at <= now()
	order by purge_after
	limit $1
	for update skip locked))
and expires_at <= now()`

// purgeTurnSQL is for one purge at a time. Locks of two numbers never meet those of
// one, which the keys have.
const purgeTurnSQL = `select pg_try_advisory_xact_lock('idempotency_keys'::regclass::oid::integer, 0)`

// statements are the constants above on the table of one schema.
type statements struct {
	claim, read, readInTx, takeOver string
	owns                            string
	record, recordSerializable      string
	get, list, lock, delete, exists string
	purge, purgeTurn                string
}

func newStatements(cfg Config) statements {
	table := pgx.Identifier{"idempotency_keys"}
	if cfg.Schema != "" {
		table = pgx.Identifier{cfg.Schema, "idempotency_keys"}
	}
	name := table.Sanitize()
	on := strings.NewReplacer(
		"'idempotency_keys'", "'"+strings.ReplaceAll(name, "'", "''")+"'",
		"idempotency_keys", name,
	).Replace
	return statements{
		claim:    on(claimSQL),
		read:     on(readSQL),
		readInTx: on(readInTxSQL),
		owns:     on(ownsSQL),
		takeOver: on(takeOverSQL),
		record:   on(recordSQL),
		get:      on(getSQL),
		list:     on(listSQL),
		lock:     on(lockSQL),
		delete:   on(deleteSQL),
		exists:   on(existsSQL),
		purge:    on(purgeSQL),

		recordSerializable: on(recordSerializableSQL),
		purgeTurn:          on(purgeTurnSQL),
	}
}

// maxServerTimeout is the largest value of a timeout setting of PostgreSQL.
const maxServerTimeout = (1<<31 - 1) * time.Millisecond

// settingsArgs are the arguments of settingsSQL.
func settingsArgs(maxIdle time.Duration) []any {
	return []any{strconv.FormatInt(max(maxIdle, 0).Milliseconds(), 10)} // 0 is no limit
}

// A record is a result as it stands in the table.
type record struct {
	fingerprint Fingerprint
	result      []byte
	origin      string
}

// An ownRow is the row that a transaction has claimed.
type ownRow struct {
	ctid         pgtype.TID
	serializable bool // the transaction is
}

// A finding is what a claim met.
type finding struct {
	state state
	row   ownRow  // claimed
	rec   *record // recorded
}

type state int

const (
	inFlight  state = iota // another transaction has the key, or the row was purged just now
	claimed                // this transaction owns the key's row
	recorded               // there is a result
	expired                // there is a result that can be taken over
	abandoned              // a row without a result was committed: see ErrAbandoned
)

// readClaim reads the answer to claimSQL.
func readClaim(row pgx.Row) (finding, error) {
	var f finding
	err := row.Scan(&f.row.ctid, &f.row.serializable)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return finding{state: inFlight}, nil
	case err != nil:
		return finding{}, err
	}
	f.state = claimed
	return f, nil
}

// readFound reads the answer to readSQL. No row is no answer: the claim has
// succeeded, or the key is in flight, or its row has just been purged. Never
// does a call run without owning a row.
func readFound(row pgx.Row) (finding, error) {
	var (
		rec                  record
		fingerprint          []byte
		incomplete, outdated bool
	)
	err := row.Scan(&fingerprint, &rec.result, &rec.origin, &incomplete, &outdated)
	copy(rec.fingerprint[:], fingerprint)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return finding{state: inFlight}, nil
	case err != nil:
		return finding{}, err
	case incomplete:
		return finding{state: abandoned}, nil
	case outdated:
		return finding{state: expired}, nil
	}
	return finding{state: recorded, rec: &rec}, nil
}

// claimArgs are the arguments of claimSQL; their first two those of readSQL, their
// first three those of takeOverSQL. They are boxed once: a batch would do it
// again for each statement.
func claimArgs(key Key, retention time.Duration) []any {
	return []any{key.ID, key.Scope, key.lockID(), retention.Microseconds()}
}

// recordOf is the statement that records a result in a row.
func (s *statements) recordOf(row ownRow) string {
	if row.serializable {
		return s.recordSerializable
	}
	return s.record
}

// recordArgs are the arguments of recordSQL, after a claim with claimArgs.
func recordArgs(claim []any, row ownRow, rec *record) []any {
	id, scope, retention := claim[0], claim[1], claim[3]
	return []any{id, scope, row.ctid, fingerprintColumn(rec.fingerprint), rec.result, retention, originColumn(rec.origin)}
}

// fingerprintColumn stores the zero fingerprint as null, in no space.
func fingerprintColumn(f Fingerprint) []byte {
	if f == (Fingerprint{}) {
		return nil
	}
	return f[:]
}

// originColumn stores no origin as null.
func originColumn(origin string) *string {
	if origin == "" {
		return nil
	}
	return &origin
}

// SQLSTATEs, from appendix A of the PostgreSQL manual.
const (
	codeSerializationFailure = "40001"
	codeDeadlock             = "40P01"
	codeLockNotAvailable     = "55P03"
	codeUndefinedTable       = "42P01"
	codeInvalidSchema        = "3F000"
	codeUndefinedColumn      = "42703"
	codeNoSuchConstraint     = "42P10"
	codeReadOnly             = "25006"
	codeNotSupported         = "0A000" // serializable on a standby
	codeNoPrivilege          = "42501"
	codeIdleInTransaction    = "25P03"
	codeTransactionTimeout   = "25P04" // since PostgreSQL 17
	codeDivisionByZero       = "22012" // raised by recordSQL
	classIntegrity           = "23"
)

func sqlState(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return ""
}

// conflicted: PostgreSQL rolled the transaction back because of another one,
// and asks for it to be run again.
func conflicted(err error) bool {
	code := sqlState(err)
	return code == codeSerializationFailure || code == codeDeadlock
}

// lostClaim: another transaction was first to the key. Above READ COMMITTED the
// loser of an insert gets 40001, even with "do nothing"; a lock_timeout of the
// role can end a wait on the unique index.
func lostClaim(err error) bool {
	return conflicted(err) || sqlState(err) == codeLockNotAvailable
}

// provesAbort reports whether err, the answer to a COMMIT, proves that nothing
// was committed. Nothing else does: a FATAL error can follow a COMMIT that took
// effect, pgconn.SafeToRetry is true for some that did, and a distributed
// engine can report an ERROR for them.
func provesAbort(err error) bool {
	return errors.Is(err, pgx.ErrTxCommitRollback) || conflicted(err) ||
		strings.HasPrefix(sqlState(err), classIntegrity)
}

// endedForItsTime: PostgreSQL ended the transaction because it took, or was
// silent for, too long. The function's next statement hears of it, or its record.
func endedForItsTime(err error) bool {
	code := sqlState(err)
	return code == codeIdleInTransaction || code == codeTransactionTimeout
}

// lostConnection reports whether err says that the connection is gone. Where no
// COMMIT was sent, nothing of its transaction remains.
func lostConnection(err error) bool {
	// pgx closes the connection of a context that ends, and context errors are
	// net.Errors, but the caller has wanted that.
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return false
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		// A function that took too long will do so again.
		return !endedForItsTime(err) && (pgErr.SeverityUnlocalized == "FATAL" || pgErr.SeverityUnlocalized == "PANIC")
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return false // it was never there
	}
	_, network := errors.AsType[net.Error](err)
	return network || errors.Is(err, pgconn.ErrConnClosed) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

const toThePrimary = "connect to the primary, for example with target_session_attrs=read-write"

// explain wraps an error of one of our own statements with what to do about it.
func explain(doing string, err error) error {
	remedy := ""
	switch sqlState(err) {
	case codeUndefinedTable, codeInvalidSchema:
		remedy = `the table "idempotency_keys" is missing: run migrations.Up, or the command "idempotency migrate up", on this database and schema (Config.Schema, or the search_path)`
	case codeUndefinedColumn, codeNoSuchConstraint:
		remedy = `the table "idempotency_keys" is not of this version: run migrations.Up, or the command "idempotency migrate up"`
	case codeReadOnly:
		remedy = "the server or the transaction is read-only: " + toThePrimary
	case codeNotSupported:
		remedy = "this server cannot do that, as a standby cannot begin a serializable transaction: " + toThePrimary
	case codeNoPrivilege:
		remedy = `the role needs select, insert, update and delete on "idempotency_keys", and usage of its schema`
	default:
		return fmt.Errorf("idempotency: %s: %w", doing, err)
	}
	return fmt.Errorf("idempotency: %s: %s: %w", doing, remedy, err)
}

// explainRecord explains an error of recordSQL.
func explainRecord(err error) error {
	switch {
	case err == nil:
		return nil
	case sqlState(err) == codeDivisionByZero:
		return fmt.Errorf("idempotency: record the result: the function removed or changed the row of its own key: %w", err)
	}
	return explain("record the result", err)
}
