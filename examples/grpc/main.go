// Grpc is a small payments service, written to be read: a gRPC server that executes every
// charge once, however often it is sent.
//
//	go -C internal/testdb run . -C examples/grpc -- go run .   # from the root of the repository
//
//	grpcurl -plaintext -H 'account: alice' -H 'idempotency-key: order-1' -d '{"cents": 1000}' localhost:8080 example.pay.v1.Payments/Charge
//
// payments.go is the business, and server.go is where idempotency comes in.
package main

import (
	"context"
	"errors"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/jackc/pgx/v5/pgxpool"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l, err := net.Listen("tcp", "localhost:8080")
	if err == nil {
		err = run(ctx, os.Getenv("DATABASE_URL"), l)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// run serves on l until ctx ends, and closes it.
func run(ctx context.Context, database string, l net.Listener) error {
	defer l.Close()
	if database == "" {
		return errors.New("DATABASE_URL is not set: it is the connection string of a PostgreSQL")
	}
	pool, err := pgxpool.New(ctx, database)
	if err != nil {
		return err
	}
	defer pool.Close()
	server, err := newServer(ctx, pool)
	if err != nil {
		return err
	}
	log.Println("listening on", l.Addr())
	stopped := make(chan bool)
	end := context.AfterFunc(ctx, func() {
		server.GracefulStop() // what has begun is finished, and recorded
		close(stopped)
	})
	err = server.Serve(l)
	if !end() {
		<-stopped
	}
	return err
}
