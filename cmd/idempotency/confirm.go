package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/pgidem/idempotency/internal/visible"
)

// confirm returns nil when a human typed yes. Without a terminal it asks nobody
// and returns a usageError.
func confirm(ctx context.Context, std stdio, what string) error {
	if info, err := std.in.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return unattended(what)
	}
	fmt.Fprintf(std.err, "idempotency: %s\nType yes to go on: ", visible.Text(what))
	select {
	case answer := <-line(std.in):
		switch strings.TrimSpace(answer) {
		case "yes":
			return nil
		case answer: // no end of line: /dev/null looks like a terminal and is none
			fmt.Fprintln(std.err)
			return unattended(what)
		default:
			return errors.New("not confirmed: nothing was changed")
		}
	case <-ctx.Done():
		fmt.Fprintln(std.err)
		return errors.New("interrupted: nothing was changed")
	}
}

func unattended(what string) error {
	return usageError{text: what + ": there is no terminal to ask at, so add -yes to go on"}
}

// line reads beside the caller, who may stop waiting: a read from a terminal
// cannot be interrupted.
func line(r io.Reader) <-chan string {
	answer := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(r).ReadString('\n')
		answer <- text
	}()
	return answer
}
