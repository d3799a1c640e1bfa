package main

import (
	"io"
	"os"
	"strconv"
	"strings"
	"unicode"
)

// gap is between two columns.
const gap = 2

// columns writes lines of cells, aligned.
func columns(w io.Writer, lines [][]string) error { return aligned(w, lines, 0) }

// fitted does so, too. On a terminal, the columns of cuttable get narrower, and at last
// the lines get shorter, until a line fits: one that wraps breaks the table. Whoever
// reads through a pipe gets all of it.
func fitted(w io.Writer, lines [][]string, cuttable ...int) error {
	screen := screenWidth(w)
	if screen > 0 {
		cut(lines, screen, cuttable)
	}
	return aligned(w, lines, screen)
}

// aligned cuts off what is beyond the screen, if that is not 0.
func aligned(w io.Writer, lines [][]string, screen int) error {
	for i, cells := range lines {
		for len(cells) > 0 && cells[len(cells)-1] == "" {
			cells = cells[:len(cells)-1]
		}
		lines[i] = cells
	}
	widths := columnWidths(lines, false)
	var b strings.Builder
	for _, cells := range lines {
		var line strings.Builder
		for i, cell := range cells {
			line.WriteString(cell)
			if i < len(cells)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]+gap-displayWidth(cell)))
			}
		}
		text := line.String()
		if screen > 0 && displayWidth(text) > screen {
			text = head(text, screen-1) + "…"
		}
		b.WriteString(text + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// columnWidths are those of the widest cells. Nothing is aligned behind the last cell
// of a line, so that it counts only if last is true.
func columnWidths(lines [][]string, last bool) (widths []int) {
	for _, cells := range lines {
		for i, cell := range cells {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			if last || i < len(cells)-1 {
				widths[i] = max(widths[i], displayWidth(cell))
			}
		}
	}
	return widths
}

// narrowest is what a column can be cut to: the names of those that are cut fit.
const narrowest = 6

// cut takes from the widest of the columns that may be cut, until the others fit.
func cut(lines [][]string, screen int, cuttable []int) {
	widths := columnWidths(lines, true)
	total := gap * (len(widths) - 1)
	for _, width := range widths {
		total += width
	}
	for total > screen {
		widest := -1
		for _, i := range cuttable {
			if i < len(widths) && widths[i] > narrowest && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
		total--
	}
	for _, cells := range lines {
		for _, i := range cuttable {
			if i < len(cells) {
				cells[i] = shortened(cells[i], widths[i])
			}
		}
	}
}

// shortened leaves out the middle: keys often differ at the end.
func shortened(text string, width int) string {
	if displayWidth(text) <= width {
		return text
	}
	tail := tail(text, width/2)
	return head(text, width-1-displayWidth(tail)) + "…" + tail
}

// head is as much from the beginning as fits into width.
func head(text string, width int) string {
	used := 0
	for i, r := range text {
		if used += runeWidth(r); used > width {
			return text[:i]
		}
	}
	return text
}

// tail is as much from the end as fits into width. It does not begin with an accent,
// which would go to the character before.
func tail(text string, width int) string {
	rest := displayWidth(text)
	for i, r := range text {
		if rest <= width && runeWidth(r) > 0 {
			return text[i:]
		}
		rest -= runeWidth(r)
	}
	return ""
}

func displayWidth(text string) (width int) {
	for _, r := range text {
		width += runeWidth(r)
	}
	return width
}

// wide are the characters that most terminals draw over two columns: the scripts of
// East Asia (Unicode Standard Annex #11) and emoji.
var wide = &unicode.RangeTable{
	R16: []unicode.Range16{{Lo: 0x1100, Hi: 0x115f, Stride: 1}, {Lo: 0x2e80, Hi: 0x303e, Stride: 1}, {Lo: 0x3041, Hi: 0xa4cf, Stride: 1},
		{Lo: 0xa960, Hi: 0xa97f, Stride: 1}, {Lo: 0xac00, Hi: 0xd7a3, Stride: 1}, {Lo: 0xf900, Hi: 0xfaff, Stride: 1}, {Lo: 0xfe30, Hi: 0xfe6f, Stride: 1},
		{Lo: 0xff01, Hi: 0xff60, Stride: 1}, {Lo: 0xffe0, Hi: 0xffe6, Stride: 1}},
	R32: []unicode.Range32{{Lo: 0x16fe0, Hi: 0x18aff, Stride: 1}, {Lo: 0x1b000, Hi: 0x1b2ff, Stride: 1}, {Lo: 0x1f300, Hi: 0x1faff, Stride: 1}, {Lo: 0x20000, Hi: 0x3fffd, Stride: 1}},
}

func runeWidth(r rune) int {
	switch {
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case unicode.Is(wide, r):
		return 2
	default:
		return 1
	}
}

// screenWidth is 0 where w is no terminal, or one that does not tell how wide it is.
// As for other programs, COLUMNS counts more than what the terminal says.
func screenWidth(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	width, terminal := windowWidth(f)
	if !terminal {
		return 0
	}
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		return n
	}
	return width
}
