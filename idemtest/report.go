package idemtest

import (
	"fmt"
	"reflect"
	"strings"
)

// A problem is one thing that is wrong, as the author of the program reads it.
type problem struct {
	what, expected, found, likely string
}

func (p problem) String() string {
	return fmt.Sprintf("%s\n\texpected:    %s\n\tfound:       %s\n\tmost likely: %s",
		p.what, indent(p.expected), indent(p.found), indent(p.likely))
}

func indent(text string) string {
	return strings.ReplaceAll(text, "\n", "\n\t             ")
}

// report is what a test that fails says.
func report(round string, problems []problem) string {
	var b strings.Builder
	fmt.Fprintf(&b, "idemtest: Storm, %s:", round)
	for _, p := range problems {
		fmt.Fprintf(&b, "\n%v", p)
	}
	return b.String()
}

const (
	maxShown  = 5   // different values in a report
	maxLength = 400 // bytes of each
)

// tally lists the different values and how often there is each.
func tally(values []any) string {
	var lines []string
	for len(values) > 0 && len(lines) < maxShown {
		var rest []any
		for _, v := range values {
			if !reflect.DeepEqual(v, values[0]) {
				rest = append(rest, v)
			}
		}
		lines = append(lines, fmt.Sprintf("%d x %s", len(values)-len(rest), show(values[0])))
		values = rest
	}
	if len(values) > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", len(values)))
	}
	return strings.Join(lines, "\n")
}

func show(value any) string {
	text := fmt.Sprintf("%+v", value)
	if len(text) > maxLength {
		text = strings.ToValidUTF8(text[:maxLength], "") + "..."
	}
	return text
}

// plural is "1 effect" or "2 effects".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
