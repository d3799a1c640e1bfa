package idemhttp_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/pgidem/idempotency/idemhttp"
)

// A server that fails once, and then executes the charge.
func flakyPayments() *httptest.Server {
	first := ""
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Idempotency-Key")
		if first == "" {
			first = key
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "charged, same key: %t", key == first)
	}))
}

func ExampleTransport() {
	payments := flakyPayments()
	defer payments.Close()

	client := &http.Client{Transport: &idemhttp.Transport{}}
	resp, err := client.Post(payments.URL+"/charges", "application/json", strings.NewReader(`{"amount": 100}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	fmt.Printf("%s: %s\n", resp.Status, body)
	// Output: 201 Created: charged, same key: true
}

func ExampleSent() {
	payments := flakyPayments()
	defer payments.Close()

	client := &http.Client{Transport: &idemhttp.Transport{MaxAttempts: 4, MaxElapsed: 10 * time.Second}}
	resp, err := client.Post(payments.URL+"/charges", "application/json", strings.NewReader(`{"amount": 100}`))
	key, attempts := idemhttp.Sent(resp, err) // for the log, also of an error
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	fmt.Printf("a key of %d bytes, %d attempts\n", len(key), attempts)
	// Output: a key of 36 bytes, 2 attempts
}

// An operation that has to survive its process has its key made and kept
// before the first request. Whoever sends the request again, sends that key.
func ExampleWithKey() {
	var key string
	payments := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key = r.Header.Get("Idempotency-Key")
	}))
	defer payments.Close()

	order := struct{ ID, ChargeKey string }{"order 42", "018f4d7e-7c30-7a52-9d5c-2f6d3a1b0c4e"} // idemhttp.NewID()
	// ... the order is stored ...

	ctx := idemhttp.WithKey(context.Background(), order.ChargeKey)
	req, err := http.NewRequestWithContext(ctx, "POST", payments.URL+"/charges", strings.NewReader(`{"amount": 100}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	client := &http.Client{Transport: &idemhttp.Transport{}}
	resp, err := client.Do(req)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status, key)
	// Output: 200 OK "018f4d7e-7c30-7a52-9d5c-2f6d3a1b0c4e"
}

func ExampleNewID() {
	first, second := idemhttp.NewID(), idemhttp.NewID()
	fmt.Println(len(first), first < second)
	// Output: 36 true
}
