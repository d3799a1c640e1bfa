package idemhttp

import (
	"errors"
	"net/http"
)

// A trace is what a run of the handler has visibly done.
type trace struct {
	used   bool // its transaction
	status int  // 0: it has written nothing
	body   bool
}

var (
	errNotAgain = errors.New("idemhttp: PostgreSQL asked for another run of the handler, and what ran was not the whole handler: " +
		"a router runs it once per request, such as gin's Context.Next, or routes by what the first run has left in the request, such as chi's Router.Use: " +
		"put the Middleware around the whole router, or around one handler")

	errNotYet = errors.New("idemhttp: the handler neither wrote nor used its transaction, and no net/http server serves this request: " +
		"an adaptor, such as fiber's, runs the handler after the Middleware, outside of any transaction")
)

// comparedWithBefore refuses a run that was not a whole one. What a router
// keeps of a request can be used up by the first run: the second then ends in
// its 404, or returns at once, which is an empty 200, and either would be
// recorded as what became of the request.
//
// A 404 or 405 that only a later run gives may be the truth (the row was deleted
// meanwhile), but nobody can tell. The next request with the key finds out.
func (x *exchange) comparedWithBefore(now *run) error {
	this := trace{now.Tx.Used(), x.response.status, x.response.body.Len() > 0}
	before := x.before
	x.before = &this
	if before == nil {
		if this == (trace{}) && x.r.Context().Value(http.ServerContextKey) == nil {
			return errNotYet
		}
		return nil
	}
	if !this.follows(*before) {
		return errNotAgain
	}
	return nil
}

// follows reports whether a run that came to this can be as whole as the one
// before.
func (t trace) follows(before trace) bool {
	if !t.used {
		return t == before
	}
	switch t.status {
	case 0, http.StatusNotFound, http.StatusMethodNotAllowed:
		return t.status == before.status
	}
	return true
}
