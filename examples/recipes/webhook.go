package recipes

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

// A webhook receives the events of one provider that signs as Standard Webhooks say. Others
// differ in names only.
type webhook struct {
	store    *idempotency.Store
	provider string
	secret   []byte
	work     work
}

// ServeHTTP answers 2xx only after the commit. All else makes the provider send the event
// again, for days, and then show it as failed: that is where the dead letters are.
func (h *webhook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		http.Error(w, "the body cannot be read", http.StatusBadRequest)
		return
	}
	id := r.Header.Get("webhook-id")
	if !h.isSigned(id, r.Header, body) { // before the claim: a stranger must not use up an id
		http.Error(w, "the signature is wrong", http.StatusUnauthorized)
		return
	}

	// No fingerprint: the provider has signed the id, and may change the event between two
	// deliveries, for example by a counter of them.
	key := idempotency.Key{Scope: "webhook " + h.provider, ID: id}
	_, _, err = idempotency.Do(r.Context(), h.store, key, func(ctx context.Context, tx pgx.Tx) (receipt, error) {
		return h.work(ctx, tx, body)
	})
	switch what, after := settle(err, 1); what {
	case acknowledge:
		w.WriteHeader(http.StatusNoContent)
	case retry:
		w.Header().Set("Retry-After", strconv.Itoa(int(after/time.Second)))
		http.Error(w, "send it again", http.StatusServiceUnavailable)
	default:
		http.Error(w, "this event cannot be processed", http.StatusUnprocessableEntity)
	}
}

// isSigned covers the id: a provider that signs the body alone lets whoever has seen a
// delivery send it again under another id. Take the event's id from the body then.
func (h *webhook) isSigned(id string, header http.Header, body []byte) bool {
	sent, err := strconv.ParseInt(header.Get("webhook-timestamp"), 10, 64)
	if err != nil || time.Since(time.Unix(sent, 0)).Abs() > 5*time.Minute {
		return false
	}
	mac := hmac.New(sha256.New, h.secret)
	mac.Write([]byte(id + "." + header.Get("webhook-timestamp") + "."))
	mac.Write(body)
	want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	for _, got := range strings.Fields(header.Get("webhook-signature")) { // two while a secret is replaced
		if hmac.Equal([]byte(got), []byte(want)) {
			return true
		}
	}
	return false
}
