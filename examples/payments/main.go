// Payments is a small payments service: an HTTP API that charges every order
// once, however often, and to however many of its processes, it is sent.
//
//	payments serve      the service; -h lists its flags
//	payments provider   a card provider for it to ask
//	payments            the demo: two processes of the service, a hundred customers
//	                    behind a bad network, and what the database says afterwards
//
// Where to read, in this order:
//
//	charge.go        the business, which knows nothing of HTTP or of keys
//	api.go           the routes, and where idempotency comes in
//	charges.go       POST /charges, GET /charges/{id}
//	account.go       GET /account
//	ride.go          an operation that also asks another service, and survives a kill
//	card.go          the client of that service, a card provider
//	rides.go         POST /rides
//	provider/        the provider, a fake
//	auth.go          whose request it is, and so whose idempotency key
//	problem.go       errors as problem details
//	health.go        /healthz and /readyz
//	log.go           a line of log for each request
//	serve.go         the process: start, serve, shut down, and nothing lost
//	config.go        its flags and environment
//	migrate.go       the migrations of two packages in one database
//	background.go    expired keys go, and abandoned rides are finished
//	unprotected.go   the same without idempotency; for the demo only
//	demo/            the demo
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/pgidem/idempotency/examples/payments/demo"
	"github.com/pgidem/idempotency/examples/payments/provider"
)

func main() {
	// A reader that goes away, as in "payments | head", must not keep the demo
	// from cleaning up.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "payments:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, logs io.Writer) error {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		args = append([]string{"demo"}, args...)
	}
	switch command, args := args[0], args[1:]; command {
	case demo.ChildCommand:
		return run(demo.WhileParentLives(ctx), args, out, logs)
	case "serve":
		return serveCommand(ctx, args, out, logs)
	case "demo":
		return demo.Command(ctx, args, out, logs)
	case "provider":
		return provider.Command(ctx, args, out, logs)
	default:
		return fmt.Errorf("no command %s: there are serve, provider and demo", demo.Quoted(append(args, command), command))
	}
}

func serveCommand(ctx context.Context, args []string, out, logs io.Writer) error {
	cfg, err := parseConfig(args, os.Getenv, logs)
	if err != nil {
		return err
	}
	return serve(ctx, cfg, out, logs)
}
