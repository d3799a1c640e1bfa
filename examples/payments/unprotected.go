package main

import (
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/idemhttp"
)

// unprotected is what a service does that knows nothing of idempotency: it runs
// the handler in a transaction, and sends the response when that has committed.
// Each transaction is right; a retry is one more of them.
//
// FOR THE DEMO ONLY: it has the place of [idemhttp.Middleware.Atomic] with
// -unsafe-no-idempotency.
func unprotected(pool *pgxpool.Pool) func(func(http.ResponseWriter, *http.Request, pgx.Tx)) http.Handler {
	return func(handle func(http.ResponseWriter, *http.Request, pgx.Tx)) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			err := pgx.BeginFunc(r.Context(), pool, func(tx pgx.Tx) error {
				handle(w, r, tx)
				return nil
			})
			if err != nil {
				// Net/http has held back the small response, and drops it.
				panic(http.ErrAbortHandler)
			}
		})
	}
}

// withNewKeys is the same for a procedure: each request is an operation of its own.
//
// FOR THE DEMO ONLY.
func withNewKeys(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("Idempotency-Key", idemhttp.NewID())
		next.ServeHTTP(w, r)
	})
}
