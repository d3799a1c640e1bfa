package idempotency

import (
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/pgidem/idempotency/internal/bytea"
	"github.com/pgidem/idempotency/internal/keytable"
	"github.com/pgidem/idempotency/internal/remedy"
)

// Every statement of a call is a constant of this file, so that it can be read
// and explained by itself; newStatements puts the name of the table in. Rules that
// hold for all of them:
//
//   - None depends on session state, so a pooler may stand in between.
//   - Each operator and function takes exactly the types that it has in pg_catalog,
//     hence the casts. PostgreSQL prefers an exact match to an earlier schema: an
//     operator that somebody else has made for other types, in any schema of the
//     search_path, is never the one that runs.
//   - No value comes back in a form that depends on a setting of the session:
//     times are numbers, and a bytea is read by internal/bytea.
//   - No plan depends on statistics. A connection that plans a statement while
//     the table is small would keep a sequential scan when it has grown. An insert
//     with "on conflict" always uses the index; the others are planned with
//     enable_seqscan off, which they restore before the caller's function runs.

// beginningSQL is the transaction's start in microseconds, which tells it from
// every other transaction of the session.
const beginningSQL = `(extract(epoch from now()) * 1000000::numeric)::bigint`

// sameTableSQL is true unless the session's search_path leads to another table than
// the Store's. It is evaluated with each statement: other than a constant of type
// regclass, to_regclass raises no error where the path leads to no table.
const sameTableSQL = `coalesce(to_regclass('search_path idempotency_keys'::text)::oid = 'idempotency_keys'::regclass::oid, true)`

// lockNumberSQL is the key's place among the advisory locks. It is mixed with the
// table's oid, so that the same key in two schemas does not meet.
const lockNumberSQL = `$3::bigint # 'idempotency_keys'::regclass::oid::bigint`

// keepSeqscanSQL and seqscanOffSQL switch sequential scans off for the statements
// that follow, until restoreSeqscanSQL; a setting of our own keeps the former value.
// The order is certain in one CASE, in one AND, and in one target list, but not
// between the conditions of a WHERE, which the planner sorts by their cost.
const (
	keepSeqscanSQL    = `set_config('idempotency.seqscan'::text, current_setting('enable_seqscan'::text), true)`
	seqscanOffSQL     = `set_config('enable_seqscan'::text, 'off'::text, true)`
	restoreSeqscanSQL = `set_config('enable_seqscan'::text, current_setting('idempotency.seqscan'::text), true)`
)

// These two free the key of a client that is gone or frozen: PostgreSQL ends a
// transaction that is silent for too long ($5), and looks once a second ($6), while
// a statement runs, whether the client is still there. Null leaves the second
// setting at the session's default, for servers that refuse another value.
const (
	idleTimeoutSQL   = `set_config('idle_in_transaction_session_timeout'::text, $5::text, true)`
	checkIntervalSQL = `set_config('client_connection_check_interval'::text, $6::text, true)`
)

// claimSQL takes a key that has no row. The unique index decides who gets it;
// the advisory lock only lets a duplicate see, without waiting on the index and
// without an error, that somebody is at work. PostgreSQL frees it with the
// transaction.
//
// An existing row is found before anything is written: no transaction id, no
// write-ahead log. readSQL has to follow in the same batch, since it restores
// enable_seqscan. A claim that succeeds could restore it, but then the read would be
// planned with sequential scans.
const claimSQL = claimHead + `
where case when ` + keepSeqscanSQL + ` is not null then
	` + seqscanOffSQL + ` is not null
	and ` + idleTimeoutSQL + ` is not null
	and ` + checkIntervalSQL + ` is not null
	and pg_try_advisory_xact_lock(` + lockNumberSQL + `) end` + claimTail + claimedSQL + ` is not null and ` + sameTableSQL

// claimInTxSQL is claimSQL for a caller's transaction, whose settings stay as they are.
const claimInTxSQL = claimHead + `
where pg_try_advisory_xact_lock(` + lockNumberSQL + `)` + claimTail + sameTableSQL

const claimHead = `
insert into idempotency_keys (id, scope, purge_after)
select $1::text, $2::text, now() + $4::interval`

const claimTail = `
on conflict (id, scope) do nothing
returning ` + claimColumns

// claimColumns are read by readClaim, with sameTableSQL.
const claimColumns = beginningSQL + `, 'idempotency_keys'::regclass::oid, `

// claimedSQL tells readSQL that the claim before it has succeeded. The value is the
// transaction's id: anybody can set the setting beforehand, for a session, a role or the
// database, and nobody to an id that is yet to be given.
const claimedSQL = `set_config('idempotency.claimed'::text, pg_current_xact_id()::text, true)`

// readSQL reads the row of a key that claimSQL, in the same transaction, did
// not get. It is a statement of its own because it needs a newer snapshot: the
// insert can have waited for the row to be committed.
//
// Its last condition is evaluated once, before any row is read, also if there is
// none. It restores enable_seqscan, and keeps the read from running after a claim that
// succeeded: it would take a predicate lock that makes distinct keys fail each other
// under SERIALIZABLE. (That the transaction has an id by then would not prove that
// the claim succeeded: a trigger of the table can have written something.)
const readSQL = readHead + `
	and (select ` + restoreSeqscanSQL + ` is not null
		and (current_setting('idempotency.claimed'::text, true) = pg_current_xact_id_if_assigned()::text) is not true)`

// readInTxSQL is readSQL for a caller's transaction. It is sent only when the claim
// failed, behind planSQL.
const readInTxSQL = readHead + `
	and (select ` + restoreSeqscanSQL + ` is not null)`

const readHead = `
select fingerprint, result, coalesce(origin, ''::text), expires_at is null, coalesce(expires_at <= clock_timestamp(), false), ` + sameTableSQL + `
from idempotency_keys
where id = $1::text and scope = $2::text`

// planSQL lets the statement that follows in the same batch be planned without
// sequential scans. That statement restores the setting.
const planSQL = `select ` + keepSeqscanSQL + `, ` + seqscanOffSQL

// ownsSQL tells whether the transaction itself is at work on the key, before the
// savepoint: a row without a result is then its own, and not an abandoned one.
const ownsSQL = `
select exists (select from pg_catalog.pg_locks
	where locktype = 'advisory'::text and objsubid = 1::smallint and pid = pg_backend_pid()
		and (classid::bigint << 32 | objid::bigint) = ($1::bigint # 'idempotency_keys'::regclass::oid::bigint))`

// takeOverSQL makes an expired row the transaction's own: it locks the row and
// clears the result, so that a function which then sends COMMIT as SQL leaves an
// abandoned row, as after a claim. PostgreSQL checks the condition once more on
// the row that it has locked, so a row that was renewed meanwhile is not taken;
// one that is locked belongs to a call that is taking it over.
//
// The claim before it may have failed for the advisory lock. A call that takes
// over has to hold that lock too, or duplicates would wait on the index for as
// long as its transaction runs.
const takeOverSQL = `
update idempotency_keys
set fingerprint = null, result = null, origin = null, completed_at = null, expires_at = null,
	purge_after = now() + $4::interval
where id = $1::text and scope = $2::text and ctid = any(array(
	select ctid from idempotency_keys
	where id = $1::text and scope = $2::text and expires_at <= clock_timestamp()
		and pg_try_advisory_xact_lock(` + lockNumberSQL + `)
	for update skip locked))
	and expires_at <= clock_timestamp()
returning ` + claimColumns + restoreSeqscanSQL + ` is not null and ` + sameTableSQL

// recordSQL completes the row that the transaction has claimed, and fails unless
// exactly what was given is stored in it: COMMIT is already on its way behind it.
// It is an insert that meets the claim's row, because such a statement always finds
// the row through the unique index, whatever the statistics say, and does not make
// distinct keys conflict under SERIALIZABLE, as a select or an update by key would.
// It costs about 56 bytes of write-ahead log more than an update, and policies and
// triggers of an insert a second time.
//
// A row that is not there any more is inserted without a result, and so found not
// to be what was given.
//
// The retention begins at clock_timestamp(): now() is the transaction's start.
// purge_after becomes what the claim has set, to the bit, which keeps the update
// out of the indexes (a heap-only tuple).
const recordSQL = `
with recorded as (
	insert into idempotency_keys (id, scope, purge_after, completed_at)
	values ($1::text, $2::text, now() + $3::interval, clock_timestamp())
	on conflict (id, scope) do update
	set fingerprint = $4::bytea, result = $5::bytea, origin = $6::text, completed_at = excluded.completed_at,
		expires_at = excluded.completed_at + $3::interval, purge_after = excluded.purge_after
	returning fingerprint is not distinct from $4::bytea and result = $5::bytea and origin is not distinct from $6::text
		and expires_at = completed_at + $3::interval and purge_after = now() + $3::interval as same
)
select (case
	when ` + beginningSQL + ` <> $7::bigint then '` + sayTransactionEnded + `'
	when 'idempotency_keys'::regclass::oid <> $8::oid then '` + sayTableReplaced + `'
	when (select same from recorded) then '1'
	else '` + sayRecordChanged + `'
end)::integer`

// What PostgreSQL says is no integer when recordSQL fails: with it, the cause gets
// into the error and into the server's log. explainRecord looks for them.
const (
	sayTransactionEnded = `idempotency: the function has ended the transaction of its claim`
	sayTableReplaced    = `idempotency: the table is not the one of the claim`
	sayRecordChanged    = `idempotency: the record is not in the table as it was given`
)

// aheadSQL, freeReadSQL and guardSQL go before an operation that is one statement, in one
// batch with it: see shot.go. What is set in the first holds until the batch ends.
const aheadSQL = `select ` + keepSeqscanSQL + `, ` + seqscanOffSQL + `, set_config('client_connection_check_interval'::text, $1::text, true)`

// freeReadSQL is readSQL before the guard. Under SERIALIZABLE it does not look: to have
// looked for a row that is not there makes distinct keys fail each other.
const freeReadSQL = readHead + `
	and (select current_setting('transaction_isolation'::text) <> 'serializable'::text)`

// guardSQL fails unless the key is free, so that the statement behind it is not executed:
// what is in a batch cannot be left out in another way. It takes the key's lock before it
// looks, and looks before the statement runs; the unique index decides all the same.
const guardSQL = `
select (case
	when ` + restoreSeqscanSQL + ` is null then ''
	when current_setting('transaction_isolation'::text) = 'serializable'::text then '` + saySerializable + `'
	when not ` + sameTableSQL + ` then '` + sayElsewhere + `'
	when not pg_try_advisory_xact_lock(` + lockNumberSQL + `) then '` + sayTaken + `'
	when exists (select from idempotency_keys where id = $1::text and scope = $2::text) then '` + sayTaken + `'
	else '1'
end)::integer`

// strictGuardSQL is guardSQL for SERIALIZABLE. It claims the key, as claimSQL does, which
// looks at nothing that other keys have in common.
const strictGuardSQL = `
with claim as (
	insert into idempotency_keys (id, scope, purge_after)
	select $1::text, $2::text, now() + $4::interval
	where pg_try_advisory_xact_lock(` + lockNumberSQL + `)
	on conflict (id, scope) do nothing
	returning ` + sameTableSQL + ` as same
)
select (case
	when ` + restoreSeqscanSQL + ` is null then ''
	when (select same from claim) then '1'
	when (select not same from claim) then '` + sayElsewhere + `'
	else '` + sayTaken + `'
end)::integer`

// effectSQL is an operation that is one statement with its record: its rows become JSON,
// which is stored, and compared with what is stored. :names are replaced by newEffect.
// An operation that returned no row, or too much, or what cannot be read, fails here, and
// runs again by itself, to say so.
const effectSQL = `with idempotency_effect:alias as materialized (
:statement
), idempotency_value as materialized (
	select (case
		when value is null then 'idempotency: the statement has returned no row'
		when octet_length(convert_to(value, 'UTF8'::name)) > :limit::integer then 'idempotency: the result is too large'
		when not readable then 'idempotency: the result has a value that cannot be read'
		else '1'
	end)::integer as fits, convert_to(value, 'UTF8'::name) as result
	from :value
), idempotency_record as (
	insert into :table (id, scope, purge_after, fingerprint, result, origin, completed_at, expires_at)
	select :id::text, :scope::text, now() + :retention::interval, :fingerprint::bytea, result, :origin::text, at, at + :retention::interval
	from (select result, clock_timestamp() as at from idempotency_value where fits = 1 offset 0) v:conflict
	returning result, fingerprint is not distinct from :fingerprint::bytea and origin is not distinct from :origin::text
		and expires_at = completed_at + :retention::interval and purge_after = now() + :retention::interval as same
)
select (case
	when (select r.same and r.result = v.result from idempotency_record r, idempotency_value v) then '1'
	else '` + sayRecordChanged + `'
end)::integer, (select result from idempotency_record)`

// The parts of effectSQL. A second row of a statement that is to have one meets the first
// on the unique index.
const (
	oneValueSQL  = `(values (1)) one left join (select coalesce(pg_catalog.to_json(:row), 'null'::json)::text as value, :readable as readable from idempotency_effect idempotency_row) value on true`
	manyValueSQL = `(select coalesce(pg_catalog.json_agg(:row), '[]'::json)::text as value, coalesce(bool_and(:readable), true) as readable from idempotency_effect idempotency_row) value`

	strictConflictSQL = `
	on conflict (id, scope) do update set fingerprint = excluded.fingerprint, result = excluded.result, origin = excluded.origin,
		completed_at = excluded.completed_at, expires_at = excluded.expires_at, purge_after = excluded.purge_after`
)

// aloneSQL is an operation that is one statement in a transaction that has claimed its
// key: how many rows it has returned, and their JSON with its size. One that is too large
// is not sent.
const aloneSQL = `with idempotency_effect:alias as materialized (
:statement
), idempotency_value as materialized (
	select convert_to(value, 'UTF8'::name) as result from :value limit 1::bigint
)
select (select count(*) from idempotency_effect), coalesce((select octet_length(result) from idempotency_value), 0),
	(select result from idempotency_value where octet_length(result) <= :max::bigint)`

// What PostgreSQL says is no integer when guardSQL fails.
const (
	sayTaken        = `idempotency: the key was called before, or is in progress: this call goes on without an error`
	saySerializable = `idempotency: the transaction is SERIALIZABLE: this call goes on by another guard, without an error`
	sayElsewhere    = `idempotency: the search_path leads to another table`
)

// roleSQL is sent before recordSQL to name the role in its error: a function can
// have changed it, as "set local role" does.
const roleSQL = `select current_user::text`

// confirmSQL is a small transactional write. Its COMMIT waits for the write-ahead
// log, and for the synchronous standbys, up to and with every commit that was
// visible to it.
const confirmSQL = `select pg_logical_emit_message(true, 'idempotency'::text, ''::text)`

// knownSQL is readSQL for a key of which this process knows that it was recorded. It
// is sent behind prepareSQL, without a transaction around the two. A proxy may send
// them to a standby, where the row can be one that was deleted before the call: there,
// the answer is no row, as for a key that has no live record.
const knownSQL = `
select fingerprint, result, coalesce(origin, ''::text), false, false, true
from idempotency_keys
where id = $1::text and scope = $2::text and expires_at > clock_timestamp() and (select not pg_is_in_recovery())`

// getSQL is sent behind prepareSQL.
const getSQL = `
select ` + recordColumns + `
from idempotency_keys
where id = $1::text and scope = $2::text and (expires_at is null or expires_at > clock_timestamp())`

// listSQL is one page of a scope, after the id $2. The primary key leads with
// the id: this reads past the rows of all other scopes. It is sent behind prepareSQL.
const listSQL = `
select ` + recordColumns + `, id
from idempotency_keys
where scope = $1::text and id > $2::text and (expires_at is null or expires_at > clock_timestamp())
order by id
limit $3::bigint`

// recordColumns are read by scanRecord. Times are microseconds since 1970, of the
// years 1 to 9999: what is beyond, as infinity, is the end of them.
const recordColumns = `fingerprint, result, coalesce(origin, ''::text), expires_at is not null,
	` + timeHead + `purge_after` + timeTail + `, ` + timeHead + `completed_at` + timeTail + `, ` + timeHead + `expires_at` + timeTail

const (
	timeHead = `(extract(epoch from least(greatest(`
	timeTail = `, '0001-01-01 00:00:00+00'::timestamptz), '9999-12-31 00:00:00+00'::timestamptz)) * 1000000::numeric)::bigint`
)

// prepareSQL is the first statement of a transaction in which only statements of
// ours follow.
const prepareSQL = `select ` + seqscanOffSQL + ` is not null and ` + sameTableSQL

// prepareChangeSQL is prepareSQL for one that changes something: a process that
// freezes must not keep what it has locked. What has no statistics would be sorted,
// or collected in a bitmap, as a whole before its first row can be deleted.
const prepareChangeSQL = `
select set_config('idle_in_transaction_session_timeout'::text, $1::text, true) is not null
	and set_config('client_connection_check_interval'::text, $2::text, true) is not null
	and ` + seqscanOffSQL + ` is not null
	and set_config('enable_bitmapscan'::text, 'off'::text, true) is not null
	and set_config('enable_sort'::text, 'off'::text, true) is not null
	and ` + sameTableSQL

// lockSQL is the advisory lock of claimSQL.
const lockSQL = `select pg_try_advisory_xact_lock($1::bigint # 'idempotency_keys'::regclass::oid::bigint)`

// lockRowSQL fails where another transaction has locked the row.
const lockRowSQL = `select from idempotency_keys where id = $1::text and scope = $2::text for update nowait`

// deleteSQL passes over a row that a call has locked to take it over, and
// existsSQL then tells such a row from none.
const deleteSQL = `
delete from idempotency_keys
where id = $1::text and scope = $2::text and ctid = any(array(
	select ctid from idempotency_keys where id = $1::text and scope = $2::text for update skip locked))
returning expires_at is not null`

const existsSQL = `select exists (select from idempotency_keys where id = $1::text and scope = $2::text)`

// purgeSQL deletes one batch, oldest first. The index is on purge_after, which is
// at most one transaction's duration earlier than expires_at. The lock re-checks
// the condition on the newest version of each row, and the delete checks it
// again: a row that was taken over since it was selected stays.
//
// A batch begins where the one before it ended, $2 after 1970, and the first one, with
// null, at the beginning: as long as some transaction can see what was deleted, an index
// scan from the beginning reads all of it again.
//
// In a partitioned table a ctid is one of its partition: without tableoid the
// delete would also find rows of other partitions, and wait for those that are
// locked.
const purgeSQL = `
with old as materialized (
	select tableoid as part, ctid as place from idempotency_keys
	where purge_after >= coalesce('epoch'::timestamptz + $2::interval, '-infinity'::timestamptz) and purge_after <= now() and expires_at <= now()
	order by purge_after
	limit $1::bigint
	for update skip locked
)
delete from idempotency_keys
where ctid = any(array(select place from old)) and (tableoid, ctid) in (select part, place from old)
	and expires_at <= now()
returning case when isfinite(purge_after) then (extract(epoch from purge_after) * 1000000::numeric)::bigint end`

// lockExpiredSQL locks one of the rows that purgeSQL would delete.
const lockExpiredSQL = `
select from idempotency_keys
where purge_after <= now() and expires_at <= now()
order by purge_after
limit 1::bigint
for update skip locked`

// expiredSQL is the place of a row that purgeSQL would delete, if it may lock it.
const expiredSQL = `
select tableoid::text, ctid::text from idempotency_keys
where purge_after <= now() and expires_at <= now()
order by purge_after
limit 1::bigint`

// lockAtSQL locks the row of a place, with an error where it is locked already. A row that
// a policy does not let this role lock is no row. existsAtSQL tells it from one that has
// gone meanwhile.
const (
	lockAtSQL   = `select from idempotency_keys where ` + atSQL + ` for update nowait`
	existsAtSQL = `select exists (select from idempotency_keys where ` + atSQL + `)`

	atSQL = `tableoid = $1::text::oid and ctid = $2::text::tid and purge_after <= now() and expires_at <= now()`
)

// purgeTurnSQL is for one purge at a time. Locks of two numbers never meet those of
// one, which the keys have.
const purgeTurnSQL = `select pg_try_advisory_xact_lock('idempotency_keys'::regclass::oid::integer, 0)`

// statements are the constants above on the table of one schema.
type statements struct {
	schema string // empty: wherever each session's search_path leads
	table  string // the table's name, quoted

	claim, read                 string
	claimInTx, readInTx, owns   string
	takeOver, record, confirm   string
	prepare, known, get, list   string
	ahead, freeRead             named
	guard, strictGuard          named
	prepareChange, lock, delete string
	lockRow                     string
	expired, lockExpired        string
	lockAt, existsAt            string
	exists, purge, purgeTurn    string

	journal journalStatements
	effects effects // by the texts of the callers

	// distributed: by Citus, so that some of the statements are those of citus.go, and
	// these are there as well.
	distributed               bool
	here, hereInTx, stillHere string
	look, claimFree           string

	// missing: PostgreSQL has said that there is no such table. See table.
	missing atomic.Bool
}

// newStatements returns the statements on the table of a schema. A configured
// schema is the caller's choice, wherever a search_path leads.
func newStatements(schema string, configured, distributed bool) *statements {
	named := func(table string) string {
		if schema == "" {
			return pgx.Identifier{table}.Sanitize()
		}
		return pgx.Identifier{schema, table}.Sanitize()
	}
	table, operations := named("idempotency_keys"), named("idempotency_operations")
	literal := keytable.Literal(table)
	path := "'idempotency_keys'"
	if configured {
		path = literal
	}
	on := strings.NewReplacer(
		"'search_path idempotency_keys'", path,
		"'idempotency_keys'", literal,
		"idempotency_keys", table,
		"idempotency_operations", operations,
	).Replace
	sql := &statements{
		schema: schema,
		table:  table,

		claim:         on(claimSQL),
		read:          on(readSQL),
		claimInTx:     on(claimInTxSQL),
		readInTx:      on(readInTxSQL),
		owns:          on(ownsSQL),
		takeOver:      on(takeOverSQL),
		record:        on(recordSQL),
		confirm:       confirmSQL,
		prepare:       on(prepareSQL),
		known:         on(knownSQL),
		get:           on(getSQL),
		list:          on(listSQL),
		prepareChange: on(prepareChangeSQL),
		lock:          on(lockSQL),
		lockRow:       on(lockRowSQL),
		delete:        on(deleteSQL),
		exists:        on(existsSQL),
		purge:         on(purgeSQL),
		expired:       on(expiredSQL),
		lockExpired:   on(lockExpiredSQL),
		purgeTurn:     on(purgeTurnSQL),

		lockAt:   on(lockAtSQL),
		existsAt: on(existsAtSQL),

		journal: newJournalStatements(on),

		ahead:       newNamed(on(aheadSQL)),
		freeRead:    newNamed(on(freeReadSQL)),
		guard:       newNamed(on(guardSQL)),
		strictGuard: newNamed(on(strictGuardSQL)),
	}
	if distributed {
		sql.distribute(on)
	}
	return sql
}

// maxServerTimeout is the largest value of a timeout setting of PostgreSQL.
const maxServerTimeout = (1<<31 - 1) * time.Millisecond

// idleTimeout is maxIdle as PostgreSQL has it, where 0 is no limit.
func idleTimeout(maxIdle time.Duration) string {
	return strconv.FormatInt(max(maxIdle, 0).Milliseconds(), 10)
}

// maxIdleWith is Config.MaxIdle for a transaction that holds a turn, and sends nothing while
// its holder pauses or works elsewhere, for as long as silence.
func (s *Store) maxIdleWith(silence time.Duration) time.Duration {
	if s.cfg.MaxIdle < 0 { // no limit
		return s.cfg.MaxIdle
	}
	return min(s.cfg.MaxIdle+silence, maxServerTimeout)
}

// interval is d, to the microsecond as PostgreSQL has it. As a time.Duration it would
// be boxed anew for each statement.
func interval(d time.Duration) pgtype.Interval {
	return pgtype.Interval{Microseconds: d.Microseconds(), Valid: true}
}

// checkInterval is how often, in milliseconds, PostgreSQL looks whether the client of
// a running statement is still there. Nil leaves the session's default.
func (s *Store) checkInterval() any {
	if s.unwatched.Load() {
		return nil
	}
	return "1000"
}

// adapt reports whether a statement of ours that failed with err is worth sending
// once more, because the table may have moved, or without a setting that some servers
// refuse. again: this is the second failure, so what was changed did not help.
func (s *Store) adapt(err error, again bool) bool {
	switch {
	case remedy.Missing(err, "idempotency_keys"):
		return !again && s.table.missed()
	case remedy.RefusesSetting(err, "client_connection_check_interval"):
		return s.unwatched.CompareAndSwap(again, !again) && !again
	}
	return false
}

// keyArgs are what the statements of one call are sent with: id, scope, lock
// number, retention, and the two timeouts ($1 to $6 of claimSQL). They are boxed
// once: a batch would do it again for each statement.
type keyArgs []any

func (s *Store) keyArgs(key Key) keyArgs {
	args := make(keyArgs, 0, 6+8) // with room for those of the record
	return append(args, key.ID, key.Scope, key.lockID(), s.retention, s.idleTimeout, s.checkInterval())
}

func (a keyArgs) claim() []any     { return a[:6:6] } // of claimSQL
func (a keyArgs) claimInTx() []any { return a[:4:4] } // of claimInTxSQL
func (a keyArgs) read() []any      { return a[:2:2] } // of readSQL and readInTxSQL
func (a keyArgs) takeOver() []any  { return a[:4:4] } // of takeOverSQL

// record has the arguments of recordSQL.
func (a keyArgs) record(c claim, out *answer) []any {
	id, scope, retention := a[0], a[1], a[3]
	return append(a[6:6], id, scope, retention, fingerprintColumn(&out.fingerprint), out.result, originColumn(out.origin), c.began, c.table)
}

// An answer is the result of an operation as it stands in the table, with the
// fingerprint of the request and the origin of the call that made it.
type answer struct {
	fingerprint Fingerprint
	result      []byte
	origin      string
}

// A claim tells the transaction and the table in which a row was claimed, so that
// the record can find out whether it is still the same.
type claim struct {
	began int64  // beginningSQL
	table uint32 // oid
}

// A finding is what a claim met.
type finding struct {
	state  state
	claim  claim   // claimed
	answer *answer // recorded
	seen   bool    // inFlight: there is a row, which has expired

	// elsewhere: the session's search_path leads to another table.
	elsewhere bool
}

type state int

const (
	inFlight  state = iota // another transaction has the key, or the row was purged just now
	claimed                // this transaction owns the key's row
	recorded               // there is a result
	expired                // there is a result that can be taken over
	abandoned              // a row without a result was committed: see ErrAbandoned
)

// readClaim reads the answer to claimSQL and takeOverSQL.
func readClaim(row pgx.Row) (finding, error) {
	var got struct { // of one piece, so that it is allocated at once
		claim claim
		same  bool
	}
	err := row.Scan(&got.claim.began, &got.claim.table, &got.same)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return finding{state: inFlight}, nil
	case err != nil:
		return finding{}, err
	}
	return finding{state: claimed, claim: got.claim, elsewhere: !got.same}, nil
}

// readFound reads the answer to readSQL. No row is no answer: the claim has
// succeeded, or the key is in flight, or its row has just been purged. Never
// does a call run without owning a row.
func readFound(row pgx.Row) (finding, error) {
	var found struct { // of one piece, so that it is allocated at once
		answer                     answer
		fingerprint, result        bytea.Bytes
		incomplete, outdated, same bool
	}
	err := row.Scan(&found.fingerprint, &found.result, &found.answer.origin, &found.incomplete, &found.outdated, &found.same)
	copy(found.answer.fingerprint[:], found.fingerprint)
	found.answer.result = found.result
	f := finding{elsewhere: !found.same}
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return finding{state: inFlight}, nil
	case err != nil:
		return finding{}, err
	case found.incomplete:
		f.state = abandoned
	case found.outdated:
		f.state = expired
	default:
		f.state, f.answer = recorded, &found.answer
	}
	return f, nil
}

// fingerprintColumn stores the zero fingerprint as null, in no space.
func fingerprintColumn(f *Fingerprint) []byte {
	if *f == (Fingerprint{}) {
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
