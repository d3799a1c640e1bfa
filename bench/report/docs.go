package report

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gonum.org/v1/plot/vg"

	"github.com/pgidem/idempotency/bench/results"
)

// write saves an SVG, and names fonts like ours for readers who do not have them.
func write(canvas vg.CanvasWriterTo, path string) error {
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return err
	}
	svg := strings.ReplaceAll(b.String(), "font-family:Liberation Sans;", "font-family:Liberation Sans,Arial,Helvetica,sans-serif;")
	return os.WriteFile(path, []byte(svg), 0o644)
}

// Docs writes benchmarks.md and its charts into a folder. A nil run of steps, a nil scale,
// or a run without a section, leaves its part out.
func Docs(folder string, run results.Run, steps *results.Run, scale *results.Scale) error {
	charts := filepath.Join(folder, "benchmarks")
	if err := os.MkdirAll(charts, 0o755); err != nil {
		return err
	}
	var b bytes.Buffer
	fmt.Fprint(&b, intro)
	fmt.Fprintf(&b, "## Conditions of the run\n\n`%s`: ", Typed(run.Command))
	Conditions(&b, run.Conditions, run.Started, run.Took)
	b.WriteByte('\n')
	Summary(&b, run, scale)
	for _, chart := range []struct {
		file, alt string
		draw      func(path string) error
	}{
		{"latency.svg", "First call: latency against concurrency", func(path string) error { return latency(run, path) }},
		{"storm.svg", "Distinct keys beside a storm of duplicates", func(path string) error { return storm(run, path) }},
	} {
		if err := drawn(&b, charts, chart.file, chart.alt, chart.draw); err != nil {
			return err
		}
	}
	Run(&b, run)
	if steps != nil {
		Steps(&b, *steps)
		conditionsOf(&b, steps.Command, steps.Conditions, steps.Started, steps.Took)
	}
	if scale != nil {
		fmt.Fprint(&b, "## A table that has grown\n\n")
		err := drawn(&b, charts, "growth.svg", "Cost of a call against the size of the table", func(path string) error { return growth(*scale, path) })
		if err != nil {
			return err
		}
		Scale(&b, *scale)
		conditionsOf(&b, scale.Command, scale.Conditions, scale.Started, scale.Took)
	}
	all := run.Peers
	if steps != nil {
		all = slices.Concat(all, steps.Peers)
	}
	about(&b, all)
	text := strings.TrimRight(b.String(), "\n") + "\n"
	return os.WriteFile(filepath.Join(folder, "benchmarks.md"), []byte(text), 0o644)
}

const intro = "# Benchmarks\n\n" +
	"This page is made by `make bench-report`, from the files in [benchmarks/](benchmarks) that `make bench` and `make bench-scale` have written; nothing in it is written by hand. " +
	"All peers run against the same server with the same business write, interleaved in slices of a moment, and each is compared with the bare business transaction of the same round: such ratios are stable where times are not. " +
	"Identical things differ by some percent from run to run. What stands behind the figures that are not as good as one could wish is in [design.md](design.md#what-limits-it).\n\n"

// drawn draws a chart and links it, if there was something to draw.
func drawn(w io.Writer, folder, file, alt string, draw func(path string) error) error {
	path := filepath.Join(folder, file)
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := draw(path); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if _, err := os.Stat(path); err == nil {
		fmt.Fprintf(w, "![%s](benchmarks/%s)\n\n", alt, file)
	}
	return nil
}

func conditionsOf(w io.Writer, command string, c results.Conditions, started time.Time, took time.Duration) {
	fmt.Fprintf(w, "Conditions: `%s`: ", Typed(command))
	Conditions(w, c, started, took)
	fmt.Fprintln(w)
}

func about(w io.Writer, all []results.Peer) {
	fmt.Fprint(w, "## The peers\n\n")
	for _, p := range all {
		fmt.Fprintf(w, "- %s: %s\n", name(p.Name), p.About)
	}
}
