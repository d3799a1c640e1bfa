package demo

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// A held lock makes a request of the service hang at a chosen statement of its
// transaction, for as long as the demo wants.
type held struct {
	tx   pgx.Tx
	wait string // what pg_stat_activity calls a wait for it
	done bool
}

// holdAccount makes charges of an account hang at the debit: the charge is
// written. The lock leaves the foreign keys of charges alone.
func (d *demo) holdAccount(ctx context.Context, account string) (*held, error) {
	return d.hold(ctx, "transactionid", `select from accounts where id = $1 for no key update`, account)
}

// holdRecord makes a request hang when it records its response, by a trigger in
// the demo's own database: the charge is written, and so is all else but COMMIT.
// A service that records in another transaction has committed the charge by
// then, and is found out.
func (d *demo) holdRecord(ctx context.Context, o order) (*held, error) {
	const function = `
create function demo.hang() returns trigger language plpgsql as $$
begin
	perform pg_advisory_xact_lock_shared(1, 1);
	return new;
end $$`
	const trigger = `
create trigger hang before update on idempotency_keys
for each row when (new.id = '%s') execute function demo.hang()`
	for _, sql := range []string{function, fmt.Sprintf(trigger, o.Key)} {
		if _, err := d.pool.Exec(ctx, sql); err != nil {
			return nil, fmt.Errorf("making a trigger that hangs: %w", err)
		}
	}
	return d.hold(ctx, "advisory", `select pg_advisory_xact_lock(1, 1)`)
}

func (d *demo) hold(ctx context.Context, wait, sql string, args ...any) (*held, error) {
	tx, err := d.pool.Begin(ctx)
	if err != nil {
		return nil, err
	}
	h := &held{tx: tx, wait: wait}
	if _, err := tx.Exec(ctx, sql, args...); err != nil {
		h.release()
		return nil, fmt.Errorf("taking a lock: %w", err)
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

// hanging waits until a process waits for the lock, and says which.
func (d *demo) hanging(ctx context.Context, h *held) (process int, err error) {
	const sql = `
select split_part(application_name, '-', 2)::int - 1
from pg_stat_activity
where datname = current_database() and application_name like 'payments-%'
	and wait_event_type = 'Lock' and wait_event = $1`
	err = until(ctx, "a request hangs", func() (bool, error) {
		err := d.pool.QueryRow(ctx, sql, h.wait).Scan(&process)
		if errors.Is(err, pgx.ErrNoRows) {
			return false, nil
		}
		return err == nil, err
	})
	return process, err
}

// gone waits until PostgreSQL has ended the sessions of a process: it looks once
// a second whether the client of a statement is still there, because the package
// asks it to.
func (d *demo) gone(ctx context.Context, p *process) error {
	const sql = `select count(*) from pg_stat_activity where datname = current_database() and application_name = $1`
	return until(ctx, "the sessions of a killed process have ended", func() (bool, error) {
		var sessions int
		err := d.pool.QueryRow(ctx, sql, p.name).Scan(&sessions)
		return sessions == 0, err
	})
}
