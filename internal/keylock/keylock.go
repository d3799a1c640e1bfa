// Package keylock gives each key its place among PostgreSQL's advisory locks.
package keylock

import "hash/fnv"

// ID is the number that the statements mix with the table's oid.
func ID(scope, id string) int64 {
	h := fnv.New64a()
	h.Write([]byte(scope))
	h.Write([]byte{0}) // no text has a NUL: ("a", "bc") is not ("ab", "c")
	h.Write([]byte(id))
	return int64(h.Sum64())
}
