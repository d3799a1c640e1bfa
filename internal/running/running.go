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

// A Function runs under a key. It is what the context carries.
type Function struct {
	key   Key
	outer *Function
	ended atomic.Bool // the context can outlive the function
}

// End has to be called when the function has ended.
func (f *Function) End() { f.ended.Store(true) }

type contextKey struct{}

// Mark returns the context for a function that runs under key.
func Mark(ctx context.Context, key Key) (marked context.Context, f *Function) {
	f = &Function{key: key, outer: innermost(ctx)}
	return context.WithValue(ctx, contextKey{}, f), f
}

// Under reports whether ctx is of a function that runs under key.
func Under(ctx context.Context, key Key) bool {
	for f := innermost(ctx); f != nil; f = f.outer {
		if f.key == key && !f.ended.Load() {
			return true
		}
	}
	return false
}

// Innermost returns the key of the innermost function that ctx is of and that
// still runs.
func Innermost(ctx context.Context) (key Key, found bool) {
	for f := innermost(ctx); f != nil; f = f.outer {
		if !f.ended.Load() {
			return f.key, true
		}
	}
	return Key{}, false
}

func innermost(ctx context.Context) *Function {
	f, _ := ctx.Value(contextKey{}).(*Function)
	return f
}
