package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/pgidem/idempotency/idemhttp"
)

// A cardProvider is the client of one.
type cardProvider struct {
	url    string
	client *http.Client
}

// newCardProvider: it sends a request that fails once more, with the same key. What fails
// again is for the next attempt of the operation.
func newCardProvider(url string) cardProvider {
	return cardProvider{url, &http.Client{Transport: &idemhttp.Transport{
		MaxAttempts: 2,
		Base:        &http.Transport{ResponseHeaderTimeout: 15 * time.Second},
	}}}
}

// A cardCharge is what a provider has decided, for good.
type cardCharge struct {
	ID       string
	Declined bool
}

// charge asks for a charge. With a key that was sent before, the provider charges nothing
// and says what it said then. An error means that it is not known whether the card was
// charged.
func (p cardProvider) charge(ctx context.Context, key, card string, amount Money) (cardCharge, error) {
	body, err := json.Marshal(map[string]any{"card": card, "amount": amount})
	if err != nil {
		return cardCharge{}, err
	}
	req, err := http.NewRequestWithContext(idemhttp.WithKey(ctx, key), "POST", p.url+"/charges", bytes.NewReader(body))
	if err != nil {
		return cardCharge{}, err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return cardCharge{}, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		var made struct{ ID string }
		err := json.NewDecoder(resp.Body).Decode(&made)
		return cardCharge{ID: made.ID}, err
	case http.StatusPaymentRequired:
		return cardCharge{Declined: true}, nil
	}
	return cardCharge{}, fmt.Errorf("the card provider says %s", resp.Status)
}
