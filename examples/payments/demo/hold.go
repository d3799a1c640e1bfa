package demo

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// A held account cannot be debited: whoever charges it hangs in the middle of a
// transaction, with the charge written and not committed.
type held struct {
	tx   pgx.Tx
	done bool
}

// hold locks the account's row, but not against the foreign keys of new charges.
func (d *demo) hold(ctx context.Context, account string) (*held, error) {
	tx, err := d.pool.Begin(ctx)
	if err != nil {
		return nil, err
	}
	h := &held{tx: tx}
	if _, err := tx.Exec(ctx, `select from accounts where id = $1 for no key update`, account); err != nil {
		h.release()
		return nil, fmt.Errorf("holding the account %s: %w", account, err)
	}
	return h, nil
}

func (h *held) release() {
	if h.done {
		return
	}
	h.done = true
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_ = h.tx.Rollback(ctx)
}

// waiting waits until a process hangs at a held account, and says which.
func (d *demo) waiting(ctx context.Context) (process int, err error) {
	const sql = `
select split_part(application_name, '-', 2)::int - 1
from pg_stat_activity
where datname = current_database() and application_name like 'payments-%'
	and wait_event_type = 'Lock' and query like 'update accounts%'`
	err = until(ctx, "a process waits for the account", func() (bool, error) {
		err := d.pool.QueryRow(ctx, sql).Scan(&process)
		if err == pgx.ErrNoRows {
			return false, nil
		}
		return err == nil, err
	})
	return process, err
}
