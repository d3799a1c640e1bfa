package transport

import (
	"strings"
	"testing"
)

func TestKeyInQuotesIsTheSameKey(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		sent []string
		want string
	}{
		{nil, ""}, {[]string{""}, ""}, {[]string{"k"}, "k"}, {[]string{`"k"`}, "k"}, {[]string{`""`}, ""}, {[]string{`""k""`}, `"k"`},
		{[]string{`"`}, `"`}, {[]string{`"k`}, `"k`}, {[]string{`k"`}, `k"`}, {[]string{`k"l`}, `k"l`},
	} {
		if got, err := OneKey(row.sent); got != row.want || err != nil {
			t.Errorf("%q: %q, %v", row.sent, got, err)
		}
	}
	if got, err := OneKey([]string{"k", "k"}); err == nil || !strings.Contains(err.Error(), "2 times") {
		t.Errorf("%q, %v", got, err)
	}
}

func TestLongestKeyHas255Bytes(t *testing.T) {
	t.Parallel()
	for length, tooLong := range map[int]bool{0: false, 255: false, 256: true} {
		if err := CheckLength(strings.Repeat("k", length)); (err != nil) != tooLong || tooLong && !strings.Contains(err.Error(), "256 bytes, more than 255") {
			t.Errorf("%d bytes: %v", length, err)
		}
	}
}
