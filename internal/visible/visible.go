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
	if !strings.ContainsFunc(text, Odd) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if Odd(r) {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// Odd is true for what Text escapes. Some characters that count as letters or marks are
// blank: fillers, the empty pattern of Braille, what chooses the form of the one before.
func Odd(r rune) bool {
	return !unicode.IsPrint(r) || r == '\u2800' || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}
