// Package running marks the context of a function that runs under a key, so
// that what is called with that context can be told from what is not.
package running

import (
	"context"
	"sync/atomic"
)

// A Key is the key of one store.
type Key struct {
	Store     any // compared for identity
	Scope, ID string
}

// mark is what the context carries.
type mark struct {
	key   Key
	outer *mark
	ended atomic.Bool // the context can outlive the function
}

type contextKey struct{}

// Mark returns the context for a function that runs under key, and what has to
// be called when the function has ended.
func Mark(ctx context.Context, key Key) (marked context.Context, end func()) {
	outer, _ := ctx.Value(contextKey{}).(*mark)
	m := &mark{key: key, outer: outer}
	return context.WithValue(ctx, contextKey{}, m), func() { m.ended.Store(true) }
}

// Under reports whether ctx is of a function that runs under key.
func Under(ctx context.Context, key Key) bool {
	for m := innermost(ctx); m != nil; m = m.outer {
		if m.key == key && !m.ended.Load() {
			return true
		}
	}
	return false
}

// Innermost returns the key of the innermost function that ctx is of and that
// still runs.
func Innermost(ctx context.Context) (key Key, found bool) {
	for m := innermost(ctx); m != nil; m = m.outer {
		if !m.ended.Load() {
			return m.key, true
		}
	}
	return Key{}, false
}

func innermost(ctx context.Context) *mark {
	m, _ := ctx.Value(contextKey{}).(*mark)
	return m
}
