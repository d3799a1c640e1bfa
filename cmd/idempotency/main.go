// Command idempotency looks after the table of package idempotency: it creates
// and upgrades it, shows what became of a key, removes what has expired, and
// examines the database. Run "idempotency -h" for the commands.
//
// It exits with 0 when all went well, with 1 when the work failed, with 2 when
// the command line was wrong and nothing was done, with 3 when there is no record
// of the key, and with 4 when a call with the key is in progress.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"

	"github.com/pgidem/idempotency/internal/visible"
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
	text: `'idempotency -version' prints its version.

Exit codes: 0 done, 1 failed, 2 wrong command line, 3 no record of the key, 4 a call
with the key is in progress.`,
	subs: []*command{get, find, list, deleteKey, settle, stats, web, purge, examine, migrate},
}

const (
	exitFailed     = 1
	exitUsage      = 2
	exitNotFound   = 3
	exitInProgress = 4
)

// An exitError has an exit code of its own.
type exitError struct {
	code int
	text string
}

func (e exitError) Error() string { return e.text }

type stdio struct {
	in       *os.File
	out, err io.Writer
}

// passwords are those of a connection string that gets into an error in spite of all.
var passwords = regexp.MustCompile(`(://[^\s:@/]*:)\S*(@)|((?i:password)=)('[^']*'|[^\s&"]*)`)

func withoutPassword(text string) string { return passwords.ReplaceAllString(text, "$1$3***$2") }

func execute(ctx context.Context, std stdio, args []string) error {
	if len(args) == 1 && (args[0] == "-version" || args[0] == "--version") {
		return printVersion(std.out)
	}
	return root.execute(ctx, std, root.name, args)
}

func run(ctx context.Context, std stdio, args []string) int {
	err := execute(ctx, std, args)
	if err == nil {
		return 0
	}
	exit, text := exitFailed, err.Error()
	if e, ok := errors.AsType[exitError](err); ok {
		exit = e.code
	}
	if errors.As(err, new(usageError)) {
		exit = exitUsage
	}
	if e, ok := errors.AsType[quotingError](err); ok && mayHaveSecret(args) {
		text = e.silent.Error()
	}
	fmt.Fprintln(std.err, "idempotency:", visible.Text(withoutPassword(text)))
	return exit
}
