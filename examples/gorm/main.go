// Gorm is a small shop, written to be read: an HTTP service that keeps its data
// with GORM and executes every order once, however often it is sent.
//
//	go -C internal/testdb run . -C examples/gorm -- go run .   # from the root of the repository
//
//	curl -i localhost:8080/orders -H 'Idempotency-Key: "order-1"' -H 'Customer: alice' -d '{"item": "tea", "quantity": 2}'
//
// shop.go is the business, which knows nothing of idempotency; api.go is where it
// comes in.
package main

import (
	"context"
	"errors"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Getenv("DATABASE_URL"), "localhost:8080"); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, database, address string) error {
	if database == "" {
		return errors.New("DATABASE_URL is not set: it is the connection string of a PostgreSQL")
	}
	pool, err := pgxpool.New(ctx, database)
	if err != nil {
		return err
	}
	defer pool.Close()
	handler, err := newHandler(ctx, pool)
	if err != nil {
		return err
	}
	server := &http.Server{Addr: address, Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	log.Println("listening on", address)
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	// What does not end in time is rolled back, and its client sends it again.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return server.Shutdown(ctx)
}
