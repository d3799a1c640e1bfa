// Package keylock gives each key its place among PostgreSQL's advisory locks.
package keylock

import (
	"crypto/sha256"
	"encoding/binary"
)

// ID is the number that the statements mix with the table's oid: a SHA-256, cut to
// 64 bits. The number of a key has to be hard to hit. Whoever chooses keys could
// otherwise make one that meets another tenant's, whose calls then wait, or one that
// meets an advisory lock of the program's own.
//
// Two keys with one number lose nothing but time: the unique index decides.
func ID(scope, id string) int64 {
	var room [512]byte // for the longest key: nothing is allocated
	text := append(room[:0], scope...)
	text = append(text, 0) // no text has a NUL: ("a", "bc") is not ("ab", "c")
	text = append(text, id...)
	sum := sha256.Sum256(text)
	return int64(binary.BigEndian.Uint64(sum[:]))
}
