package keylock

import (
	"strings"
	"testing"
)

// Processes of two releases see each other at work only if they mean the same lock.
// printf 'customer-1\0018f4d3c-0000-7000-8000-000000000001' | sha256sum
func TestNumberIsTheSameInEveryRelease(t *testing.T) {
	if got := uint64(ID("customer-1", "018f4d3c-0000-7000-8000-000000000001")); got != 0x7e4629fecf4ad88e {
		t.Errorf("%016x", got)
	}
}

func TestTextsThatAreSplitElsewhereHaveAnotherNumber(t *testing.T) {
	if ID("a", "bc") == ID("ab", "c") {
		t.Error(`("a", "bc") is ("ab", "c")`)
	}
}

func TestNumberOfTheLongestKeyIsMadeWithoutAllocation(t *testing.T) {
	text := strings.Repeat("x", 255)
	if n := testing.AllocsPerRun(100, func() { ID(text, text) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
