package idemhttp_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemhttp"
	"github.com/pgidem/idempotency/migrations"
)

// A request and its retry: one effect, one response.
func ExampleMiddleware_Atomic() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	if err := migrations.Up(ctx, pool, "idemhttp_example"); err != nil {
		log.Fatal(err)
	}
	defer pool.Exec(ctx, "drop schema idemhttp_example cascade")
	store, err := idempotency.NewWithConfig(pool, idempotency.Config{Schema: "idemhttp_example"})
	if err != nil {
		log.Fatal(err)
	}

	idem, err := idemhttp.New(store, idemhttp.Config{
		Scope: func(r *http.Request) (string, error) { return r.Header.Get("Account"), nil }, // yours: who was authenticated
	})
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("POST /charges", idem.Atomic(func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
		var id string
		err := tx.QueryRow(r.Context(), "select 'charge-' || 1").Scan(&id) // your business writes
		if err != nil {
			http.Error(w, "try again", http.StatusInternalServerError) // nothing is kept
			return
		}
		w.Header().Set("Location", "/charges/"+id)
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintln(w, id)
	}))
	mux.Handle("GET /.well-known/idempotency", idem.Policy())

	server := httptest.NewServer(mux)
	defer server.Close()
	for range 2 {
		req, _ := http.NewRequest("POST", server.URL+"/charges", strings.NewReader(`{"amount": 10}`))
		req.Header.Set("Account", "customer-7")
		req.Header.Set("Idempotency-Key", `"8e03978e-40d5-43e8-bc93-6894a57f9324"`)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			log.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		fmt.Printf("%d %s %s replayed:%s\n", resp.StatusCode, resp.Header.Get("Location"), strings.TrimSpace(string(body)), resp.Header.Get("Idempotent-Replayed"))
	}
	// Output:
	// 201 /charges/charge-1 charge-1 replayed:
	// 201 /charges/charge-1 charge-1 replayed:true
}
