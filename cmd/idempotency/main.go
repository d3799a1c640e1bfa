// Command idempotency looks after the table of package idempotency: it creates
// and upgrades it. Run "idempotency -h" for the commands.
//
// It exits with 0 when all went well, with 1 when the work failed, and with 2
// when the command line was wrong and nothing was done.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	os.Exit(run(ctx, stdio{os.Stdin, os.Stdout, os.Stderr}, os.Args[1:]))
}

// root lists the commands. Each is in the file of its name.
var root = &command{
	name:    "idempotency",
	summary: "look after the table of package idempotency in PostgreSQL",
	subs:    []*command{migrate},
}

type stdio struct {
	in       *os.File
	out, err io.Writer
}

func run(ctx context.Context, std stdio, args []string) (exit int) {
	err := root.execute(ctx, std, root.name, args)
	switch {
	case err == nil:
		return 0
	case errors.As(err, new(usageError)):
		exit = 2
	default:
		exit = 1
	}
	fmt.Fprintln(std.err, "idempotency:", err)
	return exit
}
