package idempotency

import (
	"context"
	"errors"
	"hash/fnv"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/pgidem/idempotency/internal/bytea"
)

// The statements of postgres.go and journal.go where Citus distributes the table, by scope
// or with its schema. A client talks to one node, the coordinator of its transaction, and
// the rows of a key are on one other node, which the scope tells. So:
//
//   - Each statement on the table names id and scope, and runs on the key's node as a
//     whole. Only what works at many keys at once goes to several nodes. A ctid alone
//     would be the place of a row on each of them.
//   - The key's lock is taken on the key's node too, where duplicates meet whichever node
//     they talk to. The number of the lock is made here: the table's oid differs from
//     node to node.
//   - A claim is an "insert ... values", which one node can do alone. An "insert ... select"
//     would go through the coordinator, and commit in two phases.
//   - What changes rows has no function in SET, RETURNING or WHERE but those that Citus
//     takes: none that is volatile, and in SET of an upsert and in RETURNING none but the
//     immutable ones. What is set to the time is set in VALUES, or to statement_timestamp():
//     Citus evaluates them on the coordinator.
//   - What belongs to the session (its transaction, search_path, settings) is asked of the
//     coordinator, in a statement without a table of its own: hereSQL and stillHereSQL.
//
// There is no need to switch sequential scans off: for a statement that it sends on, Citus
// keeps no plan of the node that runs it.

// isDistributedSQL is asked only where Citus is loaded: elsewhere there is no such catalog.
const isDistributedSQL = `
select to_regclass($1::text) is not null, exists (select from pg_catalog.pg_dist_partition where logicalrelid::oid = to_regclass($1::text)::oid)`

func isDistributed(ctx context.Context, q querier, table string) (exists, distributed bool, err error) {
	err = q.QueryRow(ctx, isDistributedSQL, table).Scan(&exists, &distributed)
	return exists, distributed, err
}

// tableNumberSQL is in the place of the table's oid.
func tableNumberSQL(table string) string {
	sum := fnv.New32a()
	sum.Write([]byte(table))
	return "'" + strconv.FormatUint(uint64(sum.Sum32()), 10) + "'::oid"
}

// hereSQL comes first in a transaction. It returns what tells the transaction from others,
// as claimColumns do, and whether it can write, and sets what claimSQL sets.
const hereSQL = hereInTxSQL + `
	and set_config('idle_in_transaction_session_timeout'::text, $1::text, true) is not null
	and set_config('client_connection_check_interval'::text, $2::text, true) is not null`

// hereInTxSQL is hereSQL for a caller's transaction, whose settings stay as they are.
const hereInTxSQL = `select ` + claimColumns + `current_setting('transaction_read_only'::text) = 'off'::text, ` + sameTableSQL

// stillHereSQL goes before each statement that records something, and fails as recordSQL
// does.
const stillHereSQL = `
select (case
	when ` + beginningSQL + ` <> $1::bigint then '` + sayTransactionEnded + `'
	when 'idempotency_keys'::regclass::oid <> $2::oid then '` + sayTableReplaced + `'
	else '1'
end)::integer`

// lookSQL tries the key's lock and reads its row, in the place of claimSQL and readSQL. The
// aggregates make one row in any case, on the node that has the key's rows, so that it is
// there that the lock is tried.
//
// The row is as it was before the lock was got: another call can have recorded its result
// in between. claimFreeSQL and takeOverKnownSQL find that out.
const lookSQL = `
select pg_try_advisory_xact_lock(` + lockNumberSQL + `), count(*) > 0::bigint,
	(pg_catalog.array_agg(fingerprint))[1], (pg_catalog.array_agg(result))[1], coalesce((pg_catalog.array_agg(origin))[1], ''::text),
	coalesce(bool_or(expires_at is null), false), coalesce(bool_or(expires_at <= clock_timestamp()), false),
	coalesce((pg_catalog.array_agg(` + timeHead + `expires_at` + timeTail + `))[1], 0::bigint)
from idempotency_keys
where id = $1::text and scope = $2::text`

// claimFreeSQL takes a key whose lock this transaction has, and that has no row.
const claimFreeSQL = `
insert into idempotency_keys (id, scope, purge_after)
values ($1::text, $2::text, now() + $3::interval)
on conflict (id, scope) do nothing
returning 1`

// takeOverKnownSQL is takeOverSQL for a row whose lock this transaction has, and that has
// expired at $4 after 1970. One that was renewed since has another time. It passes over a
// row that is locked, as by a purge that is about to delete it.
const takeOverKnownSQL = `
update idempotency_keys
set fingerprint = null, result = null, origin = null, completed_at = null, expires_at = null,
	purge_after = now() + $3::interval
where id = $1::text and scope = $2::text and expires_at = 'epoch'::timestamptz + $4::interval and ctid = any(array(
	select ctid from idempotency_keys where id = $1::text and scope = $2::text for update skip locked))
returning 1`

// recordThereSQL is recordSQL, behind stillHereSQL. The row that is inserted where there is
// none has no result either, and is so found not to be what was given.
const recordThereSQL = `
with recorded as (
	insert into idempotency_keys (id, scope, purge_after, completed_at, expires_at)
	values ($1::text, $2::text, now() + $3::interval, statement_timestamp(), statement_timestamp() + $3::interval)
	on conflict (id, scope) do update
	set fingerprint = $4::bytea, result = $5::bytea, origin = $6::text, completed_at = excluded.completed_at,
		expires_at = excluded.expires_at, purge_after = excluded.purge_after
	returning fingerprint is not distinct from $4::bytea and result = $5::bytea and origin is not distinct from $6::text
		and expires_at - completed_at = $3::interval as same
)
select (case
	when $7::bigint is null or $8::oid is null then ''
	when (select same from recorded) then '1'
	else '` + sayRecordChanged + `'
end)::integer`

// onItsNodeSQL is one row, and reads the key at most. It makes the key's node evaluate the
// select.
const onItsNodeSQL = ` from (select count(*) from idempotency_keys where id = $1::text and scope = $2::text) one_row`

const (
	lockThereSQL = `select pg_try_advisory_xact_lock(` + lockNumberSQL + `)` + onItsNodeSQL

	ownsThereSQL = `
select exists (select from pg_catalog.pg_locks
	where locktype = 'advisory'::text and objsubid = 1::smallint and pid = pg_backend_pid()
		and (classid::bigint << 32 | objid::bigint) = (` + lockNumberSQL + `))` + onItsNodeSQL

	// confirmThereSQL: the write-ahead log that a COMMIT waits for is that of the key's node.
	confirmThereSQL = confirmSQL + onItsNodeSQL

	lockRowThereSQL = `select 1 from idempotency_keys where id = $1::text and scope = $2::text for update nowait`
)

// purgeThereSQL is purgeSQL on all nodes. No locked row can be passed over: it waits for a
// call that is taking one over. Where rows have the same purge_after, a batch can be larger.
const purgeThereSQL = `
delete from idempotency_keys
where purge_after <= (
	select max(purge_after) from (
		select purge_after from idempotency_keys
		where purge_after >= coalesce('epoch'::timestamptz + $2::interval, '-infinity'::timestamptz) and purge_after <= now() and expires_at <= now()
		order by purge_after
		limit $1::bigint) oldest)
	and expires_at <= now()`

// markThereSQL is markSQL, behind lockThereSQL.
const markThereSQL = `
update idempotency_operations set labels = pg_catalog.array_append(labels, $6::text)
where ` + sameJournalSQL + `
returning 0::bigint, 0::oid, true`

const callThereSQL = `
select 0::bigint, 0::oid, true
from idempotency_operations
where ` + sameJournalSQL

// writtenThereSQL is journalWrittenSQL, behind stillHereSQL.
const writtenThereSQL = `
select (case
	when $6::bigint is null then ''
	when exists (select from recorded) then '1'
	else '` + sayNotRecorded + `'
end)::integer`

// distribute puts the statements of this file in the place of those that cannot run, or
// cost too much, on a distributed table.
func (sql *statements) distribute(on func(string) string) {
	there := strings.NewReplacer("'idempotency_keys'::regclass::oid", tableNumberSQL(sql.table)).Replace
	sql.distributed = true
	sql.here, sql.hereInTx, sql.stillHere = on(hereSQL), on(hereInTxSQL), on(stillHereSQL)
	sql.look, sql.claimFree, sql.takeOver = on(there(lookSQL)), on(claimFreeSQL), on(takeOverKnownSQL)
	sql.record, sql.owns, sql.confirm = on(recordThereSQL), on(there(ownsThereSQL)), on(confirmThereSQL)
	sql.lock, sql.lockRow, sql.purge = on(there(lockThereSQL)), on(lockRowThereSQL), on(purgeThereSQL)

	// The others differ in the same few places.
	same := strings.NewReplacer(
		journalWrittenSQL, writtenThereSQL,
		beginningSQL+` <> $9::bigint`, `$9::bigint is null`,
		`'idempotency_keys'::regclass::oid <> $10::oid`, `$10::oid is null`,
		beginningSQL+`, 'idempotency_keys'::regclass::oid`, `0::bigint, 0::oid`,
		restoreSeqscanSQL+` is not null`, `true`,
		`progressed_at = clock_timestamp()`, `progressed_at = statement_timestamp()`,
		`due_at = clock_timestamp()`, `due_at = statement_timestamp()`,
	).Replace
	j := &sql.journal
	j.read, j.open = on(same(journalSQL)), on(same(openSQL))
	j.advance, j.touch, j.close = on(same(advanceSQL)), on(same(touchSQL)), on(same(closeSQL))
	j.mark, j.call = on(markThereSQL), on(callThereSQL)
	j.finish = on(keepPurgeAfter(recordThereSQL))
	j.failed, j.settle = on(same(attemptFailedSQL)), on(same(settleSQL))
	j.stepBegin = sql.here
}

// lockArgs are the arguments of lockSQL and ownsSQL: the number of the lock, and where the
// table is distributed the key, which tells the node.
func (sql *statements) lockArgs(key keyArgs) []any {
	if sql.distributed {
		return key[:3:3]
	}
	return key[2:3:3]
}

// onKey are the arguments of confirmSQL.
func (sql *statements) onKey(key keyArgs) []any {
	if sql.distributed {
		return key[:2:2]
	}
	return nil
}

// queueStillHere queues stillHereSQL where the statement that follows cannot ask by itself.
func (sql *statements) queueStillHere(batch *pgx.Batch, c claim) {
	if sql.distributed {
		batch.Queue(sql.stillHere, c.began, c.table)
	}
}

// queuePlan queues what goes before a statement on the journal: planSQL or stillHereSQL.
func (sql *statements) queuePlan(batch *pgx.Batch, c claim) {
	sql.queueStillHere(batch, c)
	if !sql.distributed {
		batch.Queue(planSQL)
	}
}

// claimInto is where a statement's claimColumns are read to. Where the table is
// distributed, they are those of hereSQL alone.
func (sql *statements) claimInto(c *claim) (began *int64, table *uint32) {
	if sql.distributed {
		c = new(claim)
	}
	return &c.began, &c.table
}

// readStepBegin reads the answer to stepBeginSQL, or to hereSQL.
func (x *session) readStepBegin(results pgx.BatchResults) error {
	if !x.sql.distributed {
		_, err := results.Exec()
		return err
	}
	return results.QueryRow().Scan(&x.claim.began, &x.claim.table, nil, nil)
}

// A look is the answer to hereSQL and lookSQL.
type look struct {
	finding         // inFlight where the key is free
	writable bool   // the transaction
	locked   bool   // this transaction has the key's lock
	exists   bool   // there is a row
	expires  *int64 // the row's expires_at, in microseconds since 1970
}

// beginThere is begin where the table is distributed.
func (x *session) beginThere(ctx context.Context) (finding, error) {
	var batch pgx.Batch
	batch.BeginTx(x.store.cfg.TxOptions)
	batch.Queue(x.sql.here, x.args[4], x.args[5])
	batch.Queue(x.sql.look, x.args[:3:3]...)
	results := x.conn.SendBatch(ctx, &batch)
	x.tx = results.Tx()
	return x.sql.claimThere(ctx, x.tx, x.args, func() (look, error) {
		return readLook(results, true)
	})
}

// claimThere is claim of a savepoint that is set, where the table is distributed.
func (sp *savepoint) claimThere(ctx context.Context) (finding, error) {
	var batch pgx.Batch
	batch.Queue(sp.sql.hereInTx)
	batch.Queue(sp.sql.look, sp.args[:3:3]...)
	return sp.sql.claimThere(ctx, sp.tx, sp.args, func() (look, error) {
		return readLook(sp.tx.SendBatch(ctx, &batch), false)
	})
}

// claimThere claims the key by what a look has found.
func (sql *statements) claimThere(ctx context.Context, tx pgx.Tx, args keyArgs, read func() (look, error)) (finding, error) {
	l, err := read()
	if err == nil && l.elsewhere {
		err = sql.refuse(ctx, tx)
	}
	if err == nil && !l.writable { // a record that a standby shows can be one that was deleted
		err = l.own(ctx, tx, sql.claimFree, args[0], args[1], args[3])
	}
	switch {
	case err != nil:
		return finding{}, err
	case l.state == expired:
		l.seen, l.state = true, inFlight
		if l.locked {
			err = l.own(ctx, tx, sql.takeOver, args[0], args[1], args[3], pgtype.Interval{Microseconds: *l.expires, Valid: true})
		}
	case !l.exists && l.locked:
		err = l.own(ctx, tx, sql.claimFree, args[0], args[1], args[3])
	}
	return l.finding, err
}

// own claims the row by a statement that returns one row if it succeeds.
func (l *look) own(ctx context.Context, tx pgx.Tx, sql string, args ...any) error {
	err := tx.QueryRow(ctx, sql, args...).Scan(new(int))
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err == nil:
		l.state = claimed
	}
	return err
}

func readLook(results pgx.BatchResults, begun bool) (l look, err error) {
	defer closeResults(results, &err)
	if begun {
		if _, err := results.Exec(); err != nil { // BEGIN
			return look{}, err
		}
	}
	var same, incomplete, outdated bool
	if err := results.QueryRow().Scan(&l.claim.began, &l.claim.table, &l.writable, &same); err != nil {
		return look{}, err
	}
	var a answer
	var fingerprint, result bytea.Bytes
	err = results.QueryRow().Scan(&l.locked, &l.exists, &fingerprint, &result, &a.origin, &incomplete, &outdated, &l.expires)
	copy(a.fingerprint[:], fingerprint)
	a.result = result
	l.elsewhere = !same
	switch {
	case err != nil || !l.exists:
	case incomplete:
		l.state = abandoned
	case outdated:
		l.state = expired
	default:
		l.state, l.answer = recorded, &a
	}
	return l, err
}

// lostNode: the node that has the key's rows is gone, or the link to it, and the
// connection of this transaction, to another node, is not. Citus says XX000 for most of
// what happens there, and at COMMIT for all of it.
func (sql *statements) lostNode(err error) bool {
	code := sqlState(err)
	return sql != nil && sql.distributed && (strings.HasPrefix(code, "08") || strings.HasPrefix(code, "57P0") || code == "XX000")
}

func (s *Store) lostNode(err error) bool { return s.table.current.Load().lostNode(err) }
