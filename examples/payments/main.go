// Payments is a small payments program in which every order is charged once,
// however often, and from however many processes, it is sent.
//
// Without arguments it makes a database of its own on the server of
// DATABASE_URL, plays seven scenes there, checks every number against the
// tables, and drops the database again. "payments worker" is the process that
// two of the scenes start.
//
// Where to read:
//
//	payments.go   the business, which knows nothing of idempotency
//	service.go    the same, once per key
//	scenes.go     what goes wrong in the world, and what the tables say then
//	client.go     calls of the service, and what they have to return
//	worker.go     a process that hangs between its write and its commit
//	reconcile.go  what the clients were told, against the tables
//	ledger.go     what the tables say
//	demo.go       playing, checking, printing
//	database.go   a database, and the migrations of two packages in it
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

func main() {
	// A reader that goes away, as in "payments | head", must not keep the
	// database from being dropped.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:], os.Getenv("DATABASE_URL"), os.Stdin, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "payments:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, url string, in io.Reader, out io.Writer) error {
	server, err := parseURL(url)
	switch {
	case err != nil:
		return err
	case len(args) == 0:
		return demonstrate(ctx, server, out)
	case args[0] == "worker":
		return work(ctx, server, args[1:], in, out)
	}
	return fmt.Errorf("no command %q: run payments without arguments", args[0])
}

// demonstrate plays the scenes in a database that is gone afterwards, also when
// ctx ends.
func demonstrate(ctx context.Context, server *pgxpool.Config, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	database, err := createDatabase(ctx, server)
	if err != nil {
		return stopped(ctx, err)
	}
	err = playIn(ctx, server, database, out)
	return errors.Join(stopped(ctx, err), dropDatabase(server, database))
}

func playIn(ctx context.Context, server *pgxpool.Config, database string, out io.Writer) error {
	pool, err := open(ctx, server, database)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := createTables(ctx, pool); err != nil {
		return err
	}
	d, err := newDemo(out, pool)
	if err != nil {
		return err
	}
	return d.run(ctx, scenes)
}

// stopped puts the signal in place of what it broke off.
func stopped(ctx context.Context, err error) error {
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("stopped: %w", context.Cause(ctx))
	}
	return err
}
