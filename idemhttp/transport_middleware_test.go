package idemhttp_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemhttp"
)

// The client and the server of this package together: whatever connection is
// lost, an operation has one effect, and the caller its response.

func TestTransportAndMiddlewareChargeOncePerOperation(t *testing.T) {
	t.Parallel()
	const operations = 20
	b := setup(t)
	charges := b.middleware(idemhttp.Config{}).Handler(b.charging(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, "charged")
	}))
	server := b.serve(losingTheFirstTwo(charges))
	// On a connection that was used before, net/http repeats by itself.
	client := b.transport(&http.Transport{DisableKeepAlives: true})
	var wg sync.WaitGroup
	for range operations {
		wg.Go(func() {
			got := b.charged(client, server)
			got.is(t, http.StatusCreated, "charged", true)
			if _, attempts := idemhttp.Sent(got.Response, nil); attempts != 3 {
				t.Errorf("there were %d attempts", attempts)
			}
		})
	}
	wg.Wait()
	b.ran(operations)
	b.effects(operations)
}

func TestTransportWaitsForItsFirstAttemptInFlight(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.store = b.storeOn(b.pool, idempotency.Config{Wait: -1}) // 409 at once
	finish := make(chan struct{})
	charges := b.middleware(idemhttp.Config{FinishDisconnected: true}).Handler(b.charging(func(w http.ResponseWriter, r *http.Request) {
		<-finish
		_, _ = io.WriteString(w, "charged")
	}))
	var once sync.Once
	server := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		charges.ServeHTTP(conflicts{w, func() { once.Do(func() { close(finish) }) }}, r)
	}))
	impatient := &http.Transport{ResponseHeaderTimeout: 300 * time.Millisecond}
	got := b.charged(b.transport(impatient), server)
	got.is(t, http.StatusOK, "charged", true)
	if _, attempts := idemhttp.Sent(got.Response, nil); attempts < 3 {
		t.Errorf("%d attempts: no 409 was answered with another one", attempts)
	}
	b.ran(1)
	b.effects(1)
}

func (b *bundle) transport(base *http.Transport) *http.Client {
	client := &http.Client{Transport: &idemhttp.Transport{Base: base}}
	b.Cleanup(client.CloseIdleConnections)
	return client
}

// charged sends one operation through client, and reads what it gets.
func (b *bundle) charged(client *http.Client, server *httptest.Server) answer {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), "POST", server.URL+"/charges", strings.NewReader(`{"amount": 10}`))
	if err != nil {
		b.Error(err)
		return answer{Response: &http.Response{}}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Account", b.account)
	resp, err := client.Do(req)
	if err != nil {
		b.Error(err)
		return answer{Response: &http.Response{}}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.Error(err)
	}
	return answer{resp, string(text)}
}

// losingTheFirstTwo closes the connection of each key's first request before
// next has seen it, and that of the second after next has handled it.
func losingTheFirstTwo(next http.Handler) http.Handler {
	var mu sync.Mutex
	seen := map[string]int{}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Idempotency-Key")
		mu.Lock()
		seen[key]++
		n := seen[key]
		mu.Unlock()
		switch n {
		case 1:
			panic(http.ErrAbortHandler)
		case 2:
			next.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	})
}

// conflicts tells when a 409 has been written.
type conflicts struct {
	http.ResponseWriter
	seen func()
}

func (c conflicts) WriteHeader(status int) {
	c.ResponseWriter.WriteHeader(status)
	if status == http.StatusConflict {
		c.seen()
	}
}

func (c conflicts) Unwrap() http.ResponseWriter { return c.ResponseWriter }
