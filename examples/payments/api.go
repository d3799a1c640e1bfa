package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemhttp"
)

// An api is what the handlers share.
type api struct {
	pool *pgxpool.Pool
	log  *slog.Logger
}

// newAPI returns the whole service as a handler. Idempotency is in two places:
// the Middleware is made, with the account as the scope of its keys, and put
// around the two routes that have effects. The handler of a charge gets the
// transaction to write in; a ride is a procedure, and has several.
//
// Authentication goes around the Middleware, because the scope comes from it.
func newAPI(pool *pgxpool.Pool, store *idempotency.Store, ride idempotency.Procedure[RideOrder, Ride], cfg config, log *slog.Logger) (http.Handler, error) {
	idem, err := idemhttp.New(store, idemhttp.Config{
		Scope:          accountOf,
		MaxRequestBody: maxBody,
		Report: func(r *http.Request, err error) {
			log.ErrorContext(r.Context(), "request failed", "path", r.URL.Path, "error", err)
		},
	})
	if err != nil {
		return nil, err
	}
	once := idem.Atomic
	rides := idemhttp.Procedure(idem, ride, readRide, answerRide)
	if cfg.UnsafeNoIdempotency {
		log.Warn("UNSAFE: idempotency keys are ignored, and retries charge again")
		once = unprotected(pool)
		rides = withNewKeys(rides)
	}

	a := &api{pool, log}
	mux := http.NewServeMux()
	mux.Handle("POST /charges", a.authenticated(once(a.postCharge)))
	mux.Handle("POST /rides", a.authenticated(rides))
	mux.Handle("GET /charges/{id}", a.authenticated(http.HandlerFunc(a.getCharge)))
	mux.Handle("GET /account", a.authenticated(http.HandlerFunc(a.getAccount)))
	mux.Handle("GET /.well-known/idempotency-policy", idem.Policy())
	mux.HandleFunc("GET /healthz", healthz)
	mux.HandleFunc("GET /readyz", a.readyz)
	mux.HandleFunc("/charges", allowOnly("POST"))
	mux.HandleFunc("/rides", allowOnly("POST"))
	mux.HandleFunc("/charges/{id}", allowOnly("GET, HEAD"))
	mux.HandleFunc("/account", allowOnly("GET, HEAD"))
	mux.HandleFunc("/", notFound)
	return logged(log, limited(requestLimit, mux)), nil
}

// maxBody is the size of the largest request body, in bytes.
const maxBody = 16 << 10

// limited ends the context of a request, and so its transaction, when it takes
// too long. http.Server has no such limit.
func limited(limit time.Duration, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// readJSON reads the body of a request.
func readJSON(r *http.Request, into any, example string) error {
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields() // "ammount" must not mean nothing
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("the body has to be JSON such as %s: %w", example, err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return errors.New("the body has to be one JSON object, and nothing after it")
	}
	return nil
}

// respond sends v as JSON.
func respond(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // a type of this program that has no JSON
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // fails when the client has gone
}
