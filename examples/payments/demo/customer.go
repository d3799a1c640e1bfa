package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/pgidem/idempotency/idemhttp"
)

// An order is what a customer wants to pay for. Its key is made and kept with
// it, before it is sent for the first time.
type order struct {
	Account, APIKey string
	Reference       string
	Amount          int64 // in cents
	Key             string
	Card            string // of a ride; a charge has none
}

func (o order) String() string {
	return fmt.Sprintf("%-9s %6s from %-6s", o.Reference, money(o.Amount), o.Account)
}

// An answer is what the customer gets in the end.
type answer struct {
	Key      string
	Status   int
	Replayed bool
	Body     string
}

// newClient is how a program should talk to the service: the Transport repeats
// what fails, with the same key. Each customer has connections of their own.
func newClient() *http.Client {
	return &http.Client{Transport: &idemhttp.Transport{Base: &http.Transport{}}}
}

// pay sends an order until there is an answer. The Transport already repeats
// what fails; what is left is an answer that breaks off in its body, and a
// Transport that has given up on 5xx, or on 409: still in flight. The key of the order makes both safe.
func (d *demo) pay(ctx context.Context, o order) (answer, error) {
	client := newClient()
	defer client.CloseIdleConnections()
	for n := 1; ; n++ {
		a, err := d.send(idemhttp.WithKey(ctx, d.keyOf(o, n)), client, o)
		if err == nil && a.Status < 500 && a.Status != http.StatusConflict {
			a.Key = o.Key
			return a, nil
		}
		if ctx.Err() != nil {
			return answer{}, fmt.Errorf("no answer to %s: %w", o.Reference, err)
		}
	}
}

func (d *demo) send(ctx context.Context, client *http.Client, o order) (answer, error) {
	path, what := "/charges", map[string]any{"amount": o.Amount, "reference": o.Reference}
	if o.Card != "" {
		path, what = "/rides", map[string]any{"amount": o.Amount, "card": o.Card}
	}
	body, err := json.Marshal(what)
	if err != nil {
		return answer{}, err
	}
	req, err := http.NewRequestWithContext(ctx, "POST", d.proxy.url+path, strings.NewReader(string(body)))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+o.APIKey)
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{
		Status:   resp.StatusCode,
		Replayed: resp.Header.Get("Idempotent-Replayed") == "true",
		Body:     strings.TrimSpace(string(text)),
	}, err
}
