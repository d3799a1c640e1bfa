package idempotency

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// What JSON loses of a value without an error is found here, in the first call, while
// it can still be rolled back:
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

// checkKept returns an error that names the part of value that JSON has lost.
// Decoded is what was read back from stored, which was written from value.
func checkKept[T any](value, decoded *T, stored []byte) error {
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
	// encoding/json writes this escape only for bytes that are not UTF-8; a
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
	return "it has a method to read it, and needs MarshalJSON (or MarshalText) to write what that reads"
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
			lost := &loss{why: fmt.Sprintf("is lost: %v has inherited its MarshalJSON or MarshalText from an embedded field, which writes only that one: give the embedded field a name", v.Type())}
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

// blame returns the smallest part of v that fails, and the steps to it, from the
// inside.
func blame(v reflect.Value, fails func(reflect.Value) bool) (reflect.Value, []step) {
	for (v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface) && !v.IsNil() && fails(v.Elem()) {
		v = v.Elem()
	}
	if writes, _ := (place{v.Type(), v.CanAddr(), false}).methods(); writes {
		return v, nil
	}
	for s, part := range inside(v) {
		if part.CanInterface() && fails(part) {
			part, steps := blame(part, fails)
			return part, append(steps, s)
		}
	}
	return v, nil
}

func cannotBeWritten(v reflect.Value) bool {
	_, err := json.Marshal(asJSONMeets(v))
	return err != nil
}

func cannotBeRead(v reflect.Value) bool {
	stored, err := json.Marshal(asJSONMeets(v))
	return err == nil && json.Unmarshal(stored, reflect.New(v.Type()).Interface()) != nil
}

// unkept is the error of a first call whose value cannot be written, or read back. It
// names the part that fails.
func unkept[T any](value *T, fails func(reflect.Value) bool, err error) error {
	part, steps := blame(reflect.ValueOf(value).Elem(), fails)
	remedy := concreteType(err)
	p := place{part.Type(), part.CanAddr(), false}
	if writes, reads := p.methods(); writes != reads && part.Kind() != reflect.Interface {
		remedy = oneSidedRemedy(p, writes) + ": "
	}
	return fmt.Errorf("%w, and nothing of this call was kept: %s: %s%w", ErrUndecodable, pathOf(reflect.TypeFor[T](), steps), remedy, err)
}

// concreteType is what to do about a value that was to be read into an interface.
func concreteType(err error) string {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && e.Type.Kind() == reflect.Interface {
		return fmt.Sprintf("JSON does not tell which type to make for the interface %v: use a concrete type instead: ", e.Type)
	}
	return ""
}
