package idemhttp

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

func TestRetryAfterInBothForms(t *testing.T) {
	t.Parallel()
	const date = "Tue, 01 Jan 2030 12:00:00 GMT"
	for _, test := range []struct {
		name, value, date string
		want              time.Duration
		said              bool
	}{
		{name: "not sent"},
		{name: "seconds", value: "120", want: 2 * time.Minute, said: true},
		{name: "seconds with spaces around", value: " 7\t", want: 7 * time.Second, said: true},
		{name: "zero", value: "0", said: true},
		{name: "more seconds than a duration holds", value: "9223372036854775807", want: maxRetryAfter, said: true},
		{name: "more seconds than an integer holds", value: "99999999999999999999999", want: maxRetryAfter, said: true},
		{name: "negative", value: "-1"},
		{name: "signed", value: "+1"},
		{name: "fraction", value: "1.5"},
		{name: "duration", value: "1s"},
		{name: "words", value: "soon"},
		{name: "date, by the clock of the server", value: "Tue, 01 Jan 2030 12:00:30 GMT", date: date, want: 30 * time.Second, said: true},
		{name: "date in the past", value: "Tue, 01 Jan 2030 11:59:59 GMT", date: date, said: true},
		{name: "date in RFC 850 form", value: "Tuesday, 01-Jan-30 12:00:05 GMT", date: date, want: 5 * time.Second, said: true},
		{name: "date in asctime form", value: "Tue Jan  1 12:00:09 2030", date: date, want: 9 * time.Second, said: true},
		{name: "date in the far future", value: "Fri, 31 Dec 9999 23:59:59 GMT", date: date, want: maxRetryAfter, said: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			resp := &http.Response{Header: http.Header{}}
			resp.Header.Set("Retry-After", test.value)
			resp.Header.Set("Date", test.date)
			if got, said := retryAfter(resp); got != test.want || said != test.said {
				t.Errorf("retryAfter is %v, %v, want %v, %v", got, said, test.want, test.said)
			}
		})
	}
}

func TestRetryAfterDateWithoutDateIsByTheOwnClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		resp := &http.Response{Header: http.Header{}}
		resp.Header.Set("Retry-After", time.Now().Add(42*time.Second).UTC().Format(http.TimeFormat))
		if got, said := retryAfter(resp); got != 42*time.Second || !said {
			t.Errorf("retryAfter is %v, %v, want 42s", got, said)
		}
	})
}
