package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"
)

// A problem is an error of the API, as problem details (RFC 9457), which the
// Middleware uses for its own. A program decides by the type; the title and the
// detail are for people.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
}

const problemTypes = "https://github.com/pgidem/idempotency/blob/main/examples/payments/README.md#"

var (
	invalid         = problem{problemTypes + "invalid", "The request is not valid", http.StatusBadRequest, ""}
	unauthenticated = problem{problemTypes + "unauthenticated", "The request has no API key that is known", http.StatusUnauthorized, ""}
	declined        = problem{problemTypes + "declined", "The charge was declined", http.StatusPaymentRequired, ""}
	missing         = problem{problemTypes + "not-found", "There is nothing here", http.StatusNotFound, ""}
	wrongMethod     = problem{problemTypes + "wrong-method", "The method is not supported here", http.StatusMethodNotAllowed, ""}
	failed          = problem{problemTypes + "failed", "The request failed", http.StatusInternalServerError, ""}
	unavailable     = problem{problemTypes + "unavailable", "The request could not be executed now", http.StatusServiceUnavailable, ""}
)

func refuse(w http.ResponseWriter, p problem, detail string) {
	p.Detail = detail
	body, err := json.Marshal(p)
	if err != nil {
		panic(err) // texts and a number
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n')) // fails when the client has gone
}

// fail answers a request whose work has failed. What went wrong is for the log:
// it can name tables, addresses and people.
//
// An ERROR is what PostgreSQL says of a statement, and so a fault of this program,
// unless it is of a class that passes: a conflict with others (40), a server short
// of something (53), or told to stop (57). All else passes, too, such as a lost
// connection: 503 tells clients to come back. The Middleware keeps nothing of either.
func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() == nil {
		a.log.ErrorContext(r.Context(), "request failed", "path", r.URL.Path, "error", err)
	}
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if ok && pgErr.SeverityUnlocalized == "ERROR" && !slices.Contains([]string{"40", "53", "57"}, pgErr.Code[:2]) {
		refuse(w, failed, "Nothing was kept.")
		return
	}
	w.Header().Set("Retry-After", "1")
	refuse(w, unavailable, "Nothing was kept. Send it again later, with the same key.")
}

func notFound(w http.ResponseWriter, _ *http.Request) {
	refuse(w, missing, "")
}

func allowOnly(methods string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Allow", methods)
		refuse(w, wrongMethod, "It takes "+methods+".")
	}
}
