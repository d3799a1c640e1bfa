package transport

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestIDIsAUUIDv7OfNow(t *testing.T) {
	t.Parallel()
	before := time.Now().UnixMilli()
	id := NewID()
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(id) {
		t.Errorf("%q is not the text of a UUIDv7", id)
	}
	at := idMillis(t, id)
	// Other tests of this process may have driven the ids some ticks ahead.
	if after := time.Now().UnixMilli(); at < before || at > after+1000 {
		t.Errorf("the id's time is %d, it was made from %d to %d", at, before, after)
	}
}

func TestIDHasEachBitWhereRFC9562HasIt(t *testing.T) {
	t.Parallel()
	// The time of RFC 9562, appendix A.6, with 0xcc3 in rand_a.
	id := uuidText(0x017F22E279B0<<12 | 0xcc3)
	if want := "017f22e2-79b0-7cc3-"; !strings.HasPrefix(id, want) {
		t.Errorf("id is %q, it has to begin with %q", id, want)
	}
}

func TestSixtyTwoBitsOfAnIDAreRandom(t *testing.T) {
	t.Parallel()
	var ones, zeros uint64
	for range 200 {
		id := uuidText(0)
		n, err := strconv.ParseUint(id[19:23]+id[24:], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		ones, zeros = ones|n, zeros|^n
	}
	if ones != 1<<64-1-1<<62 || zeros != 1<<63-1 { // the first two are 10
		t.Errorf("bits that were 1: %x, 0: %x", ones, zeros)
	}
}

// The fraction of a millisecond is in 12 bits (RFC 9562, section 6.2, method 3).
func TestTickIsTheTimeIn4096thsOfAMillisecond(t *testing.T) {
	t.Parallel()
	for nanos, want := range map[int64]int64{0: 0, 244: 0, 245: 1, 500_000: 2048, 999_999: 4095, 1_000_000: 4096, 7_250_000: 7*4096 + 1024} {
		if got := tick(new(atomic.Int64), time.Unix(0, nanos)); got != max(want, 1) { // later than the last, which is 0
			t.Errorf("%d ns: tick %d, want %d", nanos, got, want)
		}
	}
}

func TestIDsOfAProcessAreInOrder(t *testing.T) {
	t.Parallel()
	const goroutines, each = 8, 5000
	ids := make([][]string, goroutines)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			for range each {
				ids[i] = append(ids[i], NewID())
			}
		})
	}
	wg.Wait()
	var all []string
	for _, one := range ids {
		if !slices.IsSorted(one) {
			t.Error("the ids of one goroutine are not in order")
		}
		all = append(all, one...)
	}
	slices.Sort(all)
	if n := len(slices.Compact(all)); n != goroutines*each {
		t.Errorf("%d ids of %d are different", n, goroutines*each)
	}
}

func TestIDsGrowWhenTheClockStandsOrGoesBack(t *testing.T) {
	t.Parallel()
	var last atomic.Int64
	now := time.Date(2030, 1, 1, 0, 0, 0, 999_999_999, time.UTC)
	previous := ""
	for _, at := range []time.Time{now, now, now.Add(-time.Hour), now.Add(-time.Nanosecond), now.Add(time.Millisecond)} {
		id := uuidText(tick(&last, at))
		if id <= previous {
			t.Errorf("%s came after %s", id, previous)
		}
		previous = id
	}
	if got, want := idMillis(t, previous), now.Add(time.Millisecond).UnixMilli(); got != want {
		t.Errorf("when the clock has caught up, the id's time is %d, not %d", got, want)
	}
}

func idMillis(t *testing.T, id string) int64 {
	t.Helper()
	ms, err := strconv.ParseInt(id[:8]+id[9:13], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return ms
}

func BenchmarkNewID(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		NewID()
	}
}
