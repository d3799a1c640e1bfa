package idemhttp_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemhttp"
)

func TestRequestBodyOverTheLimitIs413BeforeTheClaim(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{MaxRequestBody: 100}, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	})
	for _, chunked := range []bool{false, true} {
		send := func(size int) answer {
			return b.do(server, "POST", "/", strings.Repeat("x", size), func(r *http.Request) {
				withKey(fmt.Sprint(chunked))(r)
				if chunked {
					r.ContentLength = -1
				}
			})
		}
		send(101).isProblem(t, 413, "body-too-large")
		send(100).is(t, 200, "100 <nil>", false) // the key was not touched
	}
	b.ran(2)
}

func TestBodyThatEndsEarlyIsNotExecuted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, created)
	got := raw(t, server, "POST / HTTP/1.1\r\nHost: x\r\nAccount: a\r\nIdempotency-Key: k\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 400 ") || !strings.Contains(got, "body-unreadable") {
		t.Errorf("got %q", got)
	}
	b.ran(0)
}

func TestResponseTooLargeToRecordIsSentWholeOnceAndNeverExecutedTwice(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	tests := []struct {
		name     string
		body     string
		location string
		header   string
	}{
		{"text", strings.Repeat("a", 1100), "/charges/1", "small"},
		{"text whose JSON is too large", strings.Repeat("\x01", 300), "/charges/1", "small"},
		{"bytes whose JSON is too large", strings.Repeat("\xff", 900), "/charges/1", "small"},
		{"header", "{}", "/charges/1", strings.Repeat("h", 1100)},
		{"location", "{}", "/" + strings.Repeat("l", 1100), "small"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{MaxRecord: 1000}, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.Header().Set("ETag", `"1"`)
				w.Header().Set("Content-Location", "/charges/1/now")
				w.Header().Set("X-Large", test.header)
				w.Header().Set("Location", test.location)
				w.WriteHeader(http.StatusCreated)
				fmt.Fprint(w, test.body)
			})
			first := b.post(server, "k")
			first.is(t, 201, test.body, false)
			if first.Header.Get("Idempotent-Body-Omitted") != "" || first.Header.Get("X-Large") != test.header {
				t.Errorf("the first client got %v", first.Header)
			}
			second := b.post(server, "k")
			second.is(t, 201, "", true)
			if second.Header.Get("Idempotent-Body-Omitted") != "true" || second.Header.Get("ETag") != "" || second.Header.Get("Content-Type") != "" {
				t.Errorf("the replay has %v", second.Header)
			}
			// It names a resource, and does not describe the bytes.
			if got := second.Header.Get("Content-Location"); (got == "/charges/1/now") != (test.header == "small" && test.name != "location") {
				t.Errorf("the replay has Content-Location %q", got)
			}
			if got := second.Header.Get("Location"); got != test.location && test.name != "location" {
				t.Errorf("the replay has Location %q", got)
			}
			b.ran(1)
			b.effects(1)
		})
	}
}

func TestLargestRecordFitsIntoTheStoresDefault(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var size int
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, strings.Repeat("a", size))
	})
	for i, test := range []struct {
		size    int
		omitted string
	}{{1<<20 - 200, ""}, {1 << 20, "true"}} {
		size = test.size
		key := fmt.Sprint(i)
		b.post(server, key).is(t, 200, strings.Repeat("a", size), false)
		if got := b.post(server, key).Header.Get("Idempotent-Body-Omitted"); got != test.omitted {
			t.Errorf("a body of %d: omitted %q", size, got)
		}
	}
	b.ran(2)
}

func TestMaxRecordIsWhatTheStoreTakes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.store = b.storeOn(b.pool, idempotency.Config{MaxResult: 200})
	_, err := idemhttp.New(b.store, idemhttp.Config{Scope: account, MaxRecord: 201})
	if err == nil || !strings.HasPrefix(err.Error(), "idemhttp: Config.MaxRecord is 201: ") {
		t.Errorf("MaxRecord beyond the Store's: %v", err)
	}
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, strings.Repeat("a", 300))
	})
	b.post(server, "k").is(t, 200, strings.Repeat("a", 300), false)
	b.post(server, "k").is(t, 200, "", true)
	b.ran(1)
}
