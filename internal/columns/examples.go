package columns

import (
	"encoding/json"
	"maps"
	"math/big"
	"strings"
)

// numbers are examples of the types that to_json writes as numbers.
var numbers = map[string][]string{
	"int2":   {"-32768", "32767"},
	"int4":   {"-2147483648", "2147483647"},
	"int8":   {"-9223372036854775808", "9223372036854775807"},
	"float4": {"-3.4028235e+38", "1e-45", "0.1"},
	"float8": {"-1.7976931348623157e+308", "5e-324", "0.1"},
	// All digits of a numeric are written; one into an interface would lose some.
	"numeric": {"0.5", "-12.00", "123456789012345678.25"},
}

// others are examples of the types that to_json writes in one form each.
var others = map[string][]string{
	"bool":        {"true", "false"},
	"oid":         {`"0"`, `"4294967295"`}, // not a number in to_json
	"uuid":        {`"00000000-0000-0000-0000-000000000000"`, `"ffffffff-ffff-4fff-bfff-ffffffffffff"`},
	"date":        {`"2026-11-27"`, `"0001-01-01"`},
	"time":        {`"21:05:00"`, `"24:00:00"`, `"21:05:00.123456"`},
	"timetz":      {`"21:05:00+00"`, `"21:05:00.123456+05:30"`},
	"timestamp":   {`"2026-11-27T21:05:00"`, `"2026-11-27T21:05:00.123456"`},
	"timestamptz": {`"2026-11-27T21:05:00+00:00"`, `"2026-11-27T21:05:00.123456-05:30"`},
}

// texts are the types whose values are any text, and those that have a text form of
// their own.
var texts = []string{"text", "varchar", "bpchar", "name", "char", "xml",
	"inet", "cidr", "macaddr", "macaddr8", "bit", "varbit", "money", "tsvector", "tsquery", "pg_lsn", "xid8", "tid",
	"point", "line", "lseg", "box", "path", "polygon", "circle",
	"int4range", "int8range", "numrange", "daterange", "tsrange", "tstzrange",
	"regclass", "regtype", "regproc", "regprocedure", "regoper", "regrole", "regnamespace"}

var textExamples = []string{`""`, `"a b"`, `"\u00fc\n"`}

// Examples are those of the types that have one form, for the test that PostgreSQL writes
// them so.
func Examples() map[string][]string {
	all := maps.Clone(others)
	maps.Copy(all, numbers)
	return all
}

func isNumber(column string) bool { return numbers[column] != nil }

func isText(column string, enum bool) bool {
	if enum {
		return true
	}
	for _, t := range texts {
		if t == column {
			return true
		}
	}
	return false
}

// examplesOf are none for a type that is not known here, as of an extension, a composite
// type, or json: its value can be any JSON. Closed: values of the type have one form.
func examplesOf(column string, enum bool) (examples []string, closed bool) {
	switch {
	case isNumber(column):
		return numbers[column], true
	case others[column] != nil:
		return others[column], true
	case isText(column, enum):
		return textExamples, false
	}
	return nil, false
}

// inArrays are arrays of the examples: empty, with each, and with null.
func inArrays(examples []string) []string {
	if len(examples) == 0 {
		return nil
	}
	return []string{"[]", "[" + strings.Join(examples, ",") + "]", "[null]"}
}

func rational(n json.Number) (*big.Rat, bool) { return new(big.Rat).SetString(string(n)) }
