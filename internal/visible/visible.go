// Package visible escapes what could do something to a terminal, or could not be seen.
package visible

import (
	"strconv"
	"strings"
	"unicode"
)

// Text is text with each rune escaped that can move the cursor, change the direction of
// writing, or not be seen.
func Text(text string) string {
	if !strings.ContainsFunc(text, isOdd) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if isOdd(r) {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func isOdd(r rune) bool { return !unicode.IsPrint(r) }
