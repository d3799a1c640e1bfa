package idempotency

import (
	"context"
	"errors"
	"time"
)

// An Event says how one operation of a Store went. It holds no result.
type Event struct {
	// Operation is "Do", "DoTx", "QueryRow", "Query", "Procedure", "Get", "All", "Delete",
	// "Purge", "Settle" or "Discard". What Complete goes on with is a "Procedure". In a
	// procedure, each run of a step's or a call's function is a "Step" or a "Call". One
	// whose value is recorded does not run, and is no operation.
	Operation string

	// Name of the procedure, or of its step or call.
	Name string

	// Outcome of the first five is "executed", "replayed" (also after a wait, and
	// when its own commit was in doubt), "in_progress", "key_reused", "unfinished" (see
	// [ErrUnfinished]), "outcome_unknown" or "failed", as it is whenever the function
	// returned an error. Of a Step or a Call it is "executed" or "failed": a step's effects
	// are committed later, with the next one. Of the others it is "done", "not_found",
	// "in_progress", "unfinished" or "failed", and of a Purge "standing_by" if it has
	// deleted nothing because, in a loop of [Store.PurgeEvery], another process is at it.
	Outcome string

	// Key of the operation; the zero Key without [Config.ObserveKeys].
	Key Key

	// Origin is what [Config.Trace] has said for the call whose function made
	// the result: of a replay, an earlier one.
	Origin string

	// Duration of the whole operation, waiting included.
	Duration time.Duration

	// Waited is the part of Duration spent on waiting for another call with the key, or
	// of a Procedure for a place among the calls under way (see [Config.CallPool]).
	Waited time.Duration

	// Runs is how often the function was run: 0 for a replay, more than 1 after
	// a serialization failure, a deadlock, a lost connection, or, of a Procedure, a wait
	// for a place among the calls under way.
	Runs int

	// InDoubt is empty unless the answer to a COMMIT was lost. Then it is what
	// the operation found out about it: "committed", "aborted" or "unknown".
	InDoubt string

	// Deleted is the number of records removed by Delete or Purge, or 1 of a Discard.
	Deleted int64

	// Err is what the operation returned. When the function panicked or ended
	// its goroutine it is an error that says so.
	Err error
}

// errEnded is what Event.Err says when an operation did not return.
var errEnded error = endedError{}

type endedError struct{}

func (endedError) Error() string {
	return "idempotency: the function panicked or ended its goroutine"
}

// ErrorType is what telemetry calls the error by: OpenTelemetry asks for it,
// where all others have their Go type.
func (endedError) ErrorType() string { return "panic" }

// observed runs one operation and reports it, also when it panics. The outcome
// of a success is "done" unless body says otherwise.
//
// The event is the caller's, and body has it from there: one that was made here
// and handed to body would be allocated for every operation, observed or not.
func (s *Store) observed(ctx context.Context, operation string, key Key, event *Event, body func(context.Context) error) error {
	*event = Event{Operation: operation, Outcome: "done", Err: errEnded}
	if s.cfg.Trace != nil {
		ctx, event.Origin = s.cfg.Trace(ctx, operation)
		if validateText("origin", event.Origin) != nil {
			event.Origin = ""
		}
	}
	start := time.Now()
	defer func() {
		if s.cfg.Observe != nil {
			event.Duration = time.Since(start)
			event.conclude()
			if s.cfg.ObserveKeys {
				event.Key = key
			}
			s.cfg.Observe(ctx, *event)
		}
	}()
	event.Err = body(ctx)
	return event.Err
}

// observed runs a step or a call and reports it, as an operation within that of the
// procedure.
func (p *progress) observed(ctx context.Context, operation, name string, body func(context.Context) error) error {
	var event Event
	return p.c.store.observed(ctx, operation, p.c.key, &event, func(ctx context.Context) error {
		event.Name, event.Outcome = name, "executed"
		err := body(ctx)
		if err != nil {
			event.Outcome = "failed"
		}
		return err
	})
}

// conclude makes the outcome agree with the error.
func (e *Event) conclude() {
	switch {
	case e.Err == nil, e.Outcome == "failed": // whatever another call's error in it says
	case errors.Is(e.Err, ErrOutcomeUnknown):
		e.Outcome = "outcome_unknown"
	case errors.Is(e.Err, ErrKeyReused):
		e.Outcome = "key_reused"
	case errors.Is(e.Err, ErrInProgress):
		e.Outcome = "in_progress"
	case errors.Is(e.Err, ErrNotFound):
		e.Outcome = "not_found"
	case errors.Is(e.Err, ErrUnfinished):
		e.Outcome = "unfinished"
	default:
		e.Outcome = "failed"
	}
}
