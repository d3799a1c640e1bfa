// Release makes releases of this repository's modules, and checks that what is in
// the checkout can be installed:
//
//	release check     what a user does after a release, on DATABASE_URL
//	release v0.2.0    the commit and the tags of that version; it pushes nothing
//
// docs/development.md says how a version is released.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// root is the repository, as seen from the folder of this module.
const root = "../.."

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) != 1:
		return errors.New("want one argument: check, or the version to release, such as v0.2.0")
	case args[0] == "check":
		return check(ctx, root, os.Getenv("DATABASE_URL"), os.Stderr)
	default:
		return release(ctx, root, args[0], time.Now(), os.Stdout)
	}
}
