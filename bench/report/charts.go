package report

import (
	"image/color"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgidem/idempotency/bench/peers"
	"github.com/pgidem/idempotency/bench/results"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// The colours of Okabe and Ito, which most colour-blind people can tell apart.
// Ours and the bare transaction have theirs to themselves.
var (
	ourColour  = color.RGBA{R: 213, G: 94, A: 255}
	bareColour = color.RGBA{A: 255}
	colours    = []color.RGBA{
		{G: 114, B: 178, A: 255}, {R: 86, G: 180, B: 233, A: 255}, {G: 158, B: 115, A: 255},
		{R: 204, G: 121, B: 167, A: 255}, {R: 230, G: 159, A: 255}, {R: 120, G: 120, B: 120, A: 255},
		{R: 130, G: 80, B: 30, A: 255}, {R: 90, G: 60, B: 160, A: 255},
	}
)

// shapes tell lines apart where colours do not.
var shapes = []draw.GlyphDrawer{draw.SquareGlyph{}, draw.TriangleGlyph{}, draw.RingGlyph{}, draw.PyramidGlyph{}, draw.BoxGlyph{}, draw.CrossGlyph{}, draw.PlusGlyph{}, draw.CircleGlyph{}}

// A look is how a peer is drawn in every chart.
type look struct {
	colour color.RGBA
	shape  draw.GlyphDrawer
	width  vg.Length
	dashes []vg.Length
}

func lookOf(all []results.Peer, name string) look {
	switch name {
	case peers.Ours:
		return look{colour: ourColour, shape: draw.CircleGlyph{}, width: vg.Points(3)}
	case peers.QueryRow:
		return look{colour: ourColour, shape: draw.SquareGlyph{}, width: vg.Points(3), dashes: []vg.Length{vg.Points(5), vg.Points(3)}}
	case peers.Bare:
		return look{colour: bareColour, shape: draw.CircleGlyph{}, width: vg.Points(1.5)}
	}
	i := 0
	for _, p := range all {
		if p.Name == name {
			break
		}
		if p.Name != peers.Ours && p.Name != peers.QueryRow && p.Name != peers.Bare {
			i++
		}
	}
	return look{colour: colours[i%len(colours)], shape: shapes[i%len(shapes)], width: vg.Points(1.5)}
}

const (
	chartWidth  = 21 * vg.Centimeter
	chartHeight = 11 * vg.Centimeter
)

func newPlot(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.TextStyle.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: vg.Points(14)}
	p.Title.Padding = vg.Points(10)
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Label.TextStyle.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: vg.Points(11)}
		axis.Tick.Label.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: vg.Points(10)}
		axis.Label.Padding = vg.Points(6)
	}
	p.BackgroundColor = color.White
	p.Legend.TextStyle.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: vg.Points(10)}
	p.Legend.ThumbnailWidth = vg.Points(24)
	p.Legend.Padding = vg.Points(2)
	grid := plotter.NewGrid()
	grid.Vertical.Width = 0
	grid.Horizontal.Color = color.Gray{Y: 225}
	p.Add(grid)
	return p
}

// line adds one series, and its name if it has one to the legend.
func line(p *plot.Plot, name string, l look, points plotter.XYs) error {
	curve, marks, err := plotter.NewLinePoints(points)
	if err != nil {
		return err
	}
	curve.Color, curve.Width, curve.Dashes = l.colour, l.width, l.dashes
	marks.Color, marks.Shape, marks.Radius = l.colour, l.shape, vg.Points(3.5)
	p.Add(curve, marks)
	if name != "" {
		p.Legend.Add(name, curve, marks)
	}
	return nil
}

// saveBeside draws the plot with its legend to the right of it, where it covers
// nothing.
func saveBeside(p *plot.Plot, height vg.Length, path string) error {
	legend := p.Legend
	p.Legend = plot.NewLegend()
	legend.Top, legend.Left = true, true
	canvas, err := draw.NewFormattedCanvas(chartWidth, height, filepath.Ext(path)[1:])
	if err != nil {
		return err
	}
	whole := draw.New(canvas)
	whole.SetColor(color.White)
	whole.Fill(whole.Rectangle.Path())
	// The fonts of the reader can be wider than those that are measured here.
	width := legend.Rectangle(whole).Size().X*1.15 + vg.Points(8)
	p.Draw(draw.Crop(whole, vg.Points(6), -width-vg.Points(8), vg.Points(6), -vg.Points(8)))
	legend.Draw(draw.Crop(whole, chartWidth-width, 0, 0, -vg.Points(44)))
	return write(canvas, path)
}

// latency is first calls against concurrency.
func latency(run results.Run, path string) error {
	p := newPlot("First call at "+linkName(run, results.Delay)+": latency against concurrency", "callers at a time", "median latency in ms")
	var ticks []plot.Tick
	var ours plotter.XYs
	for _, peer := range run.Peers {
		var points plotter.XYs
		for _, t := range run.Timed {
			if t.Peer != peer.Name || t.Section != results.First || t.Link != results.Delay {
				continue
			}
			points = append(points, plotter.XY{X: float64(t.Callers), Y: milli(t.P50)})
			tick := plot.Tick{Value: float64(t.Callers), Label: strconv.Itoa(t.Callers)}
			if !slices.Contains(ticks, tick) {
				ticks = append(ticks, tick)
			}
		}
		if len(points) < 2 {
			continue
		}
		if peer.Name == peers.Ours {
			ours = points
		}
		if err := line(p, peer.Name, lookOf(run.Peers, peer.Name), points); err != nil {
			return err
		}
	}
	if len(ticks) == 0 {
		return nil
	}
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.ConstantTicks(ticks)
	p.Y.Min, p.Y.Tick.Marker = 0, steps{}
	if ours != nil { // once more, above the others
		if err := line(p, "", lookOf(run.Peers, peers.Ours), ours); err != nil {
			return err
		}
	}
	return saveBeside(p, chartHeight, path)
}

// storm is the p99 of distinct keys with and without a storm, by peer.
func storm(run results.Run, path string) error {
	var names []string
	var calm, wild plotter.XYs
	add := func(s results.Storm, label string) {
		at := float64(len(names))
		names = append(names, label)
		calm = append(calm, plotter.XY{X: milli(s.Calm.P99), Y: at})
		wild = append(wild, plotter.XY{X: milli(s.Wild.P99), Y: at})
	}
	for _, s := range slices.Backward(run.Storms) {
		if s.Link == results.Delay {
			add(s, s.Peer+", "+grouped(int64(s.Duplicates)))
		}
	}
	if len(names) == 0 {
		return nil
	}
	p := newPlot("Distinct keys beside a storm of duplicates on another key, "+linkName(run, results.Delay), "99th percentile of the latency in ms", "")
	if err := dumbbells(p, calm, wild); err != nil {
		return err
	}
	p.NominalY(names...)
	p.Y.Min, p.Y.Max = -0.6, float64(len(names))-0.4
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, decades{}
	p.X.Min, p.X.Max = decade(slices.MinFunc(calm, byX).X, math.Floor), decade(slices.MaxFunc(wild, byX).X, math.Ceil)
	return saveBeside(p, max(chartHeight, vg.Length(len(names))*0.9*vg.Centimeter+3*vg.Centimeter), path)
}

func byX(a, b plotter.XY) int {
	switch {
	case a.X < b.X:
		return -1
	case a.X > b.X:
		return 1
	}
	return 0
}

// dumbbells join two values of each row.
func dumbbells(p *plot.Plot, from, to plotter.XYs) error {
	for i := range from {
		bar, err := plotter.NewLine(plotter.XYs{from[i], to[i]})
		if err != nil {
			return err
		}
		bar.Color, bar.Width = color.Gray{Y: 170}, vg.Points(3)
		p.Add(bar)
	}
	for _, end := range []struct {
		name   string
		points plotter.XYs
		colour color.RGBA
	}{{"calm", from, colours[0]}, {"beside the storm", to, ourColour}} {
		marks, err := plotter.NewScatter(end.points)
		if err != nil {
			return err
		}
		marks.Color, marks.Shape, marks.Radius = end.colour, draw.CircleGlyph{}, vg.Points(5)
		p.Add(marks)
		p.Legend.Add(end.name, marks)
	}
	return nil
}

// growth is the cost of a call against the rows of the table.
func growth(scale results.Scale, path string) error {
	p := newPlot("Cost of a call against the size of the table", "rows in the table", "time of a call, empty table = 1")
	shorter := strings.NewReplacer(" ids", "")
	var shapesSeen, series []string
	drawn := 0
	for _, point := range scale.Points {
		key := shorter.Replace(point.Shape) + ": " + point.Section
		if point.Callers != 1 || point.Section != results.First && point.Section != results.Replay || slices.Contains(series, key) {
			continue
		}
		series = append(series, key)
		if !slices.Contains(shapesSeen, point.Shape) {
			shapesSeen = append(shapesSeen, point.Shape)
		}
		var points plotter.XYs
		for _, q := range scale.Points {
			if q.Callers == 1 && q.Section == point.Section && q.Shape == point.Shape {
				points = append(points, plotter.XY{X: float64(q.Rows), Y: q.Ratio})
			}
		}
		i := slices.Index(shapesSeen, point.Shape)
		l := look{colour: []color.RGBA{ourColour, colours[0], colours[2]}[i%3], shape: draw.CircleGlyph{}, width: vg.Points(2)}
		if point.Section == results.Replay {
			l.shape, l.dashes = draw.RingGlyph{}, []vg.Length{vg.Points(5), vg.Points(3)}
		}
		if err := line(p, key, l, points); err != nil {
			return err
		}
		drawn += len(points)
	}
	if drawn == 0 {
		return nil
	}
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, decades{}
	low, high := math.Inf(1), 0.0
	for _, q := range scale.Points {
		low, high = min(low, float64(q.Rows)), max(high, float64(q.Rows))
	}
	p.X.Min, p.X.Max = decade(low, math.Floor), decade(high, math.Ceil)
	p.Y.Min, p.Y.Max, p.Y.Tick.Marker = 0, max(1.5, p.Y.Max), steps{}
	one := plotter.NewFunction(func(float64) float64 { return 1 })
	one.Color, one.Width = bareColour, vg.Points(1)
	one.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
	p.Add(one)
	return saveBeside(p, chartHeight, path)
}

func milli(d time.Duration) float64 { return float64(d) / 1e6 }

func decade(v float64, round func(float64) float64) float64 {
	return math.Pow(10, round(math.Log10(v)))
}

// decades labels the powers of ten, and marks what is between.
type decades struct{}

func (decades) Ticks(low, high float64) (ticks []plot.Tick) {
	for power := decade(low, math.Floor); power <= high*1.001; power *= 10 {
		for i := 1.0; i < 10; i++ {
			tick := plot.Tick{Value: power * i}
			if i == 1 {
				tick.Label = decadeLabel(power)
			}
			if tick.Value >= low*0.999 && tick.Value <= high*1.001 {
				ticks = append(ticks, tick)
			}
		}
	}
	return ticks
}

func decadeLabel(v float64) string {
	switch {
	case v >= 1e6:
		return strconv.FormatFloat(v/1e6, 'g', -1, 64) + " million"
	case v >= 1:
		return grouped(int64(v + 0.5))
	}
	return strconv.FormatFloat(v, 'g', 1, 64)
}

// steps are round numbers, each with its label.
type steps struct{}

func (steps) Ticks(low, high float64) (ticks []plot.Tick) {
	const most = 8
	step := decade((high-low)/most, math.Floor)
	for _, factor := range []float64{1, 2, 2.5, 2} { // 1, 2, 5, 10
		step *= factor
		if (high-low)/step <= most {
			break
		}
	}
	for i := math.Ceil(low / step); i*step <= high*1.001; i++ {
		ticks = append(ticks, plot.Tick{Value: i * step, Label: strconv.FormatFloat(i*step, 'g', 4, 64)})
	}
	return ticks
}
