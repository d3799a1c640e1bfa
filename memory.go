package idempotency

import (
	"context"
	"hash/maphash"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
)

// recent holds hashes of the keys that this process has recorded, or has seen recorded,
// lately: 512 KiB, for all Stores together, so that a Store for each of a thousand
// schemas costs no more than one.
var recent [1 << 16]atomic.Uint64

// A memory is what a Store finds in recent. A key that it knows is asked for by one
// plain select, without a transaction and without the advisory lock.
//
// It is a hint and never an answer: what the select finds in the table is the answer,
// and when it finds nothing, the key is claimed like any other. So a hash that is
// forgotten, or that two keys share, costs a round trip and decides nothing. That is
// why it has no lock, and no order of its changes matters.
type memory struct {
	seed maphash.Seed // of this Store; nobody outside can compute which keys meet
}

// of returns the hash of key, and its place.
func (m *memory) of(key Key) (hash uint64, place *atomic.Uint64) {
	hash = maphash.Comparable(m.seed, gateKey{key.Scope, key.ID})
	return hash, &recent[hash%uint64(len(recent))]
}

func (m *memory) remember(key Key) {
	hash, place := m.of(key)
	place.Store(hash)
}

func (m *memory) forget(key Key) {
	hash, place := m.of(key)
	place.CompareAndSwap(hash, 0)
}

func (m *memory) knows(key Key) bool {
	hash, place := m.of(key)
	return place.Load() == hash
}

// recall returns the answer to a key that the memory knows, or nil when the key has to
// be claimed: it is not known, its record is gone, or the select failed; then the claim
// fails too, and reports it.
func (c *invocation) recall(ctx context.Context) *answer {
	if !c.store.memory.knows(c.key) {
		return nil
	}
	c.lead.seal()
	var f finding
	err := c.store.query(ctx, knownOf, []any{c.key.ID, c.key.Scope}, func(results pgx.BatchResults) (err error) {
		f, err = readFound(results.QueryRow())
		return err
	})
	if err != nil || f.state != recorded {
		c.store.memory.forget(c.key)
		return nil
	}
	c.lead.share(f.answer)
	return f.answer
}
