package transport

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/pgidem/idempotency"
)

func TestSizeOfOctetsIsThatOfTheirJSON(t *testing.T) {
	t.Parallel()
	check := func(o Octets) {
		stored, err := json.Marshal(o)
		if err != nil || o.Size() != len(stored) {
			t.Errorf("size %d of %.50s, %v", o.Size(), stored, err)
		}
	}
	for i := range 1 << 16 {
		check(Octets{byte(i), byte(i >> 8)})
	}
	for r := range rune(0x3000) {
		check(utf8.AppendRune([]byte("a"), r))
	}
	check(nil)
	check(Octets("\U0001f600\U0010ffff\ufeff\ufffd"))
}

func TestRecordOfACallKeepsEveryByte(t *testing.T) {
	t.Parallel()
	for value, stored := range map[string]string{"": `""`, "text": `"text"`, "\x00\u2028ä": `"\u0000\u2028ä"`, "\xff\x00": `{"base64":"/wA="}`} {
		fields := map[string][]string{"a": {value, "b"}, "none": {}}
		in := Record{Code: "OK", Response: []byte(value + "r"), Header: ToOctets(fields), Trailer: ToOctets(fields), ReplacedHeader: []string{"x"}, ReplacedTrailer: []string{"y"}}
		doc, err := json.Marshal(in)
		if err != nil || strings.Count(string(doc), `{"a":[`+stored+`,"b"],"none":[]}`) != 2 {
			t.Errorf("%s, %v", doc, err)
		}
		var out Record
		if err := json.Unmarshal(doc, &out); err != nil || !reflect.DeepEqual(in, out) || !reflect.DeepEqual(FromOctets(out.Header), fields) {
			t.Errorf("%s is read as %+v, %v", doc, out, err)
		}
	}
	if none, err := json.Marshal(Record{Code: "OK", Header: ToOctets(nil)}); string(none) != `{"code":"OK"}` || err != nil {
		t.Errorf("%s, %v", none, err)
	}
}

// The error is reported, and the result can be a secret.
func TestWhatIsNoRecordOfACallIsNotReadAndNotShown(t *testing.T) {
	t.Parallel()
	for _, doc := range []string{
		`4111`, `null`, `{}`, `[]`, `{"code":""}`, `{"code":4111}`, `{"code":"OK","header":{"a":[4111]}}`, `{"code":"OK","header":{"a":[null]}}`,
		`{"code":"OK","header":{"a":[{}]}}`, `{"code":"OK","header":{"a":[{"base64":null}]}}`, `{"code":"OK","header":{"a":[{"base64":"4111?"}]}}`,
	} {
		var r Record
		if err := json.Unmarshal([]byte(doc), &r); !errors.Is(err, errNotRecord) || strings.Contains(err.Error(), "4111") {
			t.Errorf("%s is read as %+v, %v", doc, r, err)
		}
	}
}

func TestHandlerFindsTheTransactionOfItsOwnRun(t *testing.T) {
	t.Parallel()
	if RunOf(t.Context()) != nil || Tx(t.Context()) != nil {
		t.Error("there is a run outside of every handler")
	}
	outer := &Run{Tx: Watch(nil), Key: idempotency.Key{ID: "outer"}}
	inner := &Run{Tx: Watch(nil), Key: idempotency.Key{ID: "inner"}}
	ctx, cancel := context.WithCancel(inner.In(outer.In(t.Context())))
	cancel()
	if RunOf(ctx) != inner || Tx(ctx) != inner.Tx {
		t.Errorf("found %+v", RunOf(ctx))
	}
}
