package idemtest

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
)

// HTTP is the Call of a handler. Request makes the same request with the
// idempotency key id each time that it is called.
//
// The answer is the status, the Content-Type, the Location and the body; a status
// of 500 and more is an error. A replay is told by the header
// "Idempotent-Replayed: true" of package idemhttp: a handler that does not set it
// needs [Program.Unmarked].
func HTTP(handler http.Handler, request func(id string) *http.Request) Call {
	return func(ctx context.Context, id string) (any, bool, error) {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, request(id).WithContext(ctx))
		r := response{w.Code, w.Header().Get("Content-Type"), w.Header().Get("Location"), w.Body.String()}
		if r.Status >= 500 {
			return nil, false, fmt.Errorf("the handler answered %+v", r)
		}
		return r, w.Header().Get("Idempotent-Replayed") == "true", nil
	}
}

// A response is what has to be the same in all answers. Other header fields, such
// as Date or a trace id, can be those of one exchange.
type response struct {
	Status                      int
	ContentType, Location, Body string
}
