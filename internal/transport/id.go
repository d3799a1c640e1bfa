package transport

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"sync/atomic"
	"time"
)

// NewID returns a new UUIDv7 in its text form: idemhttp.NewID says what it promises.
func NewID() string {
	return uuidText(tick(&lastTick, time.Now()))
}

// lastTick is the newest time in an id of this process. Time-ordered keys of
// one process need one counter, as crypto/rand has one source.
var lastTick atomic.Int64

// tick is the time in units of 1/4096 ms since 1970 (RFC 9562, section 6.2,
// method 3), or one more than the last tick if that is not earlier: when the
// clock stands still or goes back, ids run ahead of it.
func tick(last *atomic.Int64, now time.Time) int64 {
	next := now.UnixMilli()<<12 | int64(now.Nanosecond()%1e6)<<12/1e6
	for {
		prev := last.Load()
		next = max(next, prev+1)
		if last.CompareAndSwap(prev, next) {
			return next
		}
	}
}

func uuidText(tick int64) string {
	var id [16]byte
	binary.BigEndian.PutUint64(id[:], uint64(tick)>>12<<16|7<<12|uint64(tick)&0xfff)
	rand.Read(id[8:]) // never fails: it ends the process instead
	id[8] = id[8]&0x3f | 0x80

	var text [36]byte
	hex.Encode(text[:8], id[:4])
	for group, at := range [...]int{8, 13, 18} {
		text[at] = '-'
		hex.Encode(text[at+1:at+5], id[4+2*group:6+2*group])
	}
	text[23] = '-'
	hex.Encode(text[24:], id[10:])
	return string(text[:])
}
