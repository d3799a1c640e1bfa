package recipes

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

var webhookSecret = []byte("secret")

func setupWebhook(store *idempotency.Store, provider string) *webhook {
	return &webhook{store: store, provider: provider, secret: webhookSecret, work: charge}
}

// event is a request as the provider sends it.
func event(id string, at time.Time, body []byte) *http.Request {
	r := httptest.NewRequest("POST", "/webhooks", strings.NewReader(string(body)))
	sent := fmt.Sprint(at.Unix())
	mac := hmac.New(sha256.New, webhookSecret)
	mac.Write([]byte(id + "." + sent + "." + string(body)))
	r.Header.Set("webhook-id", id)
	r.Header.Set("webhook-timestamp", sent)
	r.Header.Set("webhook-signature", "v1,b2xk v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	return r
}

func answer(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestWebhookDeliveredTwiceChargesOnceAndAnswersBoth(t *testing.T) {
	t.Parallel()
	pool := database(t)
	h := setupWebhook(idempotency.New(pool), "acme")
	for i, body := range [][]byte{orderMessage("order-1"), orderMessage("order-1"), []byte(`{"id": "order-1", "cents": 1000, "delivery": 3}`)} {
		if w := answer(h, event("evt-1", time.Now(), body)); w.Code != http.StatusNoContent {
			t.Errorf("delivery %d: %d %s", i+1, w.Code, w.Body)
		}
	}
	wantCharges(t, pool, 1)
	answer(setupWebhook(idempotency.New(pool), "other"), event("evt-1", time.Now(), orderMessage("order-2")))
	answer(h, event("evt-2", time.Now(), orderMessage("order-3")))
	wantCharges(t, pool, 3) // another provider, and another event
}

func TestWebhookThatIsNotSignedIsRefusedAndLeavesNoKey(t *testing.T) {
	t.Parallel()
	pool := database(t)
	h := setupWebhook(idempotency.New(pool), "acme")
	body := orderMessage("order-1")
	for name, change := range map[string]func(*http.Request){
		"without a signature": func(r *http.Request) { r.Header.Del("webhook-signature") },
		"another signature":   func(r *http.Request) { r.Header.Set("webhook-signature", "v1,AAAA") },
		"another id":          func(r *http.Request) { r.Header.Set("webhook-id", "evt-2") },
		"another time":        func(r *http.Request) { r.Header.Set("webhook-timestamp", fmt.Sprint(time.Now().Unix()+1)) },
		"no time":             func(r *http.Request) { r.Header.Set("webhook-timestamp", "now") },
		"another body":        func(r *http.Request) { r.Body = http.NoBody },
		"an old one":          func(r *http.Request) { *r = *event("evt-1", time.Now().Add(-time.Hour), body) },
		"one of the future":   func(r *http.Request) { *r = *event("evt-1", time.Now().Add(time.Hour), body) },
	} {
		r := event("evt-1", time.Now(), body)
		change(r)
		if w := answer(h, r); w.Code != http.StatusUnauthorized {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	if n := one[int](t, pool, "select count(*) from idempotency_keys"); n != 0 {
		t.Errorf("%d keys", n)
	}
	large := event("evt-1", time.Now(), make([]byte, 1<<20+1))
	if w := answer(h, large); w.Code != http.StatusBadRequest {
		t.Errorf("too large: %d", w.Code)
	}
}

// Answering first would lose the event: the second delivery shows that nothing was kept.
func TestWebhookIsAnswered2xxOnlyAfterTheCommit(t *testing.T) {
	t.Parallel()
	pool := database(t)
	h := setupWebhook(idempotency.New(pool), "acme")
	h.work = func(ctx context.Context, tx pgx.Tx, body []byte) (receipt, error) {
		charge(ctx, tx, body)
		return receipt{}, errors.New("out of paper")
	}
	w := answer(h, event("evt-1", time.Now(), orderMessage("order-1")))
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "1" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	wantCharges(t, pool, 0)
	h.work = charge
	if w := answer(h, event("evt-1", time.Now(), orderMessage("order-1"))); w.Code != http.StatusNoContent {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	wantCharges(t, pool, 1)
}

func TestWebhookInFlightIsSentAgain(t *testing.T) {
	t.Parallel()
	pool := database(t)
	h := setupWebhook(impatient(t, pool), "acme")
	first := setupWebhook(idempotency.New(pool), "acme")
	first.work = func(ctx context.Context, tx pgx.Tx, body []byte) (receipt, error) {
		if w := answer(h, event("evt-1", time.Now(), body)); w.Code != http.StatusServiceUnavailable {
			t.Errorf("meanwhile: %d", w.Code)
		}
		return charge(ctx, tx, body)
	}
	for _, receiver := range []*webhook{first, h} {
		if w := answer(receiver, event("evt-1", time.Now(), orderMessage("order-1"))); w.Code != http.StatusNoContent {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
	wantCharges(t, pool, 1)
}

func TestWebhookThatIsNoOrderIsLeftToTheProvidersFailedEvents(t *testing.T) {
	t.Parallel()
	h := setupWebhook(idempotency.New(database(t)), "acme")
	for name, r := range map[string]*http.Request{
		"no order": event("evt-1", time.Now(), []byte("{")),
		"no id":    event("", time.Now(), orderMessage("order-1")),
	} {
		if w := answer(h, r); w.Code != http.StatusUnprocessableEntity {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}
