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
	before := c.unheld
	c.unheld = sql.nobodyAtWork(ctx, tx, c.key, f.seen)
	if !before || !c.unheld {
		return nil
	}
	return fmt.Errorf("idempotency: claim the key: nobody is at work on it, and yet this role cannot have it: a policy (row-level security) on %s hides its row, or a trigger or rule drops what a call writes: `idempotency doctor` names it", sql.table)
}

// nobodyAtWork reports whether no other transaction has the key's advisory lock, nor, if
// there is a row to be seen, locks it, as a purge does. Its transaction can only be
// rolled back afterwards.
func (sql *statements) nobodyAtWork(ctx context.Context, tx pgx.Tx, key Key, seen bool) bool {
	free, err := sql.tryLock(ctx, tx, key)
	if err == nil && free && seen {
		_, err = tx.Exec(ctx, sql.lockRow, key.ID, key.Scope)
	}
	return err == nil && free
}

// keptBack is the error of a Delete or a Purge that cannot delete what it sees and has
// locked, or may not lock what it sees.
func (sql *statements) keptBack() error {
	return fmt.Errorf("a policy (row-level security) or a trigger on %s keeps this role from deleting what it sees: `idempotency doctor` names it", sql.table)
}

// purgeAgain is for a purge that has deleted nothing. What it can lock, it must be able to
// delete, and what it sees, it must be able to lock. A row that is locked by another is no
// error.
func (sql *statements) purgeAgain(ctx context.Context, tx pgx.Tx) (done batch, err error) {
	tag, err := tx.Exec(ctx, sql.lockExpired)
	if err != nil {
		return batch{}, err
	}
	if tag.RowsAffected() == 0 {
		return batch{}, sql.checkLockable(ctx, tx)
	}
	done, err = sql.purgeIn(ctx, tx, nil)
	if err == nil && done.deleted == 0 {
		err = sql.keptBack()
	}
	return done, err
}

// checkLockable is an error where an expired row can be seen, and not be locked although
// it is not locked: a policy for updates keeps this role from it. It looks at one version
// of one row: beside calls and other purges, others come and go meanwhile.
func (sql *statements) checkLockable(ctx context.Context, tx pgx.Tx) error {
	var part, place string
	err := tx.QueryRow(ctx, sql.expired).Scan(&part, &place)
	if err != nil {
		return unlessNone(err)
	}
	lockable := false
	err = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { // a savepoint: the error is expected
		tag, err := tx.Exec(ctx, sql.lockAt, part, place)
		lockable = tag.RowsAffected() > 0
		return err
	})
	switch {
	case sqlState(err) == codeLockNotAvailable || lockable:
		return nil
	case err != nil:
		return err
	}
	var remains bool
	if err := tx.QueryRow(ctx, sql.existsAt, part, place).Scan(&remains); err != nil || !remains {
		return err
	}
	return sql.keptBack()
}

func unlessNone(err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	return err
}
