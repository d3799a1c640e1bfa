package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

// A command is a word of the command line. It has either commands below it or
// something to do.
type command struct {
	name    string
	args    string // the names of its arguments, such as "SCOPE ID"
	summary string // one line
	text    string // more help
	subs    []*command

	// setup defines the flags and returns what to do with their values.
	setup func(*flag.FlagSet) action
}

type action func(ctx context.Context, std stdio, args []string) error

// A usageError is a mistake in the command line.
type usageError string

func (e usageError) Error() string { return string(e) }

// execute runs the command that args name. path is what was typed up to here.
func (c *command) execute(ctx context.Context, std stdio, path string, args []string) error {
	fs := flag.NewFlagSet(path, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	var do action
	if c.setup != nil {
		do = c.setup(fs)
	}
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp), c.setup == nil && fs.Arg(0) == "help":
		return c.help(std.out, path, fs)
	case err != nil:
		return mistake(path, "%v", err)
	}
	if c.setup == nil {
		return c.descend(ctx, std, path, fs.Args())
	}
	if want := strings.Fields(c.args); fs.NArg() < len(want) {
		return mistake(path, "%s is missing", want[fs.NArg()])
	} else if fs.NArg() > len(want) {
		return mistake(path, "unexpected argument %q", fs.Arg(len(want)))
	}
	return do(ctx, std, fs.Args())
}

func (c *command) descend(ctx context.Context, std stdio, path string, args []string) error {
	if len(args) == 0 {
		return mistake(path, "a command is missing")
	}
	for _, sub := range c.subs {
		if sub.name == args[0] {
			return sub.execute(ctx, std, path+" "+sub.name, args[1:])
		}
	}
	return mistake(path, "unknown command %q", args[0])
}

func mistake(path, format string, args ...any) error {
	return usageError(fmt.Sprintf(format, args...) + ": see '" + path + " -h'")
}

func (c *command) help(w io.Writer, path string, fs *flag.FlagSet) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n\nUsage: %s", path, c.summary, path)
	if c.subs != nil {
		b.WriteString(" COMMAND")
	} else {
		b.WriteString(" [FLAGS]")
	}
	if c.args != "" {
		b.WriteString(" " + c.args)
	}
	b.WriteString("\n")
	if c.text != "" {
		b.WriteString("\n" + c.text + "\n")
	}
	if c.subs != nil {
		b.WriteString("\nCommands:\n")
		for _, sub := range c.subs {
			fmt.Fprintf(&b, "  %-8s %s\n", sub.name, sub.summary)
		}
		fmt.Fprintf(&b, "\n'%s COMMAND -h' tells more.\n", path)
	} else {
		b.WriteString("\nFlags:\n")
		fs.SetOutput(&b)
		fs.PrintDefaults()
	}
	_, err := io.WriteString(w, b.String())
	return err
}
