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
	"unicode/utf16"

	"github.com/pgidem/idempotency/internal/inspect"
)

// indented is a result for people.
func indented(result []byte) string {
	var b bytes.Buffer
	if json.Indent(&b, result, "", "  ") != nil {
		return inspect.Plain(string(result))
	}
	lines := strings.Split(b.String(), "\n")
	for i, line := range lines {
		lines[i] = inspect.Plain(line)
	}
	return strings.Join(lines, "\n")
}

// compact is a result in one line.
func compact(result []byte) string {
	var b bytes.Buffer
	if json.Compact(&b, result) != nil {
		return inspect.Plain(string(result))
	}
	return inspect.Plain(b.String())
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
		if !inspect.Odd(r) { // outside of strings, nothing is
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
