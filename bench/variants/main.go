// Variants measures other tables and other statements than the package has,
// beside its own, on the PostgreSQL of DATABASE_URL:
//
//	make bench-variants
//
// or, with flags (-h explains them):
//
//	go -C internal/testdb run . -C bench -- go run ./variants -sections statements,keys
//
// Every variant is made of the package's own migrations and statements, with a
// stretch of their text exchanged, and has a schema of its own. The variants of a
// table are measured in turns, so that whatever else the machine does meets all.
//
// What is settled is not measured any more: docs/benchmarks/variants.md has its tables, with the
// day on which they were printed, and the history of this folder what printed them.
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
	"time"
)

// A section prints the tables of one question.
type section struct {
	name string
	run  func(*lab, context.Context) error
}

var sections = []section{
	{"keys", (*lab).keys},
	{"statements", (*lab).statements},
	{"protocols", (*lab).protocols},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "variants:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string, out io.Writer) error {
	var names []string
	for _, s := range sections {
		names = append(names, s.name)
	}
	flags := flag.NewFlagSet("variants", flag.ContinueOnError)
	l := &lab{log: os.Stderr, out: out, began: time.Now()}
	chosen := flags.String("sections", strings.Join(names, ","), "the `names` of those to run, with a comma between")
	flags.IntVar(&l.rows, "rows", 100_000, "of the tables that the section keys fills first")
	flags.IntVar(&l.scopes, "scopes", 50_000, "that the filled tables have")
	flags.IntVar(&l.rounds, "rounds", 15, "turns of each variant where time is measured")
	flags.StringVar(&l.into, "into", "", "a `document` whose tables are renewed, such as ../docs/benchmarks/variants.md")
	flags.BoolVar(&l.brief, "brief", false, "one short turn of everything: shows that it runs, not what it costs")
	if err := flags.Parse(args); err != nil {
		return err
	}
	todo, err := choose(*chosen)
	if err != nil {
		return err
	}
	if l.rows < 1 || l.scopes < 1 || l.rounds < 1 {
		return errors.New("-rows, -scopes and -rounds have to be 1 or more")
	}
	return l.measure(ctx, os.Getenv("DATABASE_URL"), todo)
}

func choose(names string) (todo []section, err error) {
	for name := range strings.SplitSeq(names, ",") {
		found := false
		for _, s := range sections {
			if s.name == strings.TrimSpace(name) {
				todo, found = append(todo, s), true
			}
		}
		if !found {
			return nil, fmt.Errorf("there is no section %q: -h lists them", name)
		}
	}
	return todo, nil
}
