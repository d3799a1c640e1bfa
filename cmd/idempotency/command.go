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
type usageError struct {
	text string
	bare bool // without where to read more
}

func (e usageError) Error() string { return e.text }

// execute runs the command that args name. path is what was typed up to here.
func (c *command) execute(ctx context.Context, std stdio, path string, args []string) error {
	fs := flag.NewFlagSet(path, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	var do action
	if c.setup != nil {
		do = c.setup(fs)
	}
	args, err := c.parse(fs, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return c.help(std.out, path, fs)
	case err != nil:
		return quoting(path, "%v", err)
	}
	if c.setup == nil && len(args) > 0 && args[0] == "help" {
		return c.helpOn(std.out, path, args[1:])
	}
	if c.setup == nil {
		return c.descend(ctx, std, path, args)
	}
	if where := elsewhere(fs, args); where != "" {
		return mistake(path, "%s looks like a connection string, and so is not printed: %s", where, useDatabase)
	}
	if want := strings.Fields(c.args); len(args) < len(want) {
		return mistake(path, "%s is missing", want[len(args)])
	} else if len(args) > len(want) {
		return quoting(path, "unexpected argument %q", args[len(want)])
	}
	err = do(ctx, std, args)
	if e, ok := errors.AsType[usageError](err); ok && e.bare {
		return mistake(path, "%s", e.text)
	}
	return err
}

// parse returns the arguments. Flags may stand behind them, too, up to "--".
func (c *command) parse(fs *flag.FlagSet, args []string) (words []string, err error) {
	for {
		if err := fs.Parse(args); err != nil || fs.NArg() == 0 {
			return words, err
		}
		ended := fs.NArg() < len(args) && args[len(args)-fs.NArg()-1] == "--"
		if ended || c.setup == nil {
			return append(words, fs.Args()...), nil
		}
		words, args = append(words, fs.Arg(0)), fs.Args()[1:]
	}
}

func (c *command) descend(ctx context.Context, std stdio, path string, args []string) error {
	if len(args) == 0 {
		return mistake(path, "a command is missing")
	}
	if sub := c.sub(args[0]); sub != nil {
		return sub.execute(ctx, std, path+" "+sub.name, args[1:])
	}
	return quoting(path, "unknown command %q", args[0])
}

func (c *command) sub(name string) *command {
	for _, sub := range c.subs {
		if sub.name == name {
			return sub
		}
	}
	return nil
}

// helpOn prints what -h prints behind the same words.
func (c *command) helpOn(w io.Writer, path string, words []string) error {
	for ; len(words) > 0 && !isHelp(words[0]); words = words[1:] {
		sub := c.sub(words[0])
		switch {
		case c.subs == nil:
			return quoting(path, "unexpected argument %q", words[0])
		case sub == nil:
			return quoting(path, "unknown command %q", words[0])
		}
		c, path = sub, path+" "+sub.name
	}
	fs := flag.NewFlagSet(path, flag.ContinueOnError)
	if c.setup != nil {
		c.setup(fs)
	}
	return c.help(w, path, fs)
}

func isHelp(word string) bool {
	return word == "help" || word == "-h" || word == "--help" || word == "-help"
}

func mistake(path, format string, args ...any) error {
	return usageError{text: fmt.Sprintf(format, args...) + ": see '" + path + " -h'"}
}

// A quotingError is a mistake whose text has a part of the command line in it.
type quotingError struct {
	error
	silent error // the same mistake without that part
}

func (e quotingError) Unwrap() error { return e.error }

func quoting(path, format string, args ...any) error {
	return quotingError{
		mistake(path, format, args...),
		mistake(path, "there seems to be a connection string in this command line, of which nothing is printed: %s", useDatabase),
	}
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
