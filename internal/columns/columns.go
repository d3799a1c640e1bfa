// Package columns compares the columns of a statement with the Go type that its rows are
// to be read into, before the statement has run for the first time. The rows become JSON
// in PostgreSQL, by to_json, and are read by encoding/json.
//
// It reads examples of each column's type, among them the largest and the smallest values,
// into the Go type: what cannot be read, or is not the same afterwards, is refused.
package columns

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
)

// A Column is one of a statement's result.
type Column struct {
	Name string
	Type string // of pg_catalog as pg_type has it: int4, or _int4 for an array; else with its schema
	Enum bool
}

// Known reports whether PostgreSQL writes the values of the column's type in one form, or as text.
func (c Column) Known() bool {
	examples, _ := examplesOf(strings.TrimPrefix(c.Type, "_"), c.Enum)
	return examples != nil
}

// A Fit says how rows of these columns are read.
type Fit struct {
	// Object: a row is an object with the columns' names. Otherwise it is the value of
	// its one column.
	Object bool

	// Proven: each value that the columns can have can be read, but for those that JSON
	// or time.Time do not have, such as infinity, and but for what Flat and Base64 exclude.
	Proven bool

	Flat   []int // the columns that must have no array of arrays
	Base64 []int // the columns whose text must be Base64
}

// Match returns an error that names the column or the field that does not fit.
func Match(t reflect.Type, columns []Column) (Fit, error) {
	fit := Fit{Object: isObject(t), Proven: true}
	if !fit.Object && len(columns) != 1 {
		return Fit{}, fmt.Errorf("the statement has %d columns, and %v takes one: use a struct with a field for each", len(columns), t)
	}
	if fit.Object {
		if err := matchNames(t, columns); err != nil {
			return Fit{}, err
		}
	}
	for i, c := range columns {
		if err := fit.add(t, i, c); err != nil {
			return Fit{}, fmt.Errorf("column %q of type %s %w", c.Name, c.typeName(), err)
		}
	}
	return fit, nil
}

// isObject: a struct or a map takes the columns by their names, unless it reads JSON by a
// method of its own.
func isObject(t reflect.Type) bool {
	t = indirect(t)
	return !hasMethods(t) && (t.Kind() == reflect.Struct || t.Kind() == reflect.Map)
}

func indirect(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

var (
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

func hasMethods(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(jsonUnmarshaler) || p.Implements(textUnmarshaler)
}

// add looks at one column.
func (f *Fit) add(t reflect.Type, i int, c Column) error {
	target := indirect(t)
	if f.Object {
		target = indirect(fieldFor(target, c.Name))
	}
	element, array := strings.CutPrefix(c.Type, "_")
	switch {
	case element == "interval":
		return errors.New(`has a form that depends on the session: select it as text, or extract(epoch from ...)`)
	case element == "bytea":
		return errors.New(`is not what JSON has for bytes: select encode(..., 'base64'), which a []byte reads`)
	case target == reflect.TypeFor[[]byte]() && isText(element, c.Enum) && element != "bpchar" && !array:
		f.Base64 = append(f.Base64, i)
		return readExample(t, f.Object, c, target, `"AAAA"`)
	case target == reflect.TypeFor[json.RawMessage](): // any JSON is one, but not of any depth
		f.Proven = f.Proven && element != "json" && element != "jsonb"
		return readExample(t, f.Object, c, target, `"x"`)
	case element == "numeric" && isFloat(target):
		f.Proven = false // it can be too large
	case c.Type == "_timestamptz":
		f.Proven = false // an offset of the session can have seconds
	}
	if array {
		if target.Kind() == reflect.Array && !hasMethods(target) {
			return fmt.Errorf("can have another length than %v, of which JSON says nothing: use a slice", target)
		}
		f.Flat = append(f.Flat, i)
	}
	examples, closed := examplesOf(element, c.Enum)
	if array {
		examples = inArrays(examples)
	}
	if own := ownMethods(target); own || len(examples) == 0 {
		if len(examples) > 0 && knows(target, element) { // all of them have to be read
			examples = append(slices.Clone(examples), "null")
		}
		f.Proven = f.Proven && own && closed && knows(target, element)
		if len(examples) == 0 || !knows(target, element) {
			return readable(t, f.Object, c, target, examples, true)
		}
	}
	return readable(t, f.Object, c, target, examples, false)
}

// ownMethods: what the type, or the elements that it has, reads is decided by code.
func ownMethods(t reflect.Type) bool {
	for {
		switch {
		case hasMethods(t):
			return true
		case t.Kind() != reflect.Slice && t.Kind() != reflect.Array && t.Kind() != reflect.Pointer:
			return false
		}
		t = t.Elem()
	}
}

// knows: the methods of the type are known to read each value of the column's type.
func knows(t reflect.Type, column string) bool {
	for t.Kind() == reflect.Slice && !hasMethods(t) || t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t {
	case reflect.TypeFor[time.Time](), reflect.TypeFor[json.RawMessage]():
		return true
	}
	return column == "uuid" // the methods of a type for it
}

// readable reads the examples. Lenient: some of them may fail, for code of the type
// decides; the value is then read before it is committed.
func readable(t reflect.Type, object bool, c Column, target reflect.Type, examples []string, lenient bool) error {
	var failed error
	read := 0
	for _, example := range examples {
		if err := readExample(t, object, c, target, example); err != nil {
			failed = err
			continue
		}
		read++
	}
	if failed == nil || lenient && (read > 0 || isText(strings.TrimPrefix(c.Type, "_"), c.Enum)) {
		return nil
	}
	return failed
}

func readExample(t reflect.Type, object bool, c Column, target reflect.Type, example string) error {
	doc := example
	if object {
		name, _ := json.Marshal(c.Name)
		doc = fmt.Sprintf("{%s:%s}", name, example)
	}
	value := reflect.New(t)
	decoder := json.NewDecoder(strings.NewReader(doc))
	decoder.DisallowUnknownFields() // such as one that two embedded structs have
	if err := decoder.Decode(value.Interface()); err != nil {
		return fmt.Errorf("cannot be read into %v, for example %s: %s", target, example, remedyFor(c, target))
	}
	if c.Type == "numeric" && isFloat(target) {
		return nil // it was the caller's choice to have a float
	}
	again, err := json.Marshal(value.Interface())
	if err == nil && !sameNumbers(valueIn(doc, object, c.Name), valueIn(string(again), object, c.Name)) {
		return fmt.Errorf("loses digits in %v, for example of %s: %s", target, example, remedyFor(c, target))
	}
	return nil
}

func isFloat(t reflect.Type) bool {
	return t.Kind() == reflect.Float64 || t.Kind() == reflect.Float32
}

func remedyFor(c Column, target reflect.Type) string {
	switch {
	case target == reflect.TypeFor[time.Time]() && c.Type == "date":
		return "use a string, or select it as timestamptz"
	case target == reflect.TypeFor[time.Time]() && c.Type == "timestamp":
		return "it has no time zone: select it at time zone 'UTC', or use a string"
	case target.Kind() == reflect.Interface && isNumber(strings.TrimPrefix(c.Type, "_")):
		return "a number in an interface becomes a float64: use int64, json.Number or a string"
	case isNumber(c.Type) && target.Kind() == reflect.String:
		return "select it as text, or use a number"
	case isNumber(c.Type):
		return "use a type that has all its values, such as int64 or json.Number, or cast the column"
	}
	return "use another type, or cast the column"
}

func (c Column) typeName() string {
	if element, array := strings.CutPrefix(c.Type, "_"); array {
		return element + "[]"
	}
	return c.Type
}

// valueIn is the value of the column in a document, with numbers as they are written.
func valueIn(doc string, object bool, name string) any {
	var value any
	decoder := json.NewDecoder(strings.NewReader(doc))
	decoder.UseNumber()
	if decoder.Decode(&value) != nil {
		return nil
	}
	if !object {
		return value
	}
	fields, _ := value.(map[string]any)
	if v, ok := fields[name]; ok {
		return v
	}
	for key, v := range fields {
		if strings.EqualFold(key, name) {
			return v
		}
	}
	return nil
}

// sameNumbers compares what is a number, or a list of them, in a.
func sameNumbers(a, b any) bool {
	switch a := a.(type) {
	case json.Number:
		b, ok := b.(json.Number)
		return !ok || sameNumber(a, b)
	case []any:
		b, ok := b.([]any)
		return !ok || len(a) == len(b) && slices.EqualFunc(a, b, sameNumbers)
	}
	return true
}

func sameNumber(a, b json.Number) bool {
	if bytes.Equal([]byte(a), []byte(b)) {
		return true
	}
	x, okX := rational(a)
	y, okY := rational(b)
	return okX && okY && x.Cmp(y) == 0
}
