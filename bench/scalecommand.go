package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgidem/idempotency/bench/report"
	"github.com/pgidem/idempotency/bench/results"
	"github.com/pgidem/idempotency/bench/scale"
)

func scaleCommand(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench scale", flag.ContinueOnError)
	set := scale.Settings{DSN: os.Getenv("DATABASE_URL"), Log: os.Stderr}
	flags.Int64Var(&set.Rows, "rows", 200_000, "of the full tables")
	flags.DurationVar(&set.Slice, "slice", 150*time.Millisecond, "how long one side is measured in one round")
	flags.IntVar(&set.Rounds, "rounds", 12, "how often each side is measured")
	flags.IntVar(&set.Pool, "pool", 16, "connections")
	flags.DurationVar(&set.Window, "window", 2*time.Second, "of a purge, and of the calls without one")
	flags.IntVar(&set.Pairs, "pairs", 5, "of such windows")
	flags.BoolVar(&set.Fresh, "fresh", false, "forget what an interrupted run has left")
	flags.BoolVar(&set.Force, "force", false, "also when the disk seems too small")
	flags.BoolVar(&set.Kept, "kept", true, "the server stays when this command has ended, and an interrupted run can go on")
	out := flags.String("out", filepath.Join(runsFolder, scalePrefix+time.Now().UTC().Format("20060102-150405.json")), "the `file` for the results")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if set.Rows < 10 || set.Rounds < 1 || set.Pairs < 1 {
		return errors.New("-rows has to be 10 or more, -rounds and -pairs 1 or more")
	}
	if err := os.MkdirAll(filepath.Dir(*out), 0o755); err != nil {
		return err
	}
	measured, err := scale.Run(ctx, set)
	if err != nil {
		return err
	}
	measured.Command = strings.TrimSpace("bench scale " + strings.Join(args, " "))
	if err := results.Save(*out, measured); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "bench: saved", *out)
	fmt.Printf("`%s`: ", report.Typed(measured.Command))
	report.Conditions(os.Stdout, measured.Conditions, measured.Started, measured.Took)
	fmt.Println()
	report.Scale(os.Stdout, measured)
	return nil
}
