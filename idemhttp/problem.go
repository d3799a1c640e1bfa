package idemhttp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// A Problem is what goes wrong with a request before, instead of or after its
// handler. [Config.WriteError] gets each; by default it is sent as it is.
type Problem struct {
	// Name identifies the problem and never changes: key-missing, key-invalid,
	// key-reused, in-progress, no-scope, scope-invalid, body-too-large,
	// body-timeout, body-unreadable, not-protected, unavailable, unfinished,
	// stuck, outcome-unknown, failed or unrecordable. docs/http.md explains them.
	Name string `json:"-"`

	// These are problem details (RFC 9457). The Type is the address of an
	// explanation, the Title and the Detail are for people.
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`

	// RetryAfter is when the client should send the request again, with the
	// same key, in whole seconds. 0: it should not.
	RetryAfter time.Duration `json:"-"`

	// Err is what is behind it, where there is something to know: for logs, and
	// not for clients, since it can name tables and addresses. [Config.Report]
	// has got it, if it is worth a report.
	Err error `json:"-"`
}

// ServeHTTP sends p as application/problem+json, with its Retry-After.
func (p Problem) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Language", "en")
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((p.RetryAfter+time.Second-1)/time.Second)))
	}
	body, _ := json.Marshal(p) // of strings and a number
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // fails when the client has gone
}

// problemTypes is where the types are explained.
const problemTypes = "https://github.com/pgidem/idempotency/blob/main/docs/http.md#"

func newProblem(name, title string, status int, detail string) Problem {
	p := Problem{Name: name, Type: problemTypes + name, Title: title, Status: status, Detail: detail}
	if status == http.StatusConflict || status == http.StatusServiceUnavailable {
		p.RetryAfter = time.Second // waiting for a call in flight has already taken the Store's Wait
	}
	return p
}

var (
	keyMissing     = newProblem("key-missing", "The request needs an idempotency key", http.StatusBadRequest, "")
	keyInvalid     = newProblem("key-invalid", "The idempotency key is not valid", http.StatusBadRequest, "")
	keyReused      = newProblem("key-reused", "The idempotency key was used for another request", http.StatusUnprocessableEntity, "Nothing was executed. A new operation needs a new key.")
	inProgress     = newProblem("in-progress", "A request with this idempotency key is in progress", http.StatusConflict, "Nothing was executed by this request. Send it again later, with the same key.")
	noScope        = newProblem("no-scope", "The request does not say whose it is", http.StatusForbidden, "An idempotency key belongs to whoever made it, and the request names nobody.")
	scopeInvalid   = newProblem("scope-invalid", "The request says in an impossible way whose it is", http.StatusBadRequest, "The name of whoever sends it can have 255 bytes of UTF-8, without NUL and without characters that this server cannot store. Nothing was executed.")
	bodyTooLarge   = newProblem("body-too-large", "The request body is too large", http.StatusRequestEntityTooLarge, "")
	bodyTimeout    = newProblem("body-timeout", "The request body did not arrive in time", http.StatusRequestTimeout, "Nothing was executed. Send it again, with the same key.")
	bodyUnreadable = newProblem("body-unreadable", "The request body could not be read", http.StatusBadRequest, "Nothing was executed.")
	notProtected   = newProblem("not-protected", "This method is not executed under an idempotency key", http.StatusMethodNotAllowed, "")
	unavailable    = newProblem("unavailable", "The request could not be executed now", http.StatusServiceUnavailable, "Nothing was kept. Send it again later, with the same key.")
	unfinished     = newProblem("unfinished", "The request has begun and has not ended", http.StatusServiceUnavailable, "Send it again later, with the same key: it goes on where it stopped. A new key could execute it twice.")
	stuck          = newProblem("stuck", "The request has begun and cannot go on by itself", http.StatusInternalServerError, "")
	outcomeUnknown = newProblem("outcome-unknown", "It is not known whether the request has taken effect", http.StatusServiceUnavailable, "Send it again, with the same key: that finds out, and is safe. A new key could execute it twice.")
	failed         = newProblem("failed", "The request failed", http.StatusInternalServerError, "Nothing was kept.")
	unrecordable   = newProblem("unrecordable", "The response cannot be recorded", http.StatusInternalServerError, "Nothing was kept.")
)

// allProblems is for the policy.
var allProblems = []Problem{
	keyMissing, keyInvalid, keyReused, inProgress, noScope, scopeInvalid, bodyTooLarge, bodyTimeout,
	bodyUnreadable, notProtected, unavailable, unfinished, stuck, outcomeUnknown, failed, unrecordable,
}

func (p Problem) because(format string, args ...any) *Problem {
	p.Detail = fmt.Sprintf(format, args...)
	return &p
}

func (p Problem) causedBy(err error) *Problem {
	p.Err = err
	return &p
}

// refuse reports and answers a request that went wrong. A client that has gone
// is no fault to report.
func (m *Middleware) refuse(w http.ResponseWriter, r *http.Request, p Problem) {
	gone := r.Context().Err() != nil && errors.Is(p.Err, context.Canceled)
	if p.Status >= 500 && p.Err != nil && !gone {
		m.cfg.Report(r, p.Err)
	}
	if m.cfg.Documentation != "" {
		w.Header().Add("Link", "<"+m.cfg.Documentation+`>; rel="describedby"; type="text/html"`)
	}
	m.cfg.WriteError(w, r, p)
}
