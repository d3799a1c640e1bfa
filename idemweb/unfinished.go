package idemweb

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/inspect"
)

// shownStalled is how many of the unfinished procedures are listed.
const shownStalled = 100

// A standstill is the procedures that have begun and not ended.
type standstill struct {
	Readable bool
	Records  []inspect.Record
	Backlog  *inspect.Backlog
	Bounded  bool // there are more than were read
	Now      inspect.Instant
	Window   time.Duration
}

func unfinished(r *request) (answer, error) {
	s := standstill{Window: r.store.Config().CallWindow}
	err := r.look(func(ctx context.Context, tx pgx.Tx, t *inspect.Table) error {
		o, err := t.Operations(ctx, tx)
		if err != nil {
			return err
		}
		if s.Records, s.Readable, err = t.Stalled(ctx, tx, o, shownStalled); err != nil || !s.Readable {
			return err
		}
		if s.Backlog, s.Bounded, err = t.BacklogWithin(ctx, tx, o); err != nil {
			return err
		}
		s.Now, err = t.Now(ctx, tx)
		return err
	})
	return answer{template: "unfinished", title: "Unfinished procedures", refresh: r.refresh(0), data: s}, err
}

// Late reports whether the procedure waits for a person.
func (s standstill) Late(rec inspect.Record) bool { return late(rec, s.Now, s.Window) }

// More is how many are not listed.
func (s standstill) More() int64 { return s.Backlog.Operations - int64(len(s.Records)) }
