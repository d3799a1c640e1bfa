package idemhttp

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strconv"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// maxJSONDepth bounds what a hostile document costs.
const maxJSONDepth = 128

var errNotJSON = errors.New("idemhttp: not one JSON document, too large, or nested too deeply")

// canonicalJSON returns one text for all documents that say the same: without
// white space, the members of objects in the order of their names, and every
// string with the same escapes.
//
// Numbers stay as they are written, so 1, 1.0 and 1e0 are three numbers:
// whoever reads them decides which are equal, and a retry sends the same bytes.
// As floats, 9007199254740993 and 9007199254740992 would be one. Members of the
// same name all stay, in their order, since readers disagree on which counts; so do
// those whose names differ in case only, which encoding/json takes for the same.
func canonicalJSON(doc []byte) ([]byte, error) {
	if uint64(len(doc)) > maxJSONSize || !json.Valid(doc) {
		return nil, errNotJSON
	}
	most := min(bytes.Count(doc, []byte(":")), bytes.Count(doc, []byte(`"`))/2) // a member has a colon and a name
	c := canonicalizer{in: doc, out: make([]byte, 0, len(doc)), members: make([]member, 0, most)}
	if err := c.value(0); err != nil {
		return nil, err
	}
	return c.out, nil
}

// A canonicalizer copies a document that is known to be valid.
type canonicalizer struct {
	in  []byte
	out []byte

	members  []member // of the objects around this place, the innermost last
	unsorted []byte   // kept for the next object that is to be sorted
	folded   []byte   // so are the names without their case
	folds    int      // how many characters were folded, for the test
}

func (c *canonicalizer) value(depth int) error {
	if depth > maxJSONDepth {
		return errNotJSON
	}
	switch c.peek() {
	case '{':
		return c.object(depth)
	case '[':
		return c.array(depth)
	case '"':
		c.string()
	default:
		c.literal()
	}
	return nil
}

// peek skips white space.
func (c *canonicalizer) peek() byte {
	c.in = bytes.TrimLeft(c.in, " \t\r\n")
	return c.in[0]
}

// copy takes the next byte that is no white space.
func (c *canonicalizer) copy() byte {
	b := c.peek()
	c.in = c.in[1:]
	c.out = append(c.out, b)
	return b
}

func (c *canonicalizer) array(depth int) error {
	c.copy()
	if c.peek() == ']' {
		c.copy()
		return nil
	}
	for {
		if err := c.value(depth + 1); err != nil {
			return err
		}
		if c.copy() == ']' {
			return nil
		}
	}
}

// A member is a place in the output: the name and its value. Its name without case is a
// place in folded while the object is sorted, which has four bytes for each number: a
// document can have a member for each five bytes.
type member struct {
	start, colon, end int
	folded, foldedEnd uint32
}

// maxJSONSize keeps the places in folded below 2^32: a byte of a name becomes three at most.
const maxJSONSize = math.MaxUint32 / 3

func (c *canonicalizer) object(depth int) error {
	c.copy()
	if c.peek() == '}' {
		c.copy()
		return nil
	}
	first, outer := len(c.out), len(c.members)
	for {
		m := member{start: len(c.out)}
		c.peek()
		c.string()
		m.colon = len(c.out)
		c.copy()
		if err := c.value(depth + 1); err != nil {
			return err
		}
		m.end = len(c.out)
		c.members = append(c.members, m)
		if c.copy() == '}' {
			c.sort(first, c.members[outer:])
			c.members = c.members[:outer]
			return nil
		}
	}
}

// sort puts the members, which begin at first, in the order of their names.
func (c *canonicalizer) sort(first int, members []member) {
	byName := func(a, b member) int {
		return bytes.Compare(c.out[a.start:a.colon], c.out[b.start:b.colon])
	}
	c.foldNames(members)
	byFolded := func(a, b member) int {
		return bytes.Compare(c.folded[a.folded:a.foldedEnd], c.folded[b.folded:b.foldedEnd])
	}
	slices.SortStableFunc(members, byFolded)
	same := false
	for i := 1; i < len(members) && !same; i++ {
		same = byFolded(members[i-1], members[i]) == 0
	}
	if !same {
		slices.SortStableFunc(members, byName)
	}
	if slices.IsSortedFunc(members, func(a, b member) int { return cmp.Compare(a.start, b.start) }) {
		return
	}
	c.unsorted = append(c.unsorted[:0], c.out[first:]...)
	c.out = c.out[:first]
	for i, m := range members {
		if i > 0 {
			c.out = append(c.out, ',')
		}
		c.out = append(c.out, c.unsorted[m.start-first:m.end-first]...)
	}
	c.out = append(c.out, '}')
}

// foldNames writes down each name as UTF-8 without case, once: a comparison that folded
// both names again would let a body of 1 MiB take a second. The order of UTF-8 is that of
// the characters. Names that encoding/json takes for the same become the same: it takes
// each half of a surrogate pair, and each byte that is not UTF-8, for the replacement
// character.
func (c *canonicalizer) foldNames(members []member) {
	c.folded = c.folded[:0]
	for i := range members {
		m := &members[i]
		m.folded = uint32(len(c.folded))
		for name := c.out[m.start:m.colon]; len(name) > 0; {
			r, n := decodeRune(name)
			c.folded = utf8.AppendRune(c.folded, folded(r))
			c.folds++
			name = name[n:]
		}
		m.foldedEnd = uint32(len(c.folded))
	}
}

// decodeRune is of a string in the canonical form.
func decodeRune(s []byte) (rune, int) {
	if s[0] != '\\' {
		return utf8.DecodeRune(s)
	}
	r, n := unescape(s)
	if utf16.IsSurrogate(r) {
		r = utf8.RuneError
	}
	return r, n
}

// folded is the smallest of the characters that differ in case only.
func folded(r rune) rune {
	if r <= unicode.MaxASCII {
		return unicode.ToUpper(r)
	}
	for {
		next := unicode.SimpleFold(r)
		if next <= r {
			return next
		}
		r = next
	}
}

// literal copies a number, true, false or null.
func (c *canonicalizer) literal() {
	end := bytes.IndexAny(c.in, ",]} \t\r\n")
	if end < 0 {
		end = len(c.in)
	}
	c.out = append(c.out, c.in[:end]...)
	c.in = c.in[end:]
}

// string copies a string with the fewest escapes. What no UTF-8 can say stays
// apart: half a surrogate pair as an escape, and bytes that are not UTF-8 as
// they are.
func (c *canonicalizer) string() {
	c.out = append(c.out, '"')
	i := 1
	for c.in[i] != '"' {
		if c.in[i] != '\\' {
			c.out = append(c.out, c.in[i])
			i++
			continue
		}
		r, length := unescape(c.in[i:])
		c.out = appendRune(c.out, r)
		i += length
	}
	c.out = append(c.out, '"')
	c.in = c.in[i+1:]
}

// unescape returns the character of an escape and the length of the escape.
func unescape(s []byte) (rune, int) {
	switch s[1] {
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'u':
	default:
		return rune(s[1]), 2
	}
	r := hex4(s[2:])
	if utf16.IsSurrogate(r) && len(s) >= 12 && s[6] == '\\' && s[7] == 'u' {
		if pair := utf16.DecodeRune(r, hex4(s[8:])); pair != utf8.RuneError {
			return pair, 12
		}
	}
	return r, 6
}

func hex4(s []byte) rune {
	n, _ := strconv.ParseUint(string(s[:4]), 16, 32) // valid JSON has four digits
	return rune(n)
}

func appendRune(out []byte, r rune) []byte {
	const digits = "0123456789abcdef"
	switch {
	case r == '"' || r == '\\':
		return append(out, '\\', byte(r))
	case r < ' ' || utf16.IsSurrogate(r):
		return append(out, '\\', 'u', digits[r>>12&15], digits[r>>8&15], digits[r>>4&15], digits[r&15])
	}
	return utf8.AppendRune(out, r)
}
