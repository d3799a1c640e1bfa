package inspect

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/pgidem/idempotency/internal/visible"
)

// Plain quotes a text that could do something to a terminal, or to a table: keys
// come from clients.
func Plain(text string) string {
	if text == "" || strings.ContainsFunc(text, Odd) {
		return visible.Text(strconv.Quote(text))
	}
	return text
}

// Odd is true for what can move the cursor, change the direction of writing, or not be seen.
func Odd(r rune) bool { return visible.Odd(r) || r == unicode.ReplacementChar }

// Span is a duration with the two units that matter.
func Span(d time.Duration) string {
	d = d.Abs()
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Truncate(100 * time.Millisecond).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}

// Relative is a span before or after now.
func Relative(t, now time.Time) string {
	if t.After(now) {
		return "in " + Span(t.Sub(now))
	}
	return Span(now.Sub(t)) + " ago"
}

// Size has the unit that suits it.
func Size(bytes int64) string {
	switch f := float64(bytes); {
	case bytes < 10<<10:
		return fmt.Sprint(bytes, " B")
	case bytes < 10<<20:
		return fmt.Sprintf("%.0f kB", f/(1<<10))
	case bytes < 10<<30:
		return fmt.Sprintf("%.0f MB", f/(1<<20))
	default:
		return fmt.Sprintf("%.1f GB", f/(1<<30))
	}
}

// Count has separators between the thousands.
func Count(n int64) string {
	text := strconv.FormatInt(n, 10)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// Plural counts what there is.
func Plural(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return Count(n) + " " + what + "s"
}
