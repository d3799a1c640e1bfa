package idempotency

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/bytea"
	"github.com/pgidem/idempotency/internal/condition"
	"github.com/pgidem/idempotency/internal/remedy"
)

// A Record is the result of an operation that has taken effect. All times are
// of the database's clock.
type Record struct {
	Key         Key
	Result      json.RawMessage // the value as it was stored
	Origin      string          // what Config.Trace said for the call that made it
	CreatedAt   time.Time       // the start of the transaction that made it
	CompletedAt time.Time       // when the result was recorded
	ExpiresAt   time.Time       // when the key becomes free again; in the year 9999 if never
}

// Get returns the record of key, whatever its fingerprint. It is ErrNotFound
// when there is none: never called, failed, still running, or expired. It does
// not wait.
func (s *Store) Get(ctx context.Context, key Key) (rec Record, err error) {
	var event Event
	err = s.observed(ctx, "Get", key, &event, func(ctx context.Context) error {
		rec, err = s.get(ctx, key)
		return err
	})
	return rec, err
}

func (s *Store) get(ctx context.Context, key Key) (Record, error) {
	if err := key.validate(); err != nil {
		return Record{}, err
	}
	rec := Record{Key: Key{Scope: key.Scope, ID: key.ID}}
	err := s.query(ctx, getOf, []any{key.ID, key.Scope}, func(results pgx.BatchResults) error {
		return scanRecord(results.QueryRow(), &rec)
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Record{}, ErrNotFound
	case err != nil:
		return Record{}, explain("get the record", err)
	case rec.ExpiresAt.IsZero(): // CompletedAt can be -infinity
		return Record{}, s.incomplete(ctx, key)
	}
	return rec, nil
}

// incomplete is the error of a key whose row has no result.
func (s *Store) incomplete(ctx context.Context, key Key) error {
	var there bool
	err := s.query(ctx, func(sql *statements) string { return sql.journal.unfinished }, []any{key.ID, key.Scope}, func(results pgx.BatchResults) error {
		return results.QueryRow().Scan(&there)
	})
	switch {
	case there:
		return ErrUnfinished
	case err != nil && !missingOperations(err):
		return explain("the key has no result: look for an unfinished operation", err)
	}
	return ErrAbandoned
}

// listPage is the number of records that All reads at a time.
const listPage = 200

// All returns the records of scope, in the order of their ids. Expired ones are
// left out. It holds no connection while the caller looks at a record, so it
// shows each record as it was at some moment, not all at the same one.
//
// It reads the whole table, whose index leads with the id: it is for people,
// not for a request path.
func (s *Store) All(ctx context.Context, scope string) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		var event Event
		err := s.observed(ctx, "All", Key{Scope: scope}, &event, func(ctx context.Context) error {
			return s.each(ctx, scope, func(rec Record) bool { return yield(rec, nil) })
		})
		if err != nil {
			yield(Record{}, err)
		}
	}
}

func (s *Store) each(ctx context.Context, scope string, visit func(Record) bool) error {
	if err := validateText("Scope", scope); err != nil {
		return err
	}
	after := ""
	for {
		page, err := s.page(ctx, scope, after)
		if err != nil {
			return explain("list the records", err)
		}
		for _, rec := range page {
			if !visit(rec) {
				return nil
			}
			after = rec.Key.ID
		}
		if len(page) < listPage {
			return nil
		}
	}
}

func (s *Store) page(ctx context.Context, scope, after string) (page []Record, err error) {
	err = s.query(ctx, listOf, []any{scope, after, listPage}, func(results pgx.BatchResults) error {
		rows, err := results.Query()
		if err != nil {
			return err
		}
		page, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (Record, error) {
			rec := Record{Key: Key{Scope: scope}}
			err := scanRecord(row, &rec, &rec.Key.ID)
			return rec, err
		})
		return err
	})
	return page, err
}

func getOf(sql *statements) string   { return sql.get }
func listOf(sql *statements) string  { return sql.list }
func knownOf(sql *statements) string { return sql.known }

// query sends one statement that only reads, behind prepareSQL: the two are one
// implicit transaction, in which the settings of the first are in force. A connection
// that is lost meanwhile is replaced.
func (s *Store) query(ctx context.Context, statement func(*statements) string, args []any, read func(pgx.BatchResults) error) error {
	return s.queryBehind(ctx, func(sql *statements) string { return sql.prepare }, statement, args, read)
}

// queryBehind is query with another statement ahead.
func (s *Store) queryBehind(ctx context.Context, prepare, statement func(*statements) string, args []any, read func(pgx.BatchResults) error) error {
	return s.retried(ctx, func() (executed bool, err error) {
		return false, s.queryOn(ctx, prepare, statement, args, read)
	})
}

func (s *Store) queryOn(ctx context.Context, prepare, statement func(*statements) string, args []any, read func(pgx.BatchResults) error) error {
	conn, err := s.acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	if err := checkSent(conn.Conn(), args...); err != nil {
		return err
	}
	return graced(ctx, conn.Conn(), func(ctx context.Context) error {
		sql, err := s.table.statements(ctx, conn)
		if err != nil {
			return err
		}
		return sql.remedied(sql.query(ctx, conn.Conn(), prepare(sql), statement(sql), args, read))
	})
}

func (sql *statements) query(ctx context.Context, conn *pgx.Conn, prepare, statement string, args []any, read func(pgx.BatchResults) error) error {
	var batch pgx.Batch
	batch.Queue(prepare)
	batch.Queue(statement, args...)
	same, err := readPrepared(conn.SendBatch(ctx, &batch), read)
	if (err == nil || errors.Is(err, pgx.ErrNoRows)) && !same {
		if refusal := sql.refuse(ctx, conn); refusal != nil {
			return refusal
		}
	}
	return err
}

func readPrepared(results pgx.BatchResults, read func(pgx.BatchResults) error) (same bool, err error) {
	defer closeResults(results, &err)
	if err := results.QueryRow().Scan(&same); err != nil {
		return false, err
	}
	return same, read(results)
}

// scanRecord reads the recordColumns, and the columns behind them.
func scanRecord(row pgx.Row, rec *Record, more ...any) error {
	var (
		fingerprint, result            bytea.Bytes
		complete                       bool
		purgeAfter, completed, expires int64
	)
	err := row.Scan(append([]any{&fingerprint, &result, &rec.Origin, &complete, &purgeAfter, &completed, &expires}, more...)...)
	copy(rec.Key.Fingerprint[:], fingerprint)
	rec.Result = json.RawMessage(result)
	if complete {
		rec.CompletedAt, rec.ExpiresAt = time.UnixMicro(completed), time.UnixMicro(expires)
		rec.CreatedAt = rec.CompletedAt
		// purge_after is created + retention, and expires is completed + retention, unless
		// somebody has changed one of them.
		if created := time.UnixMicro(purgeAfter - (expires - completed)); created.Before(rec.CompletedAt) && created.Year() > 0 {
			rec.CreatedAt = created
		}
	}
	return err
}

// Delete forgets the record of key, so that the next call with it runs again.
// It is ErrInProgress when a call holds the key for a second or more, and
// ErrNotFound when there is no record, or none that a policy (row-level security)
// lets the role see. A key that a client may still retry loses its protection: the
// operation runs again, also if the commit of a call is in doubt at this moment.
func (s *Store) Delete(ctx context.Context, key Key) error {
	var event Event
	return s.observed(ctx, "Delete", key, &event, func(ctx context.Context) error {
		if err := key.validate(); err != nil {
			return err
		}
		s.memory.forget(key)
		err := s.delete(ctx, key)
		if err == nil {
			event.Deleted = 1
		}
		return err
	})
}

// deletePatience is how long Delete asks again before it believes that a call
// holds the key: replays, too, hold the advisory lock for a moment.
const deletePatience = time.Second

func (s *Store) delete(ctx context.Context, key Key) error {
	return s.changeKey(ctx, "delete the record", key, func(tx pgx.Tx, sql *statements) error {
		return sql.deleteIn(ctx, tx, key)
	})
}

// changeKey is change with the key's lock, which it tries for some time.
func (s *Store) changeKey(ctx context.Context, doing string, key Key, do func(pgx.Tx, *statements) error) error {
	var waits backoff
	for start := time.Now(); ; {
		err := s.change(ctx, s.cfg.MaxIdle, func(tx pgx.Tx, sql *statements) error {
			if err := checkSent(tx.Conn(), key.ID, key.Scope); err != nil {
				return err
			}
			free, err := sql.tryLock(ctx, tx, key)
			switch {
			case err != nil:
				return err
			case !free:
				return ErrInProgress
			}
			return do(tx, sql)
		})
		switch {
		case err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnfinished):
			return err
		case !errors.Is(err, ErrInProgress):
			return explain(doing, err)
		case time.Since(start) >= deletePatience:
			return err
		}
		if waits.pause(ctx) != nil {
			return leftWaiting(ctx)
		}
	}
}

// readCommitted is for the statements that look again at a row they had to wait
// for, where a stricter default of the role would fail them.
var readCommitted = pgx.TxOptions{IsoLevel: pgx.ReadCommitted}

// change runs statements that delete records in a transaction of its own, behind
// prepareChangeSQL. PostgreSQL ends it after a silence of maxIdle. A connection that was
// lost before the transaction began, or whose server cannot write, is replaced.
func (s *Store) change(ctx context.Context, maxIdle time.Duration, do func(pgx.Tx, *statements) error) error {
	return s.retried(ctx, func() (executed bool, err error) {
		begun, err := s.changeOn(ctx, maxIdle, do)
		return begun && !remedy.CannotWrite(err), err // its COMMIT can have taken effect
	})
}

func (s *Store) changeOn(ctx context.Context, maxIdle time.Duration, do func(pgx.Tx, *statements) error) (begun bool, err error) {
	conn, err := s.acquire(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Release()
	defer func() { closeReadOnly(conn.Conn(), err) }()
	tx, err := conn.BeginTx(ctx, readCommitted)
	if err != nil {
		return false, err
	}
	defer func() { _ = tx.Rollback(ctx) }() // after the COMMIT it does nothing
	if err := s.changeIn(ctx, tx, maxIdle, do); err != nil {
		return true, err
	}
	// What a COMMIT has done is reported, whatever the context says by now: a purge that
	// ends here counts what it has deleted.
	lasting, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitBound)
	defer cancel()
	return true, tx.Commit(lasting)
}

func (s *Store) changeIn(ctx context.Context, tx pgx.Tx, maxIdle time.Duration, do func(pgx.Tx, *statements) error) error {
	sql, err := s.table.statements(ctx, tx)
	if err != nil {
		return err
	}
	if err := condition.Meet(ctx, tx); err != nil {
		return err
	}
	var same bool
	err = tx.QueryRow(ctx, sql.prepareChange, idleTimeout(maxIdle), s.checkInterval()).Scan(&same)
	if err == nil && !same {
		err = sql.refuse(ctx, tx)
	}
	if err == nil {
		err = do(tx, sql)
	}
	return sql.remedied(err)
}

func (sql *statements) deleteIn(ctx context.Context, tx pgx.Tx, key Key) error {
	remains, err := sql.deleteRow(ctx, tx, key)
	if err != nil || !remains {
		return err
	}
	// Another transaction has locked the row, or has ended meanwhile, or this role is
	// kept from it.
	if _, err := tx.Exec(ctx, sql.lockRow, key.ID, key.Scope); err != nil {
		if sqlState(err) == codeLockNotAvailable {
			return ErrInProgress
		}
		return err
	}
	if remains, err = sql.deleteRow(ctx, tx, key); remains {
		return sql.keptBack()
	}
	return err
}

// tryLock tries the advisory lock of key.
func (sql *statements) tryLock(ctx context.Context, tx pgx.Tx, key Key) (free bool, err error) {
	err = tx.QueryRow(ctx, sql.lock, sql.lockArgs(keyArgs{key.ID, key.Scope, key.lockID()})...).Scan(&free)
	return free, err
}

// deleteRow reports whether the row is there and was not deleted. It is ErrNotFound when
// there was none.
func (sql *statements) deleteRow(ctx context.Context, tx pgx.Tx, key Key) (remains bool, err error) {
	var complete bool
	err = tx.QueryRow(ctx, sql.delete, key.ID, key.Scope).Scan(&complete)
	switch {
	case err == nil && !complete:
		return false, sql.checkAbandoned(ctx, tx, []any{key.ID, key.Scope})
	case !errors.Is(err, pgx.ErrNoRows):
		return false, err
	}
	err = tx.QueryRow(ctx, sql.exists, key.ID, key.Scope).Scan(&remains)
	if err == nil && !remains {
		err = ErrNotFound
	}
	return remains, err
}

// checkAbandoned is ErrUnfinished if the key has an operation of a procedure.
func (sql *statements) checkAbandoned(ctx context.Context, tx pgx.Tx, key []any) error {
	if !condition.Operations(ctx) { // the command has not found the table
		return nil
	}
	if _, err := tx.Exec(ctx, savepointSQL); err != nil { // the table can be missing
		return err
	}
	there, err := sql.isUnfinished(ctx, tx, key)
	if _, failed := tx.Exec(ctx, rollbackToSQL+"; "+releaseSQL); err == nil {
		err = failed
	}
	switch {
	case there:
		return ErrUnfinished
	case err != nil && !missingOperations(err):
		return explain("the key has no result: look for an unfinished operation", sql.remedied(err))
	}
	return nil
}
