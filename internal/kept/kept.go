// Package kept finds what JSON loses of a value without an error, in the first call,
// while it can still be rolled back:
//
//   - a struct whose fields are all unexported, where JSON uses no methods of it;
//   - a type with one of MarshalJSON and UnmarshalJSON only, when the value that is
//     read back is written in another way than the value that was given;
//   - the fields beside an embedded one whose MarshalJSON the struct has inherited;
//   - a number in an interface, which is read back as a float64;
//   - text that is not UTF-8.
//
// Each type is examined once. A value of a type in which nothing can be lost is not
// looked at.
package kept

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// Check returns an error that names the part of value that JSON has lost.
// Decoded is what was read back from stored, which was written from value.
func Check[T any](value, decoded *T, stored []byte) error {
	v, root := reflect.ValueOf(value).Elem(), reflect.TypeFor[T]()
	if found := traitsOf(place{root, true, false}); found != 0 {
		w := lossWalk{oneSided: found&oneSided != 0 && !writtenAs(decoded, stored)}
		if lost := w.look(v, false); lost != nil {
			return lost.in(root)
		}
		if found&opaque != 0 && losesNumber(stored) {
			if lost := lostNumber[T](stored); lost != nil {
				return lost.in(root)
			}
		}
	}
	// encoding/json itself writes this escape only for bytes that are not UTF-8; a
	// MarshalJSON may write it too.
	if bytes.Contains(stored, []byte(`\ufffd`)) {
		if lost := brokenText(v); lost != nil {
			return lost.in(root)
		}
	}
	return nil
}

func writtenAs(value any, stored []byte) bool {
	again, err := json.Marshal(value)
	return err == nil && bytes.Equal(again, stored)
}

// A loss is a part of a value that JSON does not keep.
type loss struct {
	path []step // from the inside
	why  string
}

// at adds the step that leads from a value to the part in which something was lost.
func (l *loss) at(s step) *loss {
	if l != nil {
		l.path = append(l.path, s)
	}
	return l
}

func (l *loss) in(root reflect.Type) error {
	return fmt.Errorf("%s %s", pathOf(root, l.path), l.why)
}

// A step leads from a value to one inside of it.
type step struct {
	field string
	index int
	key   reflect.Value // of a map
}

func (s step) String() string {
	switch {
	case s.field != "":
		return "." + s.field
	case s.key.IsValid() && s.key.Kind() == reflect.String:
		return fmt.Sprintf("[%q]", s.key.String())
	case s.key.IsValid():
		return fmt.Sprintf("[%v]", s.key)
	}
	return fmt.Sprintf("[%d]", s.index)
}

// pathOf names a part of a value of type root. The steps come from the inside.
func pathOf(root reflect.Type, steps []step) string {
	var b strings.Builder
	b.WriteString(root.String())
	for i := len(steps) - 1; i >= 0; i-- {
		b.WriteString(steps[i].String())
	}
	return b.String()
}
