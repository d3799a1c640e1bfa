package idempotency

// LockID is the number of a key's advisory lock.
func LockID(key Key) int64 { return key.lockID() }
