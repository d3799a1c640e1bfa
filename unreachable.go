package idempotency

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// unreachable is the error of a key whose row a call can neither claim, read nor take
// over, although nobody is at work on it: a policy hides the row, or a trigger or rule
// drops what the call writes. To wait would be in vain. It is nil for a call in flight.
//
// That nobody is at work is asked from the second round on, and has to be so in two
// rounds, one after the other: another call can end, and its record be purged, between
// two statements of this one.
func (c *invocation) unreachable(ctx context.Context, tx pgx.Tx, sql *statements, f finding) error {
	if c.heldSince.IsZero() {
		return nil
	}
	before := c.nobody
	c.nobody = sql.nobodyAtWork(ctx, tx, c.key, f.seen)
	if !before || !c.nobody {
		return nil
	}
	return fmt.Errorf("idempotency: claim the key: nobody is at work on it, and yet this role cannot have it: a policy (row-level security) on %s hides its row, or a trigger or rule drops what a call writes: `idempotency doctor` names it", sql.table)
}

// nobodyAtWork reports whether no other transaction has the key's advisory lock, nor, if
// there is a row to be seen, locks it, as a purge does. Its transaction can only be
// rolled back afterwards.
func (sql *statements) nobodyAtWork(ctx context.Context, tx pgx.Tx, key Key, seen bool) bool {
	var free bool
	if err := tx.QueryRow(ctx, sql.lock, key.lockID()).Scan(&free); err != nil || !free {
		return false
	}
	if !seen {
		return true
	}
	_, err := tx.Exec(ctx, sql.lockRow, key.ID, key.Scope)
	return err == nil
}

// keptBack is why a delete has left a row that is there: ErrInProgress if another
// transaction has locked it. lock is a statement that fails in that case; afterwards the
// transaction can only be rolled back.
func (sql *statements) keptBack(ctx context.Context, tx pgx.Tx, lock string, args ...any) error {
	_, err := tx.Exec(ctx, lock, args...)
	switch {
	case sqlState(err) == codeLockNotAvailable:
		return ErrInProgress
	case err != nil:
		return err
	}
	return fmt.Errorf("a policy (row-level security) or a trigger on %s keeps this role from deleting what it sees: `idempotency doctor` names it", sql.table)
}

// purgeKeptBack is keptBack for a purge that has deleted nothing. That rows are locked is
// no error there.
func (sql *statements) purgeKeptBack(ctx context.Context, tx pgx.Tx) error {
	var expired bool
	if err := tx.QueryRow(ctx, sql.expired).Scan(&expired); err != nil || !expired {
		return err
	}
	savepoint, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	defer savepoint.Rollback(ctx)
	if err := sql.keptBack(ctx, savepoint, sql.lockExpired); !errors.Is(err, ErrInProgress) {
		return err
	}
	return nil
}
