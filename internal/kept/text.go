package kept

import (
	"reflect"
	"unicode/utf8"
)

// brokenText finds a string, or the key of a map, that is not UTF-8.
func brokenText(v reflect.Value) *loss {
	const why = "is not valid UTF-8, which a JSON string cannot carry: use []byte"
	switch v.Kind() {
	case reflect.String:
		if !utf8.ValidString(v.String()) {
			return &loss{why: why}
		}
		return nil
	case reflect.Interface, reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return brokenText(v.Elem())
	}
	if writes, _ := (place{v.Type(), v.CanAddr(), false}).methods(); writes {
		return nil
	}
	for s, part := range inside(v) {
		if s.key.IsValid() && brokenText(s.key) != nil {
			return (&loss{why: why}).at(s)
		}
		if lost := brokenText(part); lost != nil {
			return lost.at(s)
		}
	}
	return nil
}
