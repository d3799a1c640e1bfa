package idemhttp

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxRetryAfter is where delays are cut off, as RFC 9111, section 1.2.2, does
// for those of caches.
const maxRetryAfter = 1 << 31 * time.Second

// retryAfter returns how long after resp the server wants to be left alone
// (RFC 9110, section 10.2.3): 0 or more, in whole seconds, and false when it did
// not say or cannot be understood.
//
// An HTTP-date is taken relative to the Date of the response, so that a client
// whose clock is wrong waits as long as any other.
func retryAfter(resp *http.Response) (time.Duration, bool) {
	value := strings.Trim(resp.Header.Get("Retry-After"), " \t")
	if value == "" {
		return 0, false
	}
	if strings.Trim(value, "0123456789") == "" {
		return delaySeconds(value), true
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0, false
	}
	now, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		now = time.Now()
	}
	return min(max(at.Sub(now), 0), maxRetryAfter), true
}

// delaySeconds is the value of digits, at most maxRetryAfter.
func delaySeconds(digits string) time.Duration {
	seconds, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || seconds > int64(maxRetryAfter/time.Second) {
		return maxRetryAfter
	}
	return time.Duration(seconds) * time.Second
}
