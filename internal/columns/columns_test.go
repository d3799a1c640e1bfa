package columns

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

type inner struct {
	ID int64 `json:"id"`
}

type Inner struct {
	ID int64 `json:"id"`
}

type outer struct {
	*Inner
	Name string
}

// JSON cannot make the embedded struct.
type unsettable struct{ *inner }

type shadowed struct {
	untagged
	ID string
}

type twice struct {
	untagged
	other
}

type untagged struct{ ID int64 }

type other struct{ ID int64 }

type nested struct {
	Inner inner `json:"inner"`
}

type ignored struct {
	ID     int64 `json:"id"`
	Secret int   `json:"-"`
	hidden int
}

type unsettableDoc struct{ *hiddenDoc }

type hiddenDoc struct {
	Doc json.RawMessage `json:"doc"`
}

// nullHater is a UUID that has to be there.
type nullHater [16]byte

func (n *nullHater) UnmarshalJSON(doc []byte) error {
	if string(doc) == "null" {
		return errors.New("there is none")
	}
	return nil
}

// custom reads what it likes.
type custom struct{ N int }

func (c *custom) UnmarshalJSON(doc []byte) error { return json.Unmarshal(doc, &c.N) }

// quotedName has a tag that encoding/json passes over, and staticcheck refuses.
var quotedName = reflect.StructOf([]reflect.StructField{{Name: "ID", Type: reflect.TypeFor[int64](), Tag: `json:"\"other\""`}})

func column(name, kind string) Column { return Column{Name: name, Type: kind} }

func TestColumnsAndTypesThatFit(t *testing.T) {
	t.Parallel()
	id := column("id", "int8")
	for _, c := range []struct {
		t       reflect.Type
		columns []Column
		object  bool
		proven  bool
	}{
		{reflect.TypeFor[int64](), []Column{id}, false, true},
		{reflect.TypeFor[*int64](), []Column{id}, false, true},
		{reflect.TypeFor[json.Number](), []Column{column("n", "numeric")}, false, true},
		{reflect.TypeFor[float64](), []Column{column("n", "numeric")}, false, false},
		{reflect.TypeFor[float64](), []Column{column("n", "int4")}, false, true},
		{reflect.TypeFor[float64](), []Column{column("n", "float4")}, false, true},
		{reflect.TypeFor[float32](), []Column{column("n", "float4")}, false, true},
		{reflect.TypeFor[any](), []Column{column("n", "int4")}, false, true},
		{reflect.TypeFor[string](), []Column{column("n", "oid")}, false, true},
		{reflect.TypeFor[time.Time](), []Column{column("at", "timestamptz")}, false, true},
		{reflect.TypeFor[[]time.Time](), []Column{column("at", "_timestamptz")}, false, false},
		{reflect.TypeFor[string](), []Column{column("at", "timestamp")}, false, true},
		{reflect.TypeFor[[]string](), []Column{column("t", "_text")}, false, true},
		{reflect.TypeFor[string](), []Column{{Name: "mood", Type: "mood", Enum: true}}, false, true},
		{reflect.TypeFor[json.RawMessage](), []Column{column("doc", "jsonb")}, false, false},
		{reflect.TypeFor[json.RawMessage](), []Column{column("n", "int4")}, false, true},
		{reflect.TypeFor[string](), []Column{column("c", "public.circle")}, false, false},
		{reflect.TypeFor[any](), []Column{column("doc", "jsonb")}, false, false},
		{reflect.TypeFor[[]string](), []Column{column("doc", "json")}, false, false},
		{reflect.TypeFor[string](), []Column{column("h", "hstore")}, false, false},
		{reflect.TypeFor[custom](), []Column{id}, false, false},
		{reflect.TypeFor[[]custom](), []Column{column("id", "_int8")}, false, false},
		{reflect.TypeFor[outer](), []Column{id, column("name", "text")}, true, true},
		{reflect.TypeFor[*outer](), []Column{id, column("Name", "text")}, true, true},
		{reflect.TypeFor[shadowed](), []Column{column("id", "text")}, true, true},
		{reflect.TypeFor[ignored](), []Column{id}, true, true},
		{quotedName, []Column{id}, true, true}, // by the name of the field
		{reflect.TypeFor[nested](), []Column{column("inner", "jsonb")}, true, false},
		{reflect.TypeFor[map[string]int64](), []Column{id, column("n", "int2")}, true, true},
	} {
		fit, err := Match(c.t, c.columns)
		if err != nil || fit.Object != c.object || fit.Proven != c.proven {
			t.Errorf("%v of %v: %+v, %v; want object %v, proven %v", c.t, c.columns, fit, err, c.object, c.proven)
		}
	}
}

func TestWhatIsCheckedOfEachValueIsNamed(t *testing.T) {
	t.Parallel()
	type row struct {
		ID    int64   `json:"id"`
		List  []int32 `json:"list"`
		Bytes []byte  `json:"bytes"`
	}
	fit, err := Match(reflect.TypeFor[row](), []Column{column("bytes", "text"), column("id", "int8"), column("list", "_int4")})
	if err != nil || !reflect.DeepEqual(fit, Fit{Object: true, Proven: true, Flat: []int{2}, Base64: []int{0}}) {
		t.Errorf("%+v, %v", fit, err)
	}
}

func TestColumnsAndTypesThatDoNotFit(t *testing.T) {
	t.Parallel()
	id := column("id", "int8")
	for _, c := range []struct {
		t       reflect.Type
		columns []Column
		says    string
	}{
		{reflect.TypeFor[twice](), []Column{id}, `column "id" of type int8`}, // JSON passes over both
		{reflect.TypeFor[ignored](), []Column{id, column("Secret", "int4")}, `"Secret" has no field`},
		{reflect.TypeFor[ignored](), []Column{id, column("hidden", "int4")}, `"hidden" has no field`},
		{reflect.TypeFor[ignored](), []Column{id, id}, "two columns"},
		{reflect.TypeFor[ignored](), []Column{id, column("ID", "int8")}, "both read into"},
		{reflect.TypeFor[ignored](), []Column{column("?column?", "int8")}, "without a name"},
		{reflect.TypeFor[outer](), []Column{id}, "field Name of"},
		{reflect.TypeFor[map[custom]int](), []Column{id}, "not texts"},
		{reflect.TypeFor[map[string]any](), []Column{id}, "an interface"},
		{reflect.TypeFor[any](), []Column{column("n", "_numeric")}, "an interface"},
		{reflect.TypeFor[float32](), []Column{column("n", "int4")}, "loses digits"},
		{reflect.TypeFor[float64](), []Column{id}, "loses digits"},
		{reflect.TypeFor[int16](), []Column{column("n", "int4")}, "cannot be read into int16"},
		{reflect.TypeFor[uint](), []Column{column("n", "int2")}, "cannot be read into uint"},
		{reflect.TypeFor[time.Time](), []Column{column("d", "date")}, "timestamptz"},
		{reflect.TypeFor[time.Time](), []Column{column("d", "text")}, "cannot be read"},
		{reflect.TypeFor[unsettable](), []Column{id}, "cannot be read"},
		{reflect.TypeFor[*time.Time](), []Column{column("d", "timestamp")}, "time zone"},
		{reflect.TypeFor[[]time.Time](), []Column{column("d", "_date")}, "cannot be read"},
		{reflect.TypeFor[custom](), []Column{column("d", "date")}, "cannot be read"},
		{reflect.TypeFor[string](), []Column{column("i", "interval")}, "depends on the session"},
		{reflect.TypeFor[json.RawMessage](), []Column{column("i", "_interval")}, "depends on the session"},
		{reflect.TypeFor[json.RawMessage](), []Column{column("i", "bytea")}, "base64"},
		{reflect.TypeFor[uint32](), []Column{column("n", "oid")}, "cannot be read"},
		{reflect.TypeFor[[]byte](), []Column{column("b", "bpchar")}, "cannot be read"},
		{reflect.TypeFor[nullHater](), []Column{column("u", "uuid")}, "null"},
		{reflect.TypeFor[unsettableDoc](), []Column{column("doc", "int4")}, "cannot be read"},
		{reflect.TypeFor[[2]int64](), []Column{column("l", "_int8")}, "use a slice"},
		{reflect.TypeFor[string](), []Column{id, id}, "has 2 columns"},
		{reflect.TypeFor[string](), nil, "has 0 columns"},
	} {
		if _, err := Match(c.t, c.columns); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v of %v: %v, want %q", c.t, c.columns, err, c.says)
		}
	}
	_ = ignored{hidden: 0}
}
