package report

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// A table is one in Markdown.
type table struct {
	head []string
	rows [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) String() string {
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(t.head)
	rule := []string{"---"}
	for range t.head[1:] {
		rule = append(rule, "---:")
	}
	line(rule)
	for _, row := range t.rows {
		line(row)
	}
	return b.String()
}

func times(ratio float64) string {
	switch {
	case ratio == 0:
		return "-"
	case ratio >= 9.95:
		return fmt.Sprintf("%.0f×", ratio)
	}
	return fmt.Sprintf("%.2f×", ratio)
}

// ms is three digits of milliseconds.
func ms(d time.Duration) string {
	switch v := float64(d) / 1e6; {
	case v >= 99.5:
		return fmt.Sprintf("%.0f", v)
	case v >= 9.95:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// count has no decimals where there are none to speak of.
func count(v float64) string {
	if whole := math.Round(v); v >= 20 || math.Abs(v-whole) < 0.05 {
		return grouped(int64(whole))
	}
	return fmt.Sprintf("%.2f", v)
}

// grouped is 1,234,567.
func grouped(n int64) string {
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0 && digits[i-1] != '-'; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

func megabytes(n int64) string { return grouped(n>>20) + " MB" }

// span is a duration with a space before its unit.
func span(d time.Duration) string {
	text := strings.Replace(d.String(), "µs", " µs", 1)
	if !strings.Contains(text, " ") {
		if number, ok := strings.CutSuffix(text, "ms"); ok {
			return number + " ms"
		}
		if number, ok := strings.CutSuffix(text, "s"); ok && !strings.ContainsAny(number, "mh") {
			return number + " s"
		}
	}
	return text
}
