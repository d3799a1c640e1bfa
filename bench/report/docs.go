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

// Docs writes benchmarks.md, which one decides by, with its charts and all tables, into a
// folder. A nil run of steps, a nil scale, or a run without a section, leaves its part out.
func Docs(folder string, run results.Run, steps *results.Run, scale *results.Scale) error {
	inside := filepath.Join(folder, "benchmarks")
	if err := os.MkdirAll(inside, 0o755); err != nil {
		return err
	}
	if err := page(folder, inside, run, steps, scale); err != nil {
		return err
	}
	return tables(inside, run, steps, scale)
}

// page writes benchmarks.md.
func page(folder, charts string, run results.Run, steps *results.Run, scale *results.Scale) error {
	var b bytes.Buffer
	c := run.Conditions
	fmt.Fprintf(&b, intro, Typed(run.Command), run.Started.Format("2006-01-02"), c.PostgreSQL, c.Go, c.Cores, c.CPU)
	busy(&b, c)
	b.WriteByte('\n')
	Summary(&b, run, scale)
	for _, chart := range []struct {
		file, alt string
		draw      func(path string) error
	}{
		{"latency.svg", "First call: latency against concurrency", func(path string) error { return latency(run, path) }},
		{"storm.svg", "Distinct keys beside a storm of duplicates", func(path string) error { return storm(run, path) }},
	} {
		if err := drawn(&b, charts, "benchmarks/", chart.file, chart.alt, chart.draw); err != nil {
			return err
		}
	}
	compared(&b, run, steps)
	return save(&b, filepath.Join(folder, "benchmarks.md"))
}

// tables writes benchmarks/tables.md: everything that was measured.
func tables(folder string, run results.Run, steps *results.Run, scale *results.Scale) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Tables of the benchmarks\n\nEverything that was measured for [benchmarks.md](../benchmarks.md). `make bench-report` makes this page too.\n\n## Conditions of the run\n\n`%s`: ", Typed(run.Command))
	Conditions(&b, run.Conditions, run.Started, run.Took)
	b.WriteByte('\n')
	Run(&b, run)
	if steps != nil {
		Steps(&b, *steps)
		conditionsOf(&b, steps.Command, steps.Conditions, steps.Started, steps.Took)
	}
	if scale != nil {
		fmt.Fprint(&b, "## A table that has grown\n\n")
		err := drawn(&b, folder, "", "growth.svg", "Cost of a call against the size of the table", func(path string) error { return growth(*scale, path) })
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
	return save(&b, filepath.Join(folder, "tables.md"))
}

func save(b *bytes.Buffer, path string) error {
	return os.WriteFile(path, []byte(strings.TrimRight(b.String(), "\n")+"\n"), 0o644)
}

const intro = "# Benchmarks\n\n" +
	"`make bench-report` makes this page from the newest results; no figure is written by hand. " +
	"[benchmarks/tables.md](benchmarks/tables.md) has all tables, conditions and peers. [design.md](design.md#what-limits-it) explains the weaker figures.\n\n" +
	"All peers make the same business write on one server, in turns. Identical things differ by some percent. `%s`, %s: PostgreSQL %s, %s, %d cores (%s).\n"

// drawn draws a chart and links it, if there was something to draw.
func drawn(w io.Writer, folder, link, file, alt string, draw func(path string) error) error {
	path := filepath.Join(folder, file)
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := draw(path); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if _, err := os.Stat(path); err == nil {
		fmt.Fprintf(w, "![%s](%s%s)\n\n", alt, link, file)
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
