package idempotency

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/pgidem/idempotency/internal/remedy"
)

const (
	// purgeBatch is the number of records that one transaction of a purge deletes:
	// few enough that the calls beside it do not notice.
	purgeBatch = 1000

	// purgePace is the time that a batch takes at least, the pause after it
	// included: 10,000 records a second.
	purgePace = 100 * time.Millisecond
)

// Purge deletes the expired records, oldest first, in small transactions with
// pauses between them, 10,000 a second at most, and returns how many. It can run
// beside calls and other purges: what they have locked it passes over. When ctx
// ends, what was deleted stays deleted, and is counted.
func (s *Store) Purge(ctx context.Context) (deleted int64, err error) {
	return s.purge(ctx, s.purgeBatch)
}

// PurgeEvery runs Purge now and then once in every interval, until ctx ends,
// when it returns the context's error. The caller owns the goroutine. It may run
// in every process of a fleet: one of them at a time deletes, the others stand
// by.
//
// Each purge is reported to [Config.Observe], as "standing_by" where it was another
// process's turn, and one that fails is followed by the next, so that a lost
// connection or a failover does not end the loop. It returns at once when trying
// again cannot help: the table is missing or of another version, or the role may
// not delete from it.
func (s *Store) PurgeEvery(ctx context.Context, interval time.Duration) error {
	if interval <= 0 {
		return fmt.Errorf("idempotency: PurgeEvery: the interval is %v: it has to be more than 0", interval)
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for ctx.Err() == nil {
		if _, err := s.purge(ctx, s.purgeBatchInTurn); misconfigured(err) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// misconfigured: the table or the grants on it are not as they have to be, whatever
// else PostgreSQL's code for that can mean. Behind a pooler, 42P05 (a prepared
// statement that exists already) goes away with the next session.
func misconfigured(err error) bool {
	e, ok := errors.AsType[*remedy.Error](err)
	return ok && e.Lasting
}

// A purgeStep waits, and then deletes one batch, from where the one before it ended.
type purgeStep func(ctx context.Context, pause time.Duration, from *int64) (batch, error)

// A batch is what one transaction of a purge has deleted.
type batch struct {
	deleted int64
	to      *int64 // the last purge_after, in microseconds since 1970; nil is before all others
}

func (s *Store) purge(ctx context.Context, step purgeStep) (deleted int64, err error) {
	var event Event
	err = s.observed(ctx, "Purge", Key{}, &event, func(ctx context.Context) error {
		var last batch
		for pause := time.Duration(0); ; {
			start := time.Now()
			last, err = step(ctx, pause, last.to)
			deleted += last.deleted
			event.Deleted = deleted
			switch {
			case errors.Is(err, errNotOurTurn):
				if deleted == 0 {
					event.Outcome = "standing_by"
				}
				return nil
			case err != nil:
				return explain("purge", err)
			case last.deleted < purgeBatch:
				return nil
			}
			pause = restAfter(time.Since(start) - pause)
		}
	})
	return deleted, err
}

// restAfter is the pause after a batch. On a server that is slow now, a purge is at work for
// no more than half of the time.
func restAfter(batch time.Duration) time.Duration { return max(purgePace-batch, batch) }

func (s *Store) purgeBatch(ctx context.Context, pause time.Duration, from *int64) (batch, error) {
	if err := sleep(ctx, pause); err != nil {
		return batch{}, err
	}
	return s.purgeBatchIf(ctx, s.cfg.MaxIdle, from, func(pgx.Tx, *statements) error { return nil })
}

// errNotOurTurn: another process is at the purge.
var errNotOurTurn = errors.New("another purge is at work")

// purgeBatchInTurn takes turns by the batch: a lock that outlives a transaction
// would be session state, which a pooler gives to others. It pauses while it has
// the turn: if it gave the turn up first, another process would delete meanwhile,
// and together they would delete more than one may. The transaction has no snapshot
// while it pauses, and holds no vacuum back.
func (s *Store) purgeBatchInTurn(ctx context.Context, pause time.Duration, from *int64) (batch, error) {
	if pause == 0 { // the turn may just have been another's, who has not paused yet
		pause = purgePace
	}
	return s.purgeBatchIf(ctx, s.maxIdleWith(pause), from, func(tx pgx.Tx, sql *statements) error {
		var ours bool
		if err := tx.QueryRow(ctx, sql.purgeTurn).Scan(&ours); err != nil {
			return err
		}
		if !ours {
			return errNotOurTurn
		}
		return sleep(ctx, pause)
	})
}

func (s *Store) purgeBatchIf(ctx context.Context, maxIdle time.Duration, from *int64, allowed func(pgx.Tx, *statements) error) (done batch, err error) {
	// A process that freezes here must not keep the keys it has locked, nor the turn.
	err = s.change(ctx, maxIdle, func(tx pgx.Tx, sql *statements) error {
		if err := allowed(tx, sql); err != nil {
			return err
		}
		done, err = sql.purgeIn(ctx, tx, from)
		if err == nil && done.deleted == 0 && from == nil && !sql.distributed {
			done, err = sql.purgeAgain(ctx, tx)
		}
		return err
	})
	if err != nil {
		return batch{}, err
	}
	return done, nil
}

// purgeIn deletes one batch.
func (sql *statements) purgeIn(ctx context.Context, tx pgx.Tx, from *int64) (done batch, err error) {
	var since *pgtype.Interval
	if from != nil {
		since = &pgtype.Interval{Microseconds: *from, Valid: true}
	}
	rows, err := tx.Query(ctx, sql.purge, purgeBatch, since)
	if err != nil {
		return batch{}, err
	}
	var due *int64
	_, err = pgx.ForEachRow(rows, []any{&due}, func() error {
		if due != nil && (done.to == nil || *due > *done.to) {
			done.to = due
		}
		return nil
	})
	done.deleted = rows.CommandTag().RowsAffected()
	return done, err
}
