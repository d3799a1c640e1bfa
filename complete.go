package idempotency

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"runtime/debug"
	"strings"
	"time"
	"unicode"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/pgidem/idempotency/internal/bytea"
)

// pendingSQL is one page of the operations that have not progressed since $1, after the
// place $2, $3, $4. It reads the whole table, which has only what has not ended. So it is
// behind readAllSQL: with sequential scans off, PostgreSQL believes it to be so expensive
// that it compiles it first, for a fifth of a second.
const pendingSQL = `
select id, scope, name, fingerprint, input, labels, pg_catalog.cardinality(results), number::text, attempts, coalesce(error, ''::text),
	` + timeHead + `started_at` + timeTail + `, ` + timeHead + `progressed_at` + timeTail + `, ` + timeHead + `due_at` + timeTail + `,
	due_at <= clock_timestamp()
from idempotency_operations
where progressed_at <= clock_timestamp() - $1::interval
	and (due_at > 'epoch'::timestamptz + $2::interval or due_at = 'epoch'::timestamptz + $2::interval and (id > $3::text or id = $3::text and scope > $4::text))
order by due_at, id, scope
limit $5::bigint`

const readAllSQL = `select ` + sameTableSQL

// attemptFailedSQL makes the operation due again after a pause.
const attemptFailedSQL = `
update idempotency_operations
set attempts = attempts + 1, error = $4::text,
	due_at = clock_timestamp() + $5::interval
where id = $1::text and scope = $2::text and number = $3::uuid`

// settleSQL records the outcome of a call, if that is what the operation waits for.
const settleSQL = `
update idempotency_operations
set results = pg_catalog.array_append(results, $4::bytea), progressed_at = clock_timestamp(), due_at = clock_timestamp(), attempts = 0, error = null
where id = $1::text and scope = $2::text and pg_catalog.cardinality(labels) = pg_catalog.cardinality(results) + 1
	and labels[pg_catalog.cardinality(labels)] = any($3::text[])`

// An Unfinished operation of a [Procedure] has begun and has not ended. All times are of
// the database's clock.
type Unfinished struct {
	Key       Key
	Procedure string          // its name
	Input     json.RawMessage // of the call that began it
	Done      []string        // the steps and calls that are recorded, such as "step create"

	// Begun is the call whose outcome is not known, such as "call charge", and was begun at
	// ProgressedAt. It is also a step whose function has sent COMMIT as SQL: see
	// [ErrAbandoned]. Empty: nothing is under way but, perhaps, a step.
	Begun string

	// CallKey is the key that the call in Begun sends, by which it is found at the other
	// side. It is made with this Store's [Config.CallNamespace].
	CallKey string

	StartedAt    time.Time
	ProgressedAt time.Time

	// Attempts of Complete that have failed, the error of the last one, of which 1,000
	// bytes are kept, and when the next one is due.
	Attempts int
	Error    string
	DueAt    time.Time

	number string
	due    bool
}

// pendingPage is the number of operations that Pending reads at a time.
const pendingPage = 100

// Pending returns the operations of procedures that have begun and not ended, and have not
// progressed for that long, those that are due first to be completed first. It holds no
// connection while the caller looks at one.
func (s *Store) Pending(ctx context.Context, olderThan time.Duration) iter.Seq2[Unfinished, error] {
	return func(yield func(Unfinished, error) bool) {
		var last Unfinished
		last.DueAt = time.UnixMicro(timeBegin)
		for {
			page, err := s.pending(ctx, olderThan, last)
			if err != nil {
				yield(Unfinished{}, explain("list the unfinished operations", err))
				return
			}
			for _, u := range page {
				if !yield(u, nil) {
					return
				}
				last = u
			}
			if len(page) < pendingPage {
				return
			}
		}
	}
}

// timeBegin is before all times that recordColumns can show, in microseconds since 1970.
const timeBegin = -62_135_596_800_000_001

func (s *Store) pending(ctx context.Context, olderThan time.Duration, after Unfinished) (page []Unfinished, err error) {
	place := pgtype.Interval{Microseconds: after.DueAt.UnixMicro(), Valid: true}
	args := []any{interval(olderThan), place, after.Key.ID, after.Key.Scope, pendingPage}
	err = s.queryBehind(ctx, func(sql *statements) string { return sql.journal.readAll }, func(sql *statements) string { return sql.journal.pending }, args, func(results pgx.BatchResults) error {
		rows, err := results.Query()
		if err != nil {
			return err
		}
		page, err = pgx.CollectRows(rows, scanUnfinished)
		for i := range page {
			if name, isCall := strings.CutPrefix(page[i].Begun, aCall+" "); isCall {
				page[i].CallKey = s.callKey(page[i].Key, name)
			}
		}
		return err
	})
	return page, err
}

func scanUnfinished(row pgx.CollectableRow) (u Unfinished, err error) {
	var fingerprint, input bytea.Bytes
	var results int
	var started, progressed, due int64
	err = row.Scan(&u.Key.ID, &u.Key.Scope, &u.Procedure, &fingerprint, &input, &u.Done, &results, &u.number, &u.Attempts, &u.Error,
		&started, &progressed, &due, &u.due)
	copy(u.Key.Fingerprint[:], fingerprint)
	u.Input = json.RawMessage(input)
	u.StartedAt, u.ProgressedAt, u.DueAt = time.UnixMicro(started), time.UnixMicro(progressed), time.UnixMicro(due)
	if results < len(u.Done) {
		u.Begun, u.Done = u.Done[results], u.Done[:results]
	}
	return u, err
}

// A Completable is a [Procedure], of any types.
type Completable interface {
	name() string
	complete(ctx context.Context, s *Store, u Unfinished) (replayed, ran bool, err error)
}

func (p Procedure[In, Out]) name() string { return p.Name }

func (p Procedure[In, Out]) complete(ctx context.Context, s *Store, u Unfinished) (replayed, ran bool, err error) {
	w := &course{name: p.Name, number: u.number}
	defer func() {
		ran = w.ran
		if panicked := recover(); panicked != nil { // it is not to be in the way of others
			err = fmt.Errorf("panic: %v\n\n%s", panicked, debug.Stack())
		}
	}()
	_, replayed, err = p.call(ctx, s, u.Key, w)
	return replayed, ran, err
}

const (
	// completeBound is how long Complete works at one operation.
	completeBound = time.Minute

	// completePage is the number of operations that one Complete goes on with.
	completePage = 1000

	// keptError is how much of an attempt's error is kept, in bytes.
	keptError = 1000
)

// Complete goes on with the operations of these procedures that have not progressed for
// that long, one after the other, each for a minute at most if its functions heed their
// contexts, and returns how many it has ended. It may run beside calls, and on every
// server: it passes over what another attempt is working at, and what would have to wait
// for a place among the calls under way. Choose olderThan longer than a client waits
// before it tries again.
//
// An attempt that fails, or panics, is recorded with its error, which [Store.Pending]
// shows. The operation is due again after a second, and after each failure twice as long,
// up to an hour, so that one that never succeeds is not in the way of others. Failures of
// attempts are joined in the error; one call goes on with 1,000 operations at most. When
// ctx ends, Complete returns its error.
func (s *Store) Complete(ctx context.Context, olderThan time.Duration, procedures ...Completable) (ended int, err error) {
	ended, failures, err := s.completeWhile(ctx, olderThan, procedures, func() error { return nil })
	return ended, errors.Join(append(failures, err)...)
}

// completeWhile returns the failures of attempts, and apart from them what keeps it from
// completing.
func (s *Store) completeWhile(ctx context.Context, olderThan time.Duration, procedures []Completable, mayGoOn func() error) (ended int, failures []error, err error) {
	known := make(map[string]Completable)
	for _, p := range procedures {
		if known[p.name()] != nil {
			return 0, nil, fmt.Errorf("idempotency: Complete: two procedures have the name %q", p.name())
		}
		known[p.name()] = p
	}
	tried := 0
	for u, err := range s.Pending(ctx, olderThan) {
		if err == nil {
			err = cmp.Or(mayGoOn(), ctx.Err())
		}
		switch {
		case err != nil:
			return ended, failures, err
		case !u.due || tried == completePage: // as are all that follow
			return ended, failures, nil
		case known[u.Procedure] == nil:
			continue
		}
		tried++
		done, failed, err := s.completeOne(ctx, known[u.Procedure], u)
		switch {
		case err != nil:
			return ended, failures, err
		case failed != nil:
			failures = append(failures, failed)
		case done:
			ended++
		}
	}
	return ended, failures, nil
}

func (s *Store) completeOne(ctx context.Context, p Completable, u Unfinished) (ended bool, failed, err error) {
	bounded, cancel := context.WithTimeout(ctx, completeBound)
	defer cancel()
	replayed, ran, failed := p.complete(bounded, s, u)
	switch {
	case failed == nil && !replayed:
		return true, nil, nil
	case failed == nil || errors.Is(failed, errGone):
		return false, nil, s.tidy(ctx, u)
	case !ran && errors.Is(failed, ErrInProgress), errors.Is(failed, errNoPlace), errors.Is(failed, errElsewhere):
		return false, nil, nil // another attempt works at it, or other calls
	case ctx.Err() != nil:
		return false, nil, ctx.Err()
	}
	return false, fmt.Errorf("idempotency: completing procedure %q: %w", u.Procedure, failed), s.attemptFailed(ctx, u, failed)
}

// tidy deletes what is left of an operation that is not one any more.
func (s *Store) tidy(ctx context.Context, u Unfinished) error {
	return s.changeOperation(ctx, func(tx pgx.Tx, sql *statements) error {
		_, err := tx.Exec(ctx, sql.journal.tidy, u.Key.ID, u.Key.Scope, u.number)
		return err
	})
}

func (s *Store) attemptFailed(ctx context.Context, u Unfinished, failed error) error {
	text := strings.ReplaceAll(failed.Error(), "\x00", "")
	text = strings.ToValidUTF8(text[:min(len(text), keptError)], "")
	return s.changeOperation(ctx, func(tx pgx.Tx, sql *statements) error {
		if !canHold(tx.Conn(), text) {
			text = strings.Map(func(r rune) rune { return min(r, unicode.MaxASCII) }, text)
		}
		_, err := tx.Exec(ctx, sql.journal.failed, u.Key.ID, u.Key.Scope, u.number, text, interval(pauseAfter(u.Attempts)))
		return err
	})
}

// pauseAfter is the pause before the next attempt: it doubles, up to an hour.
func pauseAfter(attempts int) time.Duration {
	return min(time.Second<<min(attempts, 12), time.Hour)
}

// changeOperation is change, for as long as an attempt may take at most.
func (s *Store) changeOperation(ctx context.Context, do func(pgx.Tx, *statements) error) error {
	ctx, cancel := context.WithTimeout(ctx, completeBound)
	defer cancel()
	if err := s.change(ctx, s.cfg.MaxIdle, do); err != nil {
		return explain("record an attempt", err)
	}
	return nil
}

// CompleteEvery runs Complete now and then once in every interval, until ctx ends, when it
// returns the context's error. The caller owns the goroutine. It may run in every process
// of a fleet: one of them at a time is at work, the others stand by.
//
// It needs two connections of the pool. A Complete that fails is followed by the next one;
// what it went on with is reported to [Config.Observe]. It returns at once when trying
// again cannot help: a table is missing or of another version, or the role may not use it.
func (s *Store) CompleteEvery(ctx context.Context, interval, olderThan time.Duration, procedures ...Completable) error {
	if interval <= 0 {
		return fmt.Errorf("idempotency: CompleteEvery: the interval is %v: it has to be more than 0", interval)
	}
	if s.pool.Config().MaxConns < 2 {
		return errors.New("idempotency: CompleteEvery: the pool has one connection (MaxConns), and two are needed: one has the turn, the other one works")
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for ctx.Err() == nil {
		if err := s.completeInTurn(ctx, olderThan, procedures); misconfigured(err) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// completeInTurn holds a transaction that has the turn, and nothing else: no snapshot and
// no transaction id. Before each operation it asks whether it still has it: PostgreSQL
// ends the transaction of a process that is frozen.
func (s *Store) completeInTurn(ctx context.Context, olderThan time.Duration, procedures []Completable) error {
	var completed error // an attempt's failure is not one of the completer
	err := s.change(ctx, s.maxIdleWith(completeBound), func(tx pgx.Tx, sql *statements) error {
		var ours bool
		if err := tx.QueryRow(ctx, sql.journal.turn).Scan(&ours); err != nil || !ours {
			return err
		}
		_, _, completed = s.completeWhile(ctx, olderThan, procedures, func() error {
			_, err := tx.Exec(ctx, "set local idempotency.turn to 'yes'")
			return err
		})
		return nil
	})
	return cmp.Or(err, completed)
}

// completeTurnSQL is for one completer at a time: see purgeTurnSQL.
const completeTurnSQL = `select pg_try_advisory_xact_lock('idempotency_operations'::regclass::oid::integer, 0)`

// Settle enters the outcome of a call whose outcome is not known, after a person has looked
// at the other side. The call is named as in [Call] or as in Unfinished.Begun. The
// operation has not ended then: the next Do or Complete goes on behind the call, with
// outcome as its value.
//
// It is ErrInProgress while an attempt is at work, ErrNotFound when the key has no
// operation, and an error when the operation does not wait for that call. The outcome is
// stored as JSON, and its type is not checked here. If it does not fit the procedure's
// type, each later attempt is [ErrUndecodable], and only Discard helps.
func (s *Store) Settle(ctx context.Context, key Key, call string, outcome any) error {
	var event Event
	return s.observed(ctx, "Settle", key, &event, func(ctx context.Context) error {
		if err := key.validate(); err != nil {
			return err
		}
		stored, err := json.Marshal(outcome)
		if err == nil {
			err = checkSize(len(stored), s.cfg.MaxResult)
		}
		if err != nil {
			return explain("settle a call", err)
		}
		return s.changeKey(ctx, "settle a call", key, func(tx pgx.Tx, sql *statements) error {
			labels := []string{label(aCall, call)}
			if strings.HasPrefix(call, aCall+" ") {
				labels = append(labels, call)
			}
			tag, err := tx.Exec(ctx, sql.journal.settle, key.ID, key.Scope, labels, stored)
			if err != nil || tag.RowsAffected() > 0 {
				return err
			}
			there, err := sql.isUnfinished(ctx, tx, []any{key.ID, key.Scope})
			switch {
			case err != nil:
				return err
			case !there:
				return fmt.Errorf("no operation with this key waits for an outcome: it has ended, or was never begun: %w", ErrNotFound)
			}
			return fmt.Errorf("the operation does not wait for the outcome of %s: Store.Pending shows what it waits for", label(aCall, call))
		})
	})
}

// Discard deletes an operation of a procedure that has not ended, with its key, so that the
// next call begins anew. What its steps and calls have done stays done, and if a call had
// begun, it may have taken effect: look at the other side before. It is ErrInProgress
// while an attempt is at work, and ErrNotFound when the key has no such operation.
func (s *Store) Discard(ctx context.Context, key Key) error {
	var event Event
	return s.observed(ctx, "Discard", key, &event, func(ctx context.Context) error {
		if err := key.validate(); err != nil {
			return err
		}
		err := s.changeKey(ctx, "discard the operation", key, func(tx pgx.Tx, sql *statements) error {
			tag, err := tx.Exec(ctx, sql.journal.discard, key.ID, key.Scope)
			switch {
			case err != nil:
				return err
			case tag.RowsAffected() == 0:
				return ErrNotFound
			}
			_, err = tx.Exec(ctx, sql.journal.discardKey, key.ID, key.Scope)
			return err
		})
		if err == nil {
			event.Deleted = 1
		}
		return err
	})
}

// isUnfinished: the key has an operation that has not ended.
func (sql *statements) isUnfinished(ctx context.Context, q querier, key []any) (there bool, err error) {
	err = q.QueryRow(ctx, sql.journal.unfinished, key...).Scan(&there)
	return there, err
}
