package idemhttp

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
)

// A problem is what goes wrong with a request before, instead of or after its
// handler, as problem details (RFC 9457). Its type identifies it (section
// 3.1.1) and never changes; the rest is for people.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
}

// problemTypes is where the types are explained.
const problemTypes = "https://github.com/pgidem/idempotency/blob/main/docs/http.md#"

var (
	keyMissing     = problem{problemTypes + "key-missing", "The request needs an idempotency key", http.StatusBadRequest, ""}
	keyInvalid     = problem{problemTypes + "key-invalid", "The idempotency key is not valid", http.StatusBadRequest, ""}
	keyReused      = problem{problemTypes + "key-reused", "The idempotency key was used for another request", http.StatusUnprocessableEntity, "Nothing was executed. A new operation needs a new key."}
	inProgress     = problem{problemTypes + "in-progress", "A request with this idempotency key is in progress", http.StatusConflict, "Nothing was executed by this request. Send it again later, with the same key."}
	noScope        = problem{problemTypes + "no-scope", "The request does not say whose it is", http.StatusForbidden, "An idempotency key belongs to whoever made it, and the request names nobody."}
	bodyTooLarge   = problem{problemTypes + "body-too-large", "The request body is too large", http.StatusRequestEntityTooLarge, ""}
	bodyUnreadable = problem{problemTypes + "body-unreadable", "The request body could not be read", http.StatusBadRequest, "Nothing was executed."}
	notProtected   = problem{problemTypes + "not-protected", "This method is not executed under an idempotency key", http.StatusMethodNotAllowed, ""}
	unavailable    = problem{problemTypes + "unavailable", "The request could not be executed now", http.StatusServiceUnavailable, "Nothing was kept. Send it again later, with the same key."}
	outcomeUnknown = problem{problemTypes + "outcome-unknown", "It is not known whether the request has taken effect", http.StatusServiceUnavailable, "Send it again, with the same key: that finds out, and is safe. A new key could execute it twice."}
	failed         = problem{problemTypes + "failed", "The request failed", http.StatusInternalServerError, "Nothing was kept."}
	unrecordable   = problem{problemTypes + "unrecordable", "The response cannot be recorded", http.StatusInternalServerError, "Nothing was kept."}
)

// allProblems is for the policy.
var allProblems = []problem{
	keyMissing, keyInvalid, keyReused, inProgress, noScope, bodyTooLarge, bodyUnreadable,
	notProtected, unavailable, outcomeUnknown, failed, unrecordable,
}

func (p problem) because(format string, args ...any) problem {
	p.Detail = fmt.Sprintf(format, args...)
	return p
}

// retryDelay is the Retry-After of what can succeed when it is sent again.
// Waiting for a call in flight has already taken the Store's Wait.
const retryDelay = 1

func (m *Middleware) refuse(w http.ResponseWriter, p problem) {
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Language", "en")
	if m.cfg.Documentation != "" {
		h.Add("Link", "<"+m.cfg.Documentation+`>; rel="describedby"; type="text/html"`)
	}
	if p.Status == http.StatusConflict || p.Status == http.StatusServiceUnavailable {
		h.Set("Retry-After", strconv.Itoa(retryDelay))
	}
	body, _ := json.Marshal(p) // of strings and a number
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // fails when the client has gone
}
