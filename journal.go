package idempotency

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency/internal/bytea"
	"github.com/pgidem/idempotency/internal/remedy"
)

// The statements on the journal of a procedure's operation. The rules of postgres.go hold
// for them too. Each that writes is behind planSQL or stepBeginSQL, and restores
// enable_seqscan. Each compares the number of the operation, and how many labels and
// results there are, with what this process knows: that alone keeps the effects in the
// database from happening twice, whoever has the key's lock.

// journalSQL reads an operation that has not ended, behind planSQL and lockSQL. It looks at
// the key's row as well, in the same snapshot: the operation can have ended while the lock
// was not held.
const journalSQL = `
select ` + beginningSQL + `, 'idempotency_keys'::regclass::oid, k.expires_at is null, o.number::text, o.name, o.fingerprint, o.input, o.labels,
	pg_catalog.array_to_string(array(select encode(r.value, 'base64'::text) from pg_catalog.unnest(o.results) with ordinality r (value, place) order by r.place), ' '::text),
	(extract(epoch from clock_timestamp() - o.progressed_at) * 1000000::numeric)::bigint, ` + restoreSeqscanSQL + ` is not null
from idempotency_keys k left join idempotency_operations o on o.id = k.id and o.scope = k.scope
where k.id = $1::text and k.scope = $2::text`

// openSQL makes the operation durable, in the transaction that has claimed its key. A row
// that is there is the rest of one whose key was deleted by other means.
const openSQL = `
with recorded as (
	insert into idempotency_operations (id, scope, number, started_at, progressed_at, due_at, name, fingerprint, input, labels, results)
	values ($1::text, $2::text, $3::uuid, now(), clock_timestamp(), clock_timestamp(), $4::text, $5::bytea, $6::bytea, $7::text[], $8::bytea[])
	on conflict (id, scope) do update set number = excluded.number, started_at = excluded.started_at, progressed_at = excluded.progressed_at,
		due_at = excluded.due_at, attempts = 0, name = excluded.name, fingerprint = excluded.fingerprint, error = null,
		input = excluded.input, labels = excluded.labels, results = excluded.results
	returning 1
)
select (case
	when ` + beginningSQL + ` <> $9::bigint then '` + sayTransactionEnded + `'
	when 'idempotency_keys'::regclass::oid <> $10::oid then '` + sayTableReplaced + `'
	when exists (select from recorded) then '1'
	else '` + sayNotRecorded + `'
end)::integer`

// advanceSQL records results, and the label of a call that begins.
const advanceSQL = `
with recorded as (
	update idempotency_operations
	set labels = pg_catalog.array_cat(labels, $8::text[]), results = pg_catalog.array_cat(results, $7::bytea[]), progressed_at = clock_timestamp()
	where ` + sameJournalSQL + `
	returning 1
)` + journalWrittenSQL

// touchSQL changes nothing. Its commit proves that the operation is where this process
// believes it to be, and is as durable as what it follows.
const touchSQL = `
with recorded as (
	update idempotency_operations set progressed_at = progressed_at
	where ` + sameJournalSQL + `
	returning 1
)` + journalWrittenSQL

// closeSQL goes before the record of the procedure's result.
const closeSQL = `
with recorded as (
	delete from idempotency_operations
	where ` + sameJournalSQL + `
	returning 1
)` + journalWrittenSQL

const (
	sameJournalSQL = `id = $1::text and scope = $2::text and number = $3::uuid and pg_catalog.cardinality(results) = $4::integer and pg_catalog.cardinality(labels) = $5::integer`

	journalWrittenSQL = `
select (case
	when ` + restoreSeqscanSQL + ` is null then ''
	when ` + beginningSQL + ` <> $6::bigint then '` + sayTransactionEnded + `'
	when exists (select from recorded) then '1'
	else '` + sayNotRecorded + `'
end)::integer`

	sayNotRecorded = `idempotency: the operation has gone on elsewhere`
)

// stepBeginSQL is the first statement of a transaction that follows one of the same
// operation.
const stepBeginSQL = `
select ` + keepSeqscanSQL + `, ` + seqscanOffSQL + `, set_config('idle_in_transaction_session_timeout'::text, $1::text, true),
	set_config('client_connection_check_interval'::text, $2::text, true)`

// markSQL takes the key's lock and writes the label of the step that begins. Others see it
// only if its function sends COMMIT as SQL: its effects are then there, and its result is
// not.
const markSQL = `
update idempotency_operations set labels = pg_catalog.array_append(labels, $6::text)
where ` + sameJournalSQL + ` and (select pg_try_advisory_xact_lock($7::bigint # 'idempotency_keys'::regclass::oid::bigint))
returning ` + beginningSQL + `, 'idempotency_keys'::regclass::oid, ` + restoreSeqscanSQL + ` is not null`

// callSQL is markSQL for a call, behind lockSQL: it writes nothing, so that no transaction
// id is held while the call runs.
const callSQL = `
select ` + beginningSQL + `, 'idempotency_keys'::regclass::oid, true
from idempotency_operations
where ` + sameJournalSQL

// restSQL comes last before a call: the portal of a select keeps its snapshot, which holds
// vacuum back, until another statement takes its place.
const restSQL = `set local idempotency.call to 'yes'`

// callBeginText begins the transaction of a call: its statements have to see what the
// lock's last holder has committed, and it must not keep a snapshot.
const callBeginText = `begin isolation level read committed`

// finishSQL is recordSQL for an operation whose key was claimed in an earlier transaction.
// It leaves purge_after as the claim has set it.
var finishSQL = keepPurgeAfter(recordSQL)

var keepPurgeAfter = strings.NewReplacer(", purge_after = excluded.purge_after", "", " and purge_after = now() + $3::interval", "").Replace

// unfinishedSQL tells a key of a procedure from an abandoned one.
const unfinishedSQL = `select exists (select from idempotency_operations where id = $1::text and scope = $2::text)`

const (
	discardSQL    = `delete from idempotency_operations where id = $1::text and scope = $2::text`
	discardKeySQL = `delete from idempotency_keys where id = $1::text and scope = $2::text and expires_at is null`
)

// tidySQL deletes the rest of an operation that is not one any more: its key has a result,
// or was deleted by other means.
const tidySQL = `
delete from idempotency_operations
where id = $1::text and scope = $2::text and number = $3::uuid
	and not exists (select from idempotency_keys where id = $1::text and scope = $2::text and expires_at is null)`

// A journal is what is known of a procedure's operation: what is recorded, and the result
// of one more step or call that has ended.
type journal struct {
	number      string // a UUID
	name        string // of the procedure
	fingerprint Fingerprint
	input       []byte
	labels      []string
	results     [][]byte
	age         time.Duration // since the last label or result was recorded, by the database's clock

	durable  bool // there is a row
	recorded int  // of results
	labelled int  // of labels, in the row as this transaction sees it
}

// newJournal is that of an operation that begins.
func newJournal(w *course, fingerprint Fingerprint) *journal {
	var number [16]byte
	rand.Read(number[:])
	return &journal{number: uuid(number, 4), name: w.name, fingerprint: fingerprint, input: w.input, labels: []string{}, results: [][]byte{}}
}

// begun is the label of a call whose outcome is not known, or of a step that has sent
// COMMIT, or no text.
func (j *journal) begun() string {
	if len(j.labels) > len(j.results) {
		return j.labels[len(j.results)]
	}
	return ""
}

// unrecorded: a step or a call has ended, and its result is not recorded.
func (j *journal) unrecorded() bool { return len(j.results) > j.recorded }

// endedWithStep: the last thing that has ended, and is not recorded, is a step.
func (j *journal) endedWithStep() bool { return j.unrecorded() && isStep(j.labels[len(j.results)-1]) }

func label(kind, name string) string { return kind + " " + name }

const (
	aStep = "step"
	aCall = "call"
)

func isStep(label string) bool { return strings.HasPrefix(label, aStep+" ") }

// readJournal reads the operation of a key whose row has no result, and takes the key's
// lock. It returns nil if there is no operation.
func (x *session) readJournal(ctx context.Context) (j *journal, locked bool, err error) {
	var batch pgx.Batch
	x.sql.queuePlan(&batch, x.claim)
	batch.Queue(x.sql.lock, x.sql.lockArgs(x.args)...)
	batch.Queue(x.sql.journal.read, x.args.read()...)
	results := x.tx.SendBatch(ctx, &batch)
	defer closeResults(results, &err)
	if _, err := results.Exec(); err != nil {
		return nil, false, err
	}
	if err := results.QueryRow().Scan(&locked); err != nil {
		return nil, false, err
	}
	j = &journal{durable: true}
	var number, name *string
	var fingerprint, input bytea.Bytes
	var labels []string
	var values *string
	var age *int64
	var incomplete, restored bool
	began, table := x.sql.claimInto(&x.claim)
	err = results.QueryRow().Scan(began, table, &incomplete, &number, &name, &fingerprint, &input, &labels, &values, &age, &restored)
	switch {
	case errors.Is(err, pgx.ErrNoRows) || err == nil && !incomplete: // deleted, or ended, just now
		return nil, false, nil
	case err != nil || number == nil:
		return nil, locked, err
	}
	j.number, j.name, j.input, j.labels, j.age = *number, *name, input, labels, time.Duration(*age)*time.Microsecond
	copy(j.fingerprint[:], fingerprint)
	if j.results, err = readResults(*values); err != nil {
		return nil, false, err
	}
	j.recorded, j.labelled = len(j.results), len(j.labels)
	return j, locked, nil
}

// readResults reads an array of bytea as text that no setting of the session changes.
func readResults(text string) (results [][]byte, err error) {
	for _, encoded := range strings.Fields(strings.ReplaceAll(text, "\n", "")) {
		value, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return nil, err
		}
		results = append(results, value)
	}
	return results, nil
}

// errElsewhere: another attempt has gone on with the operation.
var errElsewhere = fmt.Errorf("%w: another attempt has gone on with the operation", ErrInProgress)

func saysElsewhere(err error) bool { return strings.Contains(err.Error(), sayNotRecorded) }

func missingOperations(err error) bool {
	return err != nil && remedy.Missing(err, "idempotency_operations")
}

// A leg is what comes next on a session of a procedure, behind the commit of what has
// been done.
type leg struct {
	label string // of a step; of a call "": its label is recorded before
	call  bool
	none  bool // nothing: the connection is given back
}

// write queues the statement that makes the journal durable as it is now.
func (j *journal) write(x *session, batch *pgx.Batch) {
	id, scope := x.args[0], x.args[1]
	results := nonNil(j.results[j.recorded:])
	if !j.durable {
		x.sql.queueStillHere(batch, x.claim)
		batch.Queue(x.sql.journal.open, id, scope, j.number, j.name, fingerprintColumn(&j.fingerprint), j.input, j.labels, results, x.claim.began, x.claim.table)
		return
	}
	x.sql.queuePlan(batch, x.claim)
	same := []any{id, scope, j.number, j.recorded, j.labelled}
	if len(results) == 0 && len(j.labels) == j.labelled {
		batch.Queue(x.sql.journal.touch, append(same, x.claim.began)...)
		return
	}
	batch.Queue(x.sql.journal.advance, append(same, x.claim.began, results, nonNil(j.labels[j.labelled:]))...)
}

// end queues the statements that go before the record of the procedure's result.
func (j *journal) end(x *session, batch *pgx.Batch) {
	x.sql.queuePlan(batch, x.claim)
	batch.Queue(x.sql.journal.close, x.args[0], x.args[1], j.number, j.recorded, j.labelled, x.claim.began)
}

func nonNil[T any](list []T) []T { return append([]T{}, list...) }

// advance makes the journal durable, and begins the next leg, in one round trip. With a
// failure, the session is of no more use.
func (x *session) advance(j *journal, next leg) *failure {
	if failed := x.checkSent(); failed != nil {
		return failed
	}
	var batch pgx.Batch
	j.write(x, &batch)
	written := batch.Len()
	batch.Queue(x.store.commitSQL())
	next.begin(x, j, &batch)
	sent := time.Now()
	_ = x.wire().SetDeadline(sent.Add(commitBound))
	defer func() { _ = x.wire().SetDeadline(time.Time{}) }()
	results := x.conn.SendBatch(context.Background(), &batch)
	committed, err := readAdvance(results, written)
	if committed {
		j.durable, j.recorded, j.labelled, j.age = true, len(j.results), len(j.labels), 0
		x.began = sent
		if err == nil {
			err = next.read(x, j, results)
		}
	}
	closeResults(results, &err)
	switch {
	case err == nil:
		return nil
	case committed:
		return &failure{err: explain("begin the next step", err), transient: true}
	case saysElsewhere(err):
		return &failure{err: errElsewhere, transient: true}
	}
	failed := &failure{err: x.sql.explainRecord(err, ""), sent: sent}
	// A step that took too long will do so again. Of a call there is the outcome.
	tooLong := (pgconn.Timeout(err) || endedForItsTime(err) || x.outlastedMaxIdle()) && j.endedWithStep()
	failed.transient = conflicted(err) || (x.closed() || x.sql.lostNode(err)) && !tooLong
	failed.inDoubt = !x.inTransaction() && !provesAbort(err)
	return failed
}

func readAdvance(results pgx.BatchResults, written int) (committed bool, err error) {
	for range written {
		if _, err := results.Exec(); err != nil {
			return false, err
		}
	}
	tag, err := results.Exec()
	switch {
	case err == nil && tag.String() == "ROLLBACK":
		return false, pgx.ErrTxCommitRollback
	case err != nil && sqlState(err) == "":
		return false, explain("commit", err)
	}
	return err == nil, err
}

// begin queues the statements that begin the leg.
func (l leg) begin(x *session, j *journal, batch *pgx.Batch) {
	if l.none {
		return
	}
	text := callBeginText
	if !l.call {
		text = beginSQL(x.store.cfg.TxOptions)
	}
	batch.Queue(text)
	l.enter(x, j, batch)
}

// locks: the key's lock is taken by a statement of its own.
func (l leg) locks(sql *statements) bool { return l.call || sql.distributed }

// enter queues the statements that come first in the transaction of the leg.
func (l leg) enter(x *session, j *journal, batch *pgx.Batch) {
	same := []any{x.args[0], x.args[1], j.number, len(j.results), len(j.labels)}
	batch.Queue(x.sql.journal.stepBegin, x.args[4], x.args[5])
	if l.locks(x.sql) {
		batch.Queue(x.sql.lock, x.sql.lockArgs(x.args)...)
	}
	if l.call {
		batch.Queue(x.sql.journal.call, same...)
		batch.Queue(restSQL)
		return
	}
	same = append(same, l.label)
	if !l.locks(x.sql) {
		same = append(same, x.args[2])
	}
	batch.Queue(x.sql.journal.mark, same...)
}

// read reads the answers to begin.
func (l leg) read(x *session, j *journal, results pgx.BatchResults) error {
	if l.none {
		return nil
	}
	if _, err := results.Exec(); err != nil {
		return err
	}
	return l.readEntered(x, j, results)
}

func (l leg) readEntered(x *session, j *journal, results pgx.BatchResults) error {
	if err := x.readStepBegin(results); err != nil {
		return err
	}
	locked := true
	if l.locks(x.sql) {
		if err := results.QueryRow().Scan(&locked); err != nil {
			return err
		}
	}
	var restored bool
	began, table := x.sql.claimInto(&x.claim)
	err := results.QueryRow().Scan(began, table, &restored)
	switch {
	case errors.Is(err, pgx.ErrNoRows) || err == nil && !locked:
		return errElsewhere
	case err != nil:
		return err
	}
	if !l.call {
		j.labelled++
	}
	return nil
}

// enter begins a step in the transaction that the session is in.
func (x *session) enter(ctx context.Context, j *journal, step leg) (err error) {
	var batch pgx.Batch
	step.enter(x, j, &batch)
	results := x.tx.SendBatch(ctx, &batch)
	defer closeResults(results, &err)
	return step.readEntered(x, j, results)
}

// journalStatements are the constants above on the tables of one schema.
type journalStatements struct {
	read, open, advance, touch, close string
	stepBegin, mark, call, finish     string
	unfinished, discard, discardKey   string
	tidy                              string
	readAll, pending                  string
	failed, settle, turn              string
}

func newJournalStatements(on func(string) string) journalStatements {
	return journalStatements{
		read: on(journalSQL), open: on(openSQL), advance: on(advanceSQL), touch: on(touchSQL), close: on(closeSQL),
		stepBegin: stepBeginSQL, mark: on(markSQL), call: on(callSQL), finish: on(finishSQL),
		unfinished: on(unfinishedSQL), discard: on(discardSQL), discardKey: on(discardKeySQL), tidy: on(tidySQL),
		readAll: on(readAllSQL), pending: on(pendingSQL), failed: on(attemptFailedSQL), settle: on(settleSQL), turn: on(completeTurnSQL),
	}
}

// uuid is b as a UUID of that version (RFC 9562, section 5).
func uuid(b [16]byte, version byte) string {
	b[6] = b[6]&0x0f | version<<4
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
