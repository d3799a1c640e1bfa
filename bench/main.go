// Bench measures this package beside its peers, on the PostgreSQL of
// DATABASE_URL:
//
//	make bench
//
// or, with flags (bench run -h explains them):
//
//	go -C internal/testdb run . -C bench -- go run . run -peers idempotency -sections first
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/pgidem/idempotency/bench/link"
	"github.com/pgidem/idempotency/bench/run"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("usage: bench run|scale|report [flags]; -h explains them")
	}
	switch name, rest := args[0], args[1:]; name {
	case "run":
		return runCommand(ctx, rest)
	case "scale":
		return scaleCommand(ctx, rest)
	case "report":
		return reportCommand(rest)
	case link.ProcessArg: // of our own making
		return link.Main(rest)
	case run.CallArg:
		return run.CallMain()
	default:
		return fmt.Errorf("there is no command %q: there are run, scale and report", name)
	}
}
