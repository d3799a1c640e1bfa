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

// What the names of their files begin with.
const (
	benchPrefix = "bench-"
	stepsPrefix = "steps-" // of bench run -steps
	scalePrefix = "scale-"
)

func reportCommand(args []string) error {
	flags := flag.NewFlagSet("bench report", flag.ContinueOnError)
	folder := flags.String("docs", filepath.Join("..", "docs"), "the `folder` of benchmarks.md")
	runFile := flags.String("run", "", "the `file` of a run; default: the newest in "+runsFolder+", else the one that made the docs")
	stepsFile := flags.String("steps", "", "the `file` of a run of bench run -steps; default: the same")
	scaleFile := flags.String("scale", "", "the `file` of a run of bench scale; default: the same")
	if err := flags.Parse(args); err != nil {
		return err
	}
	kept := filepath.Join(*folder, "benchmarks")
	var run, steps *results.Run
	var scale *results.Scale
	reported := []struct {
		asked, prefix, file, how string
		of                       any // a pointer to what stays nil if there is no file
		found                    bool
	}{
		{asked: *runFile, prefix: benchPrefix, file: "bench.json", how: "make bench", of: &run},
		{asked: *stepsFile, prefix: stepsPrefix, file: "steps.json", how: "make bench BENCH=-steps", of: &steps},
		{asked: *scaleFile, prefix: scalePrefix, file: "scale.json", how: "make bench-scale", of: &scale},
	}
	for i, r := range reported {
		found, err := readNewest(r.asked, r.prefix, filepath.Join(kept, r.file), r.of)
		if err != nil {
			return fmt.Errorf("%s: %w", r.how, err)
		}
		reported[i].found = found
	}
	if run == nil {
		return errors.New("no run to report: make one with `make bench`")
	}
	if err := report.Docs(*folder, *run, steps, scale); err != nil {
		return err
	}
	for _, r := range reported {
		if !r.found {
			continue
		}
		if err := results.Save(filepath.Join(kept, r.file), r.of); err != nil {
			return err
		}
	}
	return nil
}

// readNewest reads the file that was asked for, else the last that was measured, else
// the one of the docs, if there is one.
func readNewest(path, prefix, kept string, of any) (found bool, err error) {
	if path == "" {
		files, err := filepath.Glob(filepath.Join(runsFolder, prefix+"*.json"))
		if path = kept; err == nil && len(files) > 0 {
			path = slices.Max(files)
		}
	}
	switch err := results.Read(path, of); {
	case err == nil:
		fmt.Fprintln(os.Stderr, "bench: reporting", path)
		return true, nil
	case errors.Is(err, os.ErrNotExist) && path == kept:
		return false, nil
	default:
		return false, err
	}
}
