package idempotency

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Record is the result of an operation that has taken effect. All times are
// of the database's clock.
type Record struct {
	Key         Key
	Result      json.RawMessage // the value as it was stored
	Origin      string          // what Config.Trace said for the call that made it
	CreatedAt   time.Time       // the start of the transaction that made it
	CompletedAt time.Time       // when the result was recorded
	ExpiresAt   time.Time       // when the key becomes free again
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
	err := scanRecord(s.pool.QueryRow(ctx, s.sql.get, key.ID, key.Scope), &rec)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Record{}, ErrNotFound
	case err != nil:
		return Record{}, explain("get the record", err)
	case rec.CompletedAt.IsZero():
		return Record{}, ErrAbandoned
	}
	return rec, nil
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

func (s *Store) page(ctx context.Context, scope, after string) ([]Record, error) {
	rows, err := s.pool.Query(ctx, s.sql.list, scope, after, listPage)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (Record, error) {
		rec := Record{Key: Key{Scope: scope}}
		err := scanRecord(row, &rec, &rec.Key.ID)
		return rec, err
	})
}

// scanRecord reads the columns of getSQL, after those of first.
func scanRecord(row pgx.Row, rec *Record, first ...any) error {
	var (
		fingerprint        []byte
		purgeAfter         time.Time
		completed, expires *time.Time // null in an abandoned row
	)
	err := row.Scan(append(first, &fingerprint, (*[]byte)(&rec.Result), &rec.Origin, &purgeAfter, &completed, &expires)...)
	copy(rec.Key.Fingerprint[:], fingerprint)
	if completed != nil && expires != nil {
		rec.CompletedAt, rec.ExpiresAt = *completed, *expires
		// Both ends have the same retention.
		rec.CreatedAt = purgeAfter.Add(rec.CompletedAt.Sub(rec.ExpiresAt))
	}
	return err
}

// Delete forgets the record of key, so that the next call with it runs again.
// It is ErrInProgress when a call holds the key for a second or more, and
// ErrNotFound when there is no record. To delete a key that a client may still
// retry is to give up its protection, also for a call whose commit is in doubt at
// this moment.
func (s *Store) Delete(ctx context.Context, key Key) error {
	var event Event
	return s.observed(ctx, "Delete", key, &event, func(ctx context.Context) error {
		if err := key.validate(); err != nil {
			return err
		}
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
	var waits backoff
	for start := time.Now(); ; {
		err := pgx.BeginTxFunc(ctx, s.pool, readCommitted, func(tx pgx.Tx) error {
			return s.deleteIn(ctx, tx, key)
		})
		if !errors.Is(err, ErrInProgress) || time.Since(start) >= deletePatience {
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

func (s *Store) deleteIn(ctx context.Context, tx pgx.Tx, key Key) error {
	var free, exists bool
	var batch pgx.Batch
	// A process that freezes here must not keep the key.
	batch.Queue(settingsSQL, s.idle...)
	batch.Queue(s.sql.lock, key.lockID()).QueryRow(func(row pgx.Row) error { return row.Scan(&free) })
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return explain("delete the record", err)
	}
	if !free {
		return ErrInProgress
	}
	tag, err := tx.Exec(ctx, s.sql.delete, key.ID, key.Scope)
	if err != nil {
		return explain("delete the record", err)
	}
	if tag.RowsAffected() > 0 {
		return nil
	}
	if err := tx.QueryRow(ctx, s.sql.exists, key.ID, key.Scope).Scan(&exists); err != nil {
		return explain("delete the record", err)
	}
	if exists {
		return ErrInProgress
	}
	return ErrNotFound
}
