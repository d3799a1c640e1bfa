package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/pgidem/idempotency/bench/report"
	"github.com/pgidem/idempotency/bench/results"
)

// runsFolder is where runs leave their files, newest last.
var runsFolder = filepath.Join("results", "runs")

func reportCommand(args []string) error {
	flags := flag.NewFlagSet("bench report", flag.ContinueOnError)
	folder := flags.String("docs", filepath.Join("..", "docs"), "the `folder` of benchmarks.md")
	runFile := flags.String("run", "", "the `file` of a run; default: the newest in "+runsFolder+", else the one that made the docs")
	scaleFile := flags.String("scale", "", "the `file` of a run of bench scale; default: the same")
	if err := flags.Parse(args); err != nil {
		return err
	}
	kept := filepath.Join(*folder, "benchmarks")
	var run results.Run
	path := newest(*runFile, "bench-*.json", filepath.Join(kept, "bench.json"))
	if err := results.Read(path, &run); err != nil {
		return fmt.Errorf("no run to report, make one with `make bench`: %w", err)
	}
	fmt.Fprintln(os.Stderr, "bench: reporting", path)
	var scale *results.Scale
	path = newest(*scaleFile, "scale-*.json", filepath.Join(kept, "scale.json"))
	switch err := results.Read(path, &scale); {
	case err == nil:
		fmt.Fprintln(os.Stderr, "bench: reporting", path)
	case !errors.Is(err, os.ErrNotExist):
		return err
	default:
		fmt.Fprintln(os.Stderr, "bench: no run of bench scale to report, make one with `make bench-scale`")
	}
	if err := report.Docs(*folder, run, scale); err != nil {
		return err
	}
	if scale != nil {
		if err := results.Save(filepath.Join(kept, "scale.json"), scale); err != nil {
			return err
		}
	}
	return results.Save(filepath.Join(kept, "bench.json"), run)
}

// newest is the file that was asked for, else the last that was measured, else
// the one of the docs.
func newest(asked, pattern, kept string) string {
	if asked != "" {
		return asked
	}
	files, err := filepath.Glob(filepath.Join(runsFolder, pattern))
	if err != nil || len(files) == 0 {
		return kept
	}
	return slices.Max(files)
}
