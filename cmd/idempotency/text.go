package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/pgidem/idempotency/internal/visible"
)

// plain quotes a text that could do something to a terminal, or to a table: keys
// come from clients.
func plain(text string) string {
	if text == "" || strings.ContainsFunc(text, odd) {
		return visible.Text(strconv.Quote(text))
	}
	return text
}

// odd: what can move the cursor, change the direction of writing, or not be seen.
func odd(r rune) bool { return visible.Odd(r) || r == unicode.ReplacementChar }

// indented is a result for people.
func indented(result []byte) string {
	var b bytes.Buffer
	if json.Indent(&b, result, "", "  ") != nil {
		return plain(string(result))
	}
	lines := strings.Split(b.String(), "\n")
	for i, line := range lines {
		lines[i] = plain(line)
	}
	return strings.Join(lines, "\n")
}

// compact is a result in one line.
func compact(result []byte) string {
	var b bytes.Buffer
	if json.Compact(&b, result) != nil {
		return plain(string(result))
	}
	return plain(b.String())
}

// jsonLine writes value as one line, as programs read it. People look at it too, so
// what plain would quote is escaped: it is the same text to a program.
func jsonLine(w io.Writer, value any) error {
	var line bytes.Buffer
	encoder := json.NewEncoder(&line)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return err
	}
	var b strings.Builder
	for _, r := range strings.TrimSuffix(line.String(), "\n") {
		if !odd(r) { // outside of strings, nothing is
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	_, err := fmt.Fprintln(w, b.String())
	return err
}

func moment(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// span is a duration with the two units that matter.
func span(d time.Duration) string {
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

// relative is a span before or after now.
func relative(t, now time.Time) string {
	if t.After(now) {
		return "in " + span(t.Sub(now))
	}
	return span(now.Sub(t)) + " ago"
}

func size(bytes int64) string {
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

// count has separators between the thousands.
func count(n int64) string {
	text := strconv.FormatInt(n, 10)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func plural(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return count(n) + " " + what + "s"
}

// isTerminal: somebody looks at it.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && f.Name() != os.DevNull
}

// An age is a duration that can also be given in days.
type age time.Duration

func (a *age) String() string { return time.Duration(*a).String() }

func (a *age) Set(text string) error {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseFloat(days, 64)
		if err != nil || n <= 0 || n > 36500 {
			return fmt.Errorf("want a time such as 90s, 15m, 24h or 7d")
		}
		*a = age(n * 24 * float64(time.Hour))
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return fmt.Errorf("want a time such as 90s, 15m, 24h or 7d")
	}
	*a = age(d)
	return nil
}
