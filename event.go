package idempotency

import (
	"context"
	"errors"
	"time"
)

// An Event says how one operation of a Store went. It holds no text of the key
// and no result.
type Event struct {
	// Operation is "Do", "DoTx", "Get", "All", "Delete" or "Purge".
	Operation string

	// Duration of the whole operation, waiting included.
	Duration time.Duration

	// Waited is the part of Duration spent on waiting for another call.
	Waited time.Duration

	// Runs is how often the function was run: 0 for a replay, more than 1 after
	// a serialization failure, a deadlock or a lost connection.
	Runs int

	// Replayed, as returned by Do and DoTx.
	Replayed bool

	// InDoubt: the answer to a COMMIT was lost, and the operation found out
	// whether it had taken effect.
	InDoubt bool

	// Deleted is the number of records removed by Delete or Purge.
	Deleted int64

	// Err is what the operation returned. When the function panicked or ended
	// its goroutine it is an error that says so.
	Err error
}

// errEnded is what Event.Err says when an operation did not return.
var errEnded = errors.New("idempotency: the function panicked or ended its goroutine")

// observed runs one operation and reports it, also when it panics.
func (s *Store) observed(ctx context.Context, operation string, run func(*Event) error) error {
	event := Event{Operation: operation, Err: errEnded}
	start := time.Now()
	defer func() {
		if s.cfg.Observe != nil {
			event.Duration = time.Since(start)
			s.cfg.Observe(ctx, event)
		}
	}()
	event.Err = run(&event)
	return event.Err
}
