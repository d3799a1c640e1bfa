package recipes

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

// A cronJob runs once for each slot of its schedule, in whichever process is first. Every
// process runs all jobs, so that none is needed and there is no leader.
type cronJob struct {
	store *idempotency.Store
	name  string
	every time.Duration
	work  func(ctx context.Context, tx pgx.Tx, slot time.Time) error
}

// run runs the job until ctx ends. It begins with the latest slot: if every process was down
// when it came, it is caught up with, and otherwise this is a replay.
func (j *cronJob) run(ctx context.Context) error {
	for slot := time.Now().Truncate(j.every); ; slot = slot.Add(j.every) {
		if err := sleep(ctx, time.Until(slot)); err != nil {
			return err
		}
		for attempt := 1; ; attempt++ {
			err := j.runSlot(ctx, slot)
			what, after := settle(err, attempt)
			if what != retry {
				break // a deadLetter is for the log: the slot is given up, and the next one comes
			}
			if err := sleep(ctx, after); err != nil {
				return err
			}
		}
	}
}

// runSlot takes the time that was planned. Not time.Now(): no two processes would have the
// same key, and a timer that is early would run the slot before. UTC, because processes can
// have different time zones.
func (j *cronJob) runSlot(ctx context.Context, slot time.Time) error {
	key := idempotency.Key{Scope: "cron " + j.name, ID: slot.UTC().Format(time.RFC3339Nano)}
	_, _, err := idempotency.Do(ctx, j.store, key, func(ctx context.Context, tx pgx.Tx) (time.Time, error) {
		return slot, j.work(ctx, tx, slot)
	})
	return err
}
