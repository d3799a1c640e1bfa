package idempotency

import "context"

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
