package kept

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
)

// NotWritten names the part of a value that JSON cannot write.
func NotWritten[T any](value *T, err error) error { return blamed(value, cannotBeWritten, err) }

// NotRead names the part of a value that JSON has written and cannot read back.
func NotRead[T any](value *T, err error) error { return blamed(value, cannotBeRead, err) }

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

func blamed[T any](value *T, fails func(reflect.Value) bool, err error) error {
	part, steps := blame(reflect.ValueOf(value).Elem(), fails)
	p := place{part.Type(), part.CanAddr(), false}
	if writes, reads := p.methods(); writes != reads && part.Kind() != reflect.Interface {
		err = fmt.Errorf("%s: %w", oneSidedRemedy(p, writes), err)
	} else {
		err = Advised(err)
	}
	return fmt.Errorf("%s: %w", pathOf(reflect.TypeFor[T](), steps), err)
}

// Advised adds to the error of a text that was to be read into an interface what to do
// about it.
func Advised(err error) error {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && e.Type.Kind() == reflect.Interface {
		return fmt.Errorf("JSON does not tell which type to make for the interface %v: use a concrete type instead: %w", e.Type, err)
	}
	return err
}
