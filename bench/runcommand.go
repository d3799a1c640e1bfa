package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgidem/idempotency/bench/peers"
	"github.com/pgidem/idempotency/bench/report"
	"github.com/pgidem/idempotency/bench/results"
	"github.com/pgidem/idempotency/bench/run"
)

func runCommand(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench run", flag.ContinueOnError)
	set := run.Settings{DSN: os.Getenv("DATABASE_URL"), Log: os.Stderr}
	chosen := flags.String("peers", "all", "the `names` of those to measure, with a comma between; the bare transaction is always there. -list shows all")
	sections := flags.String("sections", "all", "the `names` of those to run, with a comma between: "+strings.Join(run.Sections, ","))
	callers := flags.String("callers", "2,4,16", "more concurrencies of first calls behind the delay link, for the chart")
	flags.DurationVar(&set.Slice, "slice", 100*time.Millisecond, "how long a peer is measured in one round")
	flags.IntVar(&set.Rounds, "rounds", 15, "how often each peer is measured")
	flags.DurationVar(&set.Delay, "delay", 500*time.Microsecond, "of the delay link, each way")
	flags.IntVar(&set.Pool, "pool", 16, "connections of each peer")
	flags.IntVar(&set.Duplicates, "duplicates", 1000, "in a storm")
	flags.IntVar(&set.Many, "many", 10000, "in a second storm, of this package alone; 0: none")
	flags.DurationVar(&set.Window, "window", 700*time.Millisecond, "of a storm, and of the calm before it")
	flags.DurationVar(&set.Work, "work", 100*time.Millisecond, "that the function of a storm's key takes")
	flags.IntVar(&set.Calls, "calls", 200, "that are counted")
	flags.IntVar(&set.Keys, "keys", 5, "that meet each fault")
	steps := flags.Bool("steps", false, "measure operations of two transactions with a request to a provider between them, of the peers that have such, in all sections but mix and storm")
	out := flags.String("out", "", "the `file` for the results; default: a new one in "+runsFolder)
	list := flags.Bool("list", false, "list the peers, and do nothing")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *list {
		for _, p := range peers.All(*steps) {
			fmt.Printf("%s\n\t%s\n", p.Name, p.About)
		}
		return nil
	}
	var err error
	if set.Peers, err = choosePeers(peers.All(*steps), *chosen); err != nil {
		return err
	}
	if set.Sections, err = chooseSections(*sections); err != nil {
		return err
	}
	prefix := benchPrefix
	if *steps {
		prefix = stepsPrefix
		set.Sections = slices.DeleteFunc(set.Sections, func(name string) bool { return name == "mix" || name == "storm" })
	}
	if *out == "" {
		*out = filepath.Join(runsFolder, prefix+time.Now().UTC().Format("20060102-150405.json"))
	}
	if set.Callers, err = numbers(*callers); err != nil {
		return fmt.Errorf("-callers: %w", err)
	}
	return runAndSave(ctx, set, *out, args, *steps)
}

func runAndSave(ctx context.Context, set run.Settings, out string, args []string, steps bool) error {
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	measured, err := run.Run(ctx, set)
	measured.Command = strings.TrimSpace("bench run " + strings.Join(args, " "))
	if err != nil { // not among those that are reported
		out = strings.TrimSuffix(out, ".json") + ".partial"
	}
	if err := errors.Join(err, results.Save(out, measured)); err != nil {
		return fmt.Errorf("%w (what was measured until then is in %s)", err, out)
	}
	fmt.Fprintln(os.Stderr, "bench: saved", out)
	fmt.Printf("`%s`: ", report.Typed(measured.Command))
	report.Conditions(os.Stdout, measured.Conditions, measured.Started, measured.Took)
	fmt.Println()
	if steps {
		report.Steps(os.Stdout, measured)
		return nil
	}
	report.Summary(os.Stdout, measured, nil)
	report.Run(os.Stdout, measured)
	return nil
}

// choosePeers returns those that are named, behind the bare transaction, which is the first
// of all.
func choosePeers(all []peers.Peer, names string) ([]peers.Peer, error) {
	if names == "all" {
		return all, nil
	}
	chosen := all[:1:1]
	for name := range strings.SplitSeq(names, ",") {
		p, err := peers.Named(strings.TrimSpace(name))
		if err != nil {
			return nil, err
		}
		if p.Steps != all[0].Steps {
			return nil, fmt.Errorf("peer %q is for the other kind of operations: see -steps", p.Name)
		}
		if p.Name != all[0].Name {
			chosen = append(chosen, p)
		}
	}
	return chosen, nil
}

func chooseSections(names string) ([]string, error) {
	if names == "all" {
		return slices.Clone(run.Sections), nil
	}
	chosen := strings.Split(names, ",")
	for _, name := range chosen {
		if !slices.Contains(run.Sections, name) {
			return nil, fmt.Errorf("there is no section %q: there are %s", name, strings.Join(run.Sections, ","))
		}
	}
	return chosen, nil
}

func numbers(text string) (all []int, err error) {
	for field := range strings.SplitSeq(text, ",") {
		if field = strings.TrimSpace(field); field == "" {
			continue
		}
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is not a number from 1 on", field)
		}
		all = append(all, n)
	}
	return all, nil
}
