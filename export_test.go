package idempotency

import (
	"context"
	"errors"
	"net"
	"reflect"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// LockID is the number of a key's advisory lock.
func LockID(key Key) int64 { return key.lockID() }

// Observed is an operation that does nothing but to report itself.
func (s *Store) Observed(ctx context.Context) error {
	var event Event
	return s.observed(ctx, "Get", Key{}, &event, func(context.Context) error {
		event.Deleted++
		return nil
	})
}

// Waiting is the number of calls that wait at the gate for key.
func (s *Store) Waiting(key Key) int {
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	f := s.gate.flights[gateKey{key.Scope, key.ID}]
	if f == nil {
		return 0
	}
	return f.waiters.Len()
}

// ErrLost is the error of the COMMIT that Resolve asks about.
var ErrLost = errors.New("the connection was lost")

// Resolve is what a call does whose COMMIT, sent that long ago, was lost, and
// which may not run again.
func (s *Store) Resolve(ctx context.Context, key Key, ago time.Duration) (found bool, err error) {
	lead, _, err := s.gate.enter(ctx, key, -1)
	if err != nil {
		return false, err
	}
	c := &invocation{store: s, key: key, event: new(Event), lead: lead}
	defer c.leave()
	_, answer, err := c.resolve(ctx, &failure{err: ErrLost, inDoubt: true, sent: time.Now().Add(-ago)})
	return answer != nil, err
}

// Knows reports whether key is in the memory of s, which Forget takes it out of.
func (s *Store) Knows(key Key) bool { return s.memory.knows(key) }
func (s *Store) Forget(key Key)     { s.memory.forget(key) }

// ClaimGrace is how long an answer is waited for when the context has ended.
const ClaimGrace = claimGrace

// EndedGrace is what the end of a context does after the statements.
func EndedGrace(wire net.Conn) (begin func()) {
	g := &grace{wire: wire, length: claimGrace}
	g.end()
	return g.begin
}

// PoolOf is the pool of a Store.
func PoolOf(s *Store) *pgxpool.Pool { return s.pool }

// CommitBy replaces the COMMIT of s by a statement that Config refuses.
func (s *Store) CommitBy(query string) { s.cfg.TxOptions.CommitQuery = query }

// Unwatched reports whether s does without client_connection_check_interval.
func Unwatched(s *Store) bool { return s.unwatched.Load() }

// PurgeBatch is one transaction of Purge.
func (s *Store) PurgeBatch(ctx context.Context) (int64, error) {
	done, err := s.purgeBatch(ctx, 0, nil)
	return done.deleted, err
}

// GuardSQL is sent before the statement of QueryRow.
const GuardSQL = guardSQL

// LockOf is the statement that takes key's lock, if it is free, on the table that s has found.
func (s *Store) LockOf(key Key) (sql string, args []any) {
	statements := s.table.current.Load()
	return statements.lock, statements.lockArgs(s.keyArgs(key))
}

// StatementsOnCitus are those on a table that Citus distributes, by the names of their fields.
func StatementsOnCitus() map[string]string {
	all := map[string]string{}
	var add func(prefix string, v reflect.Value)
	add = func(prefix string, v reflect.Value) {
		for i := range v.NumField() {
			switch f, name := v.Field(i), prefix+v.Type().Field(i).Name; {
			case f.Kind() == reflect.String:
				all[name] = f.String()
			case name == "journal":
				add("journal.", f)
			}
		}
	}
	add("", reflect.ValueOf(newStatements("s", true, true)).Elem())
	return all
}

// LostNode is what a Store makes of an error of that code.
func LostNode(distributed bool, code string) bool {
	return newStatements("s", true, distributed).lostNode(&pgconn.PgError{Code: code, Severity: "ERROR"})
}

// Distributed reports whether s has found that Citus distributes its table.
func (s *Store) Distributed() bool {
	sql := s.table.current.Load()
	return sql != nil && sql.distributed
}

// RememberedTexts remembers so many texts of statements, and forgets the first.
func RememberedTexts(n int) (kept, after int64) {
	sql := newStatements("s", true, false)
	for i := range n {
		sql.effects.remember(effectKey{sql: strconv.Itoa(i)}, &effect{})
	}
	kept = sql.effects.n.Load()
	(&operation{sql: "0"}).forget(sql)
	return kept, sql.effects.n.Load()
}

// PauseAfter is the pause before Complete tries an operation again.
func PauseAfter(attempts int) time.Duration { return pauseAfter(attempts) }

// Says are the names of the predicates on errors that hold for err.
func Says(err error) (names []string) {
	for _, p := range []struct {
		name  string
		holds func(error) bool
	}{
		{"conflicted", conflicted}, {"lostClaim", lostClaim}, {"provesAbort", provesAbort}, {"stalePlan", stalePlan},
		{"endedForItsTime", endedForItsTime}, {"lostConnection", lostConnection}, {"refusedByPolicy", refusedByPolicy},
		{"misconfigured", misconfigured}, {"missingOperations", missingOperations}, {"saysElsewhere", saysElsewhere},
	} {
		if p.holds(err) {
			names = append(names, p.name)
		}
	}
	return names
}

// RollbackToSavepoint fails where no DoTx is at work in the transaction.
var RollbackToSavepoint = rollbackToSQL

// RestAfter is the pause of a purge after a batch.
func RestAfter(batch time.Duration) time.Duration { return restAfter(batch) }

// MaxIdleWith is what a transaction with a turn has in the place of Config.MaxIdle.
func (s *Store) MaxIdleWith(silence time.Duration) time.Duration { return s.maxIdleWith(silence) }

// PurgeBy is Purge by another step, which says whether its batch was full.
func (s *Store) PurgeBy(ctx context.Context, step func(pause time.Duration) (full bool)) error {
	_, err := s.purge(ctx, func(_ context.Context, pause time.Duration, _ *int64) (batch, error) {
		if step(pause) {
			return batch{deleted: purgeBatch}, nil
		}
		return batch{}, nil
	})
	return err
}

// Retried makes an operation as those other than calls are made.
func (s *Store) Retried(ctx context.Context, operation func() (executed bool, err error)) error {
	return s.retried(ctx, operation)
}

// ImpatientBound is how long a call with a negative Config.Wait asks again.
const ImpatientBound = impatientBound

// Pauses are the first n pauses of a call that waits.
func Pauses(n int) (all []time.Duration) {
	var b backoff
	for range n {
		all = append(all, b.next())
	}
	return all
}
