package columns

import (
	"fmt"
	"reflect"
	"strings"
	"unicode"
)

// A field is what encoding/json reads a member of an object into.
type field struct {
	name   string // in JSON
	field  string // in Go
	column string // of the tag db, which JSON does not read
	kind   reflect.Type
}

// fieldsOf are those of a struct, with those of its embedded structs, the outermost of a
// name first.
func fieldsOf(t reflect.Type) (all []field) {
	level, seen := []reflect.Type{t}, map[reflect.Type]bool{}
	for len(level) > 0 {
		var next []reflect.Type
		for _, t := range level {
			if seen[t] {
				continue
			}
			seen[t] = true
			for i := range t.NumField() {
				f := t.Field(i)
				tag := f.Tag.Get("json")
				name, _, _ := strings.Cut(tag, ",")
				if !isKey(name) {
					name = ""
				}
				inner := indirect(f.Type)
				switch {
				case tag == "-":
				case f.Anonymous && name == "" && inner.Kind() == reflect.Struct:
					next = append(next, inner)
				case f.IsExported():
					if name == "" {
						name = f.Name
					}
					all = appendNew(all, field{name, f.Name, f.Tag.Get("db"), f.Type})
				}
			}
		}
		level = next
	}
	return all
}

// isKey: encoding/json passes over a tag with another name.
func isKey(name string) bool {
	return !strings.ContainsFunc(name, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("!#$%&()*+-./:;<=>?@[]^_{|}~ ", r)
	})
}

func appendNew(all []field, f field) []field {
	for _, former := range all {
		if former.name == f.name {
			return all
		}
	}
	return append(all, f)
}

// find is the field that encoding/json reads a member of that name into: one of exactly
// that name, else one that differs in the case of letters.
func find(all []field, name string) *field {
	for i := range all {
		if all[i].name == name {
			return &all[i]
		}
	}
	for i := range all {
		if strings.EqualFold(all[i].name, name) {
			return &all[i]
		}
	}
	return nil
}

// fieldFor is the type that a column of that name is read into. The names match.
func fieldFor(t reflect.Type, name string) reflect.Type {
	if t.Kind() == reflect.Map {
		return t.Elem()
	}
	return find(fieldsOf(t), name).kind
}

// matchNames: each column has a name of its own and a field, and each field has a column.
func matchNames(t reflect.Type, columns []Column) error {
	t = indirect(t)
	names := map[string]bool{}
	for _, c := range columns {
		if c.Name == "?column?" || c.Name == "" {
			return fmt.Errorf("the statement has a column without a name: select it as one")
		}
		if names[c.Name] {
			return fmt.Errorf("the statement has two columns of the name %q", c.Name)
		}
		names[c.Name] = true
	}
	if t.Kind() == reflect.Map {
		if t.Key().Kind() != reflect.String || hasMethods(t.Key()) {
			return fmt.Errorf("the keys of %v are not texts, and columns have names", t)
		}
		return nil
	}
	return matchFields(t, columns)
}

func matchFields(t reflect.Type, columns []Column) error {
	fields, taken := fieldsOf(t), map[string]string{}
	for _, c := range columns {
		f := find(fields, c.Name)
		if f == nil {
			for _, f := range fields {
				if column, _, _ := strings.Cut(f.column, ","); column == c.Name {
					return fmt.Errorf("column %q has no field of %v: %s has the tag db, and JSON reads the tag json: add json:%q", c.Name, t, f.field, c.Name)
				}
			}
			return fmt.Errorf("column %q has no field of %v: add one with json:%q, or leave the column out", c.Name, t, c.Name)
		}
		if other, ok := taken[f.name]; ok {
			return fmt.Errorf("columns %q and %q are both read into %s of %v", other, c.Name, f.field, t)
		}
		taken[f.name] = c.Name
	}
	for _, f := range fields {
		if _, ok := taken[f.name]; !ok {
			return fmt.Errorf("field %s of %v has no column: return one as %q, or give the field json:\"-\"", f.field, t, f.name)
		}
	}
	return nil
}
