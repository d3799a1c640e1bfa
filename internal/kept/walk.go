package kept

import (
	"encoding/json"
	"fmt"
	"iter"
	"reflect"
	"slices"
)

// inside are the values that JSON writes one by one as parts of v. A value with
// methods of its own has none.
func inside(v reflect.Value) iter.Seq2[step, reflect.Value] {
	return func(yield func(step, reflect.Value) bool) {
		switch v.Kind() {
		case reflect.Struct:
			for _, f := range shapeOf(v.Type()).fields {
				if !yield(step{field: f.name}, v.Field(f.index)) {
					return
				}
			}
		case reflect.Slice, reflect.Array:
			for i := range v.Len() {
				if !yield(step{index: i}, v.Index(i)) {
					return
				}
			}
		case reflect.Map:
			for entries := v.MapRange(); entries.Next(); {
				if !yield(step{key: entries.Key()}, entries.Value()) {
					return
				}
			}
		}
	}
}

// A lossWalk looks for what was lost in a value.
type lossWalk struct {
	oneSided bool // something was, in a type with one-sided methods, or nothing is certain
}

func (w lossWalk) look(v reflect.Value, inInterface bool) *loss {
	p := place{v.Type(), v.CanAddr(), inInterface}
	found := traitsOf(p)
	if !w.oneSided {
		found &^= oneSided
	}
	if found == 0 {
		return nil
	}
	switch v.Kind() {
	case reflect.Interface:
		if isPlain(v.Interface()) {
			return nil
		}
		return w.look(v.Elem(), true)
	case reflect.Map:
		if isPlain(v.Interface()) {
			return nil
		}
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return w.look(v.Elem(), inInterface)
	}
	writes, reads := p.methods()
	switch {
	case writes && (reads || inInterface):
		return besideInherited(v)
	case writes != reads && !inInterface:
		if w.oneSided && !comesBack(v) {
			return &loss{why: fmt.Sprintf("(type %v) is read back as another value: %s", v.Type(), oneSidedRemedy(p, writes))}
		}
		if writes {
			return nil
		}
	}
	return w.parts(v, inInterface)
}

// parts looks into a value that JSON writes without methods of its own.
func (w lossWalk) parts(v reflect.Value, inInterface bool) *loss {
	if v.Kind() != reflect.Struct {
		for s, part := range inside(v) {
			if lost := w.look(part, inInterface); lost != nil {
				return lost.at(s)
			}
		}
		return nil
	}
	shape := shapeOf(v.Type())
	if shape.hidden && !v.IsZero() {
		return &loss{why: hiddenWhy(v)}
	}
	for _, f := range shape.fields {
		part := v.Field(f.index)
		var lost *loss
		switch {
		case !f.inlined:
			lost = w.look(part, inInterface)
		case part.Kind() != reflect.Pointer:
			lost = w.parts(part, inInterface)
		case !part.IsNil():
			lost = w.parts(part.Elem(), inInterface)
		}
		if lost != nil {
			return lost.at(step{field: f.name})
		}
	}
	return nil
}

func hiddenWhy(v reflect.Value) string {
	why := fmt.Sprintf("(type %v) is lost: all its fields are unexported, and JSON writes it as {}: ", v.Type())
	if writes, _ := (place{v.Type(), true, false}).methods(); writes && !v.CanAddr() {
		return why + "its MarshalJSON or MarshalText is on the pointer, which JSON does not use for a value in a map or an interface: put a pointer there"
	}
	return why + "export them, or give it MarshalJSON and UnmarshalJSON"
}

func oneSidedRemedy(p place, writes bool) string {
	switch pointed, _ := (place{p.typ, true, false}).methods(); {
	case writes:
		return "it has a method to write it, and needs UnmarshalJSON (or UnmarshalText) to read that"
	case pointed:
		return "its MarshalJSON or MarshalText is on the pointer, which JSON does not use for a value in a map: put a pointer there"
	}
	return "it has UnmarshalJSON (or UnmarshalText), and needs MarshalJSON (or MarshalText) that writes what the other reads"
}

// isPlain reports whether v is made of what JSON makes of an object, an array, a string
// and so on, or of numbers. It spares the most frequent values the reflection.
func isPlain(v any) bool {
	switch v := v.(type) {
	case nil, bool, string, float64, int, int64, json.Number:
		return true
	case []any:
		return !slices.ContainsFunc(v, isNotPlain)
	case map[string]any:
		for _, part := range v {
			if isNotPlain(part) {
				return false
			}
		}
		return true
	}
	return false
}

func isNotPlain(v any) bool { return !isPlain(v) }

// besideInherited finds what a method that was inherited from an embedded field leaves
// out.
func besideInherited(v reflect.Value) *loss {
	if v.Kind() != reflect.Struct || !shapeOf(v.Type()).inherits {
		return nil
	}
	for _, f := range shapeOf(v.Type()).fields {
		if !f.writer && !v.Field(f.index).IsZero() {
			lost := &loss{why: fmt.Sprintf("is lost: %v has inherited its MarshalJSON or MarshalText from an embedded field, which writes only that field: give the embedded field a name", v.Type())}
			return lost.at(step{field: f.name})
		}
	}
	return nil
}

// comesBack reports whether a value that JSON has read back is written as it was.
func comesBack(v reflect.Value) bool {
	stored, err := json.Marshal(asJSONMeets(v))
	if err != nil {
		return false
	}
	decoded := reflect.New(v.Type())
	if err := json.Unmarshal(stored, decoded.Interface()); err != nil {
		return false
	}
	if !v.CanAddr() {
		decoded = decoded.Elem()
	}
	return writtenAs(decoded.Interface(), stored)
}

// asJSONMeets is v with the methods on its pointer where JSON would use them.
func asJSONMeets(v reflect.Value) any {
	if v.CanAddr() {
		return v.Addr().Interface()
	}
	return v.Interface()
}
