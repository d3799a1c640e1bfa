package kept

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// losesNumber reports whether there is a number in a JSON text that a float64 does
// not keep.
func losesNumber(doc []byte) bool {
	for i := 0; i < len(doc); i++ {
		switch c := doc[i]; {
		case c == '"':
			for i++; doc[i] != '"'; i++ {
				if doc[i] == '\\' {
					i++
				}
			}
		case c == '-' || '0' <= c && c <= '9':
			start := i
			for i++; i < len(doc) && strings.IndexByte("+-.eE0123456789", doc[i]) >= 0; i++ {
			}
			if !fitsFloat(doc[start:i]) {
				return true
			}
			i--
		}
	}
	return false
}

// fitsFloat reports whether a number is the same decimal after it was a float64. One
// that is too large is an error when it is read.
func fitsFloat(number []byte) bool {
	f, err := strconv.ParseFloat(string(number), 64)
	if err != nil {
		return true
	}
	var given, kept [32]byte
	digits, exponent := decimal(given[:0], number)
	same := func(text []byte) bool {
		d, e := decimal(kept[:0], text)
		return bytes.Equal(digits, d) && exponent == e
	}
	// The shortest decimal that means f, or, of a large integer such as 1<<60, all of it.
	return same(strconv.AppendFloat(nil, f, 'e', -1, 64)) || same(strconv.AppendFloat(nil, f, 'f', 0, 64))
}

// decimal returns the digits of a number without zeros at either end, appended to buf,
// and the exponent of 0.digits.
func decimal(buf, number []byte) (digits []byte, exponent int) {
	point := false
	for i, c := range number {
		switch {
		case c == '.':
			point = true
		case c == 'e' || c == 'E':
			e, _ := strconv.Atoi(string(number[i+1:])) // out of range: the largest
			return trimmed(buf, exponent+e)
		case '0' <= c && c <= '9':
			if !point && (len(buf) > 0 || c != '0') {
				exponent++
			}
			if point && len(buf) == 0 && c == '0' {
				exponent--
				continue
			}
			if len(buf) > 0 || c != '0' {
				buf = append(buf, c)
			}
		}
	}
	return trimmed(buf, exponent)
}

func trimmed(digits []byte, exponent int) ([]byte, int) {
	digits = bytes.TrimRight(digits, "0")
	if len(digits) == 0 {
		return nil, 0
	}
	return digits, exponent
}

// CheckNumbers returns an error that names a number of a stored value of type T that
// would be read into an interface, and loses digits there.
func CheckNumbers[T any](stored []byte) error {
	root := reflect.TypeFor[T]()
	if traitsOf(place{root, true, false})&opaque == 0 || !losesNumber(stored) {
		return nil
	}
	if lost := lostNumber[T](stored); lost != nil {
		return lost.in(root)
	}
	return nil
}

// lostNumber finds a number in an interface that a float64 does not keep. It decodes
// once more, with the texts of numbers.
func lostNumber[T any](stored []byte) *loss {
	var exact T
	decoder := json.NewDecoder(bytes.NewReader(stored))
	decoder.UseNumber()
	if decoder.Decode(&exact) != nil {
		return nil
	}
	return numberIn(reflect.ValueOf(&exact).Elem())
}

func numberIn(v reflect.Value) *loss {
	switch v.Kind() {
	case reflect.Interface:
		number, ok := v.Interface().(json.Number)
		if ok && !fitsFloat([]byte(number)) {
			f, _ := number.Float64()
			kept, _ := json.Marshal(f)
			return &loss{why: fmt.Sprintf("is %s and would be read back as %s, since a number in an interface becomes a float64: use a concrete type instead of the interface, such as int64 or json.Number, or a string", number, kept)}
		}
		if v.IsNil() {
			return nil
		}
		return numberIn(v.Elem())
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return numberIn(v.Elem())
	}
	if reflect.PointerTo(v.Type()).Implements(jsonUnmarshaler) {
		return nil // it has decoded by itself
	}
	for s, part := range inside(v) {
		if lost := numberIn(part); lost != nil {
			return lost.at(s)
		}
	}
	return nil
}
