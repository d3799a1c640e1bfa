package kept

import (
	"encoding"
	"encoding/json"
	"reflect"
	"runtime"
	"strings"
	"sync"
)

var (
	jsonMarshaler   = reflect.TypeFor[json.Marshaler]()
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textMarshaler   = reflect.TypeFor[encoding.TextMarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// A place is a type and where JSON meets it.
type place struct {
	typ         reflect.Type
	addressable bool // methods on the pointer count
	inInterface bool // it is read back as a map, a slice, a string or a number
}

// methods reports whether JSON writes, and reads back, a value by its own methods.
func (p place) methods() (writes, reads bool) {
	pointer := reflect.PointerTo(p.typ)
	has := func(method reflect.Type) bool {
		return p.typ.Implements(method) || p.addressable && pointer.Implements(method)
	}
	writesJSON := has(jsonMarshaler)
	// UnmarshalText is called for a string, which MarshalJSON need not have written.
	reads = pointer.Implements(jsonUnmarshaler) || !writesJSON && pointer.Implements(textUnmarshaler)
	return writesJSON || has(textMarshaler), reads
}

// Traits of a type are what can be lost in its values.
type traits uint8

const (
	opaque   traits = 1 << iota // only the value can tell, such as what is in an interface
	oneSided                    // it has methods to write without those to read, or the reverse
)

// known has the traits of each place: by type, for the four combinations of the rest.
// A key that is a reflect.Type is not allocated.
var known [2][2]sync.Map

func traitsOf(p place) traits {
	types := &known[index(p.addressable)][index(p.inInterface)]
	if found, ok := types.Load(p.typ); ok {
		return found.(traits)
	}
	s := survey{seen: make(map[place]bool), inlined: make(map[place]bool)}
	s.visit(p)
	types.Store(p.typ, s.found)
	return s.found
}

func index(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A survey collects the traits of all types that JSON can reach from one.
type survey struct {
	seen    map[place]bool
	inlined map[place]bool // of these only the fields, and not their methods
	found   traits
}

func (s *survey) visit(p place) {
	if s.seen[p] {
		return
	}
	s.seen[p] = true
	t := p.typ
	switch t.Kind() {
	case reflect.Interface:
		s.found |= opaque
		return
	case reflect.Pointer:
		s.visit(place{t.Elem(), true, p.inInterface})
		return
	}
	writes, reads := p.methods()
	switch {
	case writes && (reads || p.inInterface):
		if t.Kind() == reflect.Struct && shapeOf(t).inherits {
			s.found |= opaque
		}
		return
	case writes != reads && !p.inInterface:
		s.found |= oneSided
		if writes {
			return
		}
	}
	switch t.Kind() {
	case reflect.Struct:
		s.fields(p)
	case reflect.Slice:
		s.visit(place{t.Elem(), true, p.inInterface})
	case reflect.Array:
		s.visit(place{t.Elem(), p.addressable, p.inInterface})
	case reflect.Map:
		s.visit(place{t.Elem(), false, p.inInterface})
	}
}

func (s *survey) fields(p place) {
	shape := shapeOf(p.typ)
	if shape.hidden && p.typ.Size() > 0 {
		s.found |= opaque
	}
	for _, f := range shape.fields {
		in := place{p.typ.Field(f.index).Type, p.addressable, p.inInterface}
		if !f.inlined {
			s.visit(in)
			continue
		}
		if in.typ.Kind() == reflect.Pointer {
			in.typ, in.addressable = in.typ.Elem(), true
		}
		if !s.inlined[in] {
			s.inlined[in] = true
			s.fields(in)
		}
	}
}

// A shape is a struct as JSON sees it.
type shape struct {
	fields   []field
	hidden   bool // it has fields, and all of them are unexported
	inherits bool // its MarshalJSON or MarshalText is an embedded field's, which leaves the others out
}

type field struct {
	index   int
	name    string
	inlined bool // an embedded struct, whose fields are written as those of the outer one
	writer  bool // embedded, with a MarshalJSON or MarshalText
}

var shapes sync.Map

func shapeOf(t reflect.Type) *shape {
	if s, ok := shapes.Load(t); ok {
		return s.(*shape)
	}
	s, exported, writers := &shape{}, 0, 0
	for i := range t.NumField() {
		f := t.Field(i)
		inner := f.Type
		if f.Anonymous && inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		if f.IsExported() {
			exported++
		}
		writer, _ := place{inner, true, false}.methods()
		if writer = writer && f.Anonymous; writer {
			writers++
		}
		embedded := f.Anonymous && inner.Kind() == reflect.Struct
		tag := f.Tag.Get("json")
		if tag == "-" || !f.IsExported() && !embedded {
			continue
		}
		name, _, _ := strings.Cut(tag, ",")
		s.fields = append(s.fields, field{index: i, name: f.Name, inlined: embedded && name == "", writer: writer})
	}
	s.hidden = t.NumField() > 0 && exported == 0 && len(s.fields) == 0
	s.inherits = writers > 0 && inheritsMarshaler(t)
	shapes.Store(t, s)
	return s
}

// inheritsMarshaler reports whether t has not declared the method by which JSON writes
// it: the compiler has made the method that calls the one of the embedded field.
func inheritsMarshaler(t reflect.Type) bool {
	for _, in := range []reflect.Type{t, reflect.PointerTo(t)} {
		m, ok := in.MethodByName("MarshalJSON")
		if !ok && !reflect.PointerTo(t).Implements(jsonMarshaler) {
			m, ok = in.MethodByName("MarshalText")
		}
		if ok {
			pc := m.Func.Pointer()
			file, _ := runtime.FuncForPC(pc).FileLine(pc)
			return file == "<autogenerated>"
		}
	}
	return false
}
