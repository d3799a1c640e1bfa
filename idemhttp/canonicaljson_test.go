package idemhttp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// sameJSON are groups of documents that say the same; no two groups do.
var sameJSON = [][]string{
	{`{"a":1,"b":[true,null]}`, ` { "b" : [ true , null ] , "a" : 1 } `, "{\"\\u0061\":1,\r\n\t\"b\":[true,null]}"},
	{`{"a":1,"b":[null,true]}`},
	{`{}`, ` { } `},
	{`[]`, "[\n]"},
	{`[[]]`},
	{`[{}]`},
	{`""`, ` "" `},
	{`"a"`, `"\u0061"`},
	{`"/"`, `"\/"`, `"\u002f"`, `"\u002F"`},
	{`"\n"`, `"\u000a"`, `"\u000A"`},
	{`"\b\f\r\t"`, `"\u0008\u000c\u000d\u0009"`},
	{`"\""`, `"\u0022"`},
	{`"\\"`, `"\u005c"`},
	{`"\\u0061"`},
	{`"é"`, `"\u00e9"`, `"\u00E9"`},
	{`"e\u0301"`}, // two characters
	{`"😀"`, `"\ud83d\ude00"`, `"\uD83D\uDE00"`},
	{`"\ud83d"`, `"\uD83D"`}, // half a pair is no character
	{`"\ude00\ud83d"`},
	{`"\ufffd"`, `"�"`},
	{"\"\xff\""}, // not UTF-8
	{"\"\xfe\""},
	{`"\ud83d\ud83d\ude00"`},
	{`"\u0000"`},
	{`0`}, {`-0`}, {`0.0`}, {`0e0`}, {`1`}, {`1.0`}, {`1e0`}, {`1E0`}, {`10e-1`},
	{`9007199254740992`}, {`9007199254740993`},
	{`0.1`}, {`0.10000000000000000001`}, {`1e999`}, {`1e1000`},
	{`"1"`}, {`true`}, {`"true"`}, {`null`}, {`"null"`},
	{`{"a":1}`}, {`{"a":"1"}`}, {`{"A":1}`}, {`{"a":null}`}, {`[1]`}, {`[1,1]`},
	{`{"a":1,"a":2}`}, {`{"a":2,"a":1}`}, {`{"a":2}`}, // a name twice: readers disagree
	{`{"a":1,"a":1}`},
	{`{"a":1,"b":2,"a":3}`, `{"b":2,"a":1,"a":3}`},
	{`{"a":{"b":1,"c":2},"d":0}`, `{"d":0,"a":{"c":2,"b":1}}`},
	{`{"a":{"b":1},"c":2,"d":0}`},
	{`{"ab":1,"a":2,"":3,"é":4,"😀":5}`, `{"😀":5,"":3,"a":2,"é":4,"ab":1}`},
}

func TestJSONThatSaysTheSameIsTheSame(t *testing.T) {
	t.Parallel()
	groups := make(map[string]int)
	for i, group := range sameJSON {
		for _, doc := range group {
			canonical, err := canonicalJSON([]byte(doc))
			if err != nil {
				t.Errorf("%s: %v", doc, err)
				continue
			}
			if j, seen := groups[string(canonical)]; seen && j != i {
				t.Errorf("%s is the same as %s", doc, sameJSON[j][0])
			} else if !seen && doc != group[0] {
				t.Errorf("%s is not the same as %s", doc, group[0])
			}
			groups[string(canonical)] = i
		}
	}
}

func TestWhatIsNotOneJSONDocumentHasNoCanonicalForm(t *testing.T) {
	t.Parallel()
	for _, doc := range []string{
		"", " ", "{", "}", `{"a"}`, `{"a":}`, `{"a":1,}`, `{a:1}`, `[1,]`, `1 2`, `{}{}`, `'a'`, `"a`, `"\x"`, `"\u12"`,
		"\"\n\"", "\"\x00\"", "01", "+1", ".5", "1.", "1e", "NaN", "True", "nul", "\ufeff{}", "// a\n1",
	} {
		if canonical, err := canonicalJSON([]byte(doc)); err == nil {
			t.Errorf("%q: got %q", doc, canonical)
		}
	}
}

func TestNestingIsBounded(t *testing.T) {
	t.Parallel()
	for depth, ok := range map[int]bool{10: true, maxJSONDepth: true, maxJSONDepth + 1: false, 100_000: false, 1_000_000: false} {
		for _, nest := range []struct{ open, end string }{{"[", "]"}, {`{"a":`, "}"}} {
			doc := strings.Repeat(nest.open, depth) + "1" + strings.Repeat(nest.end, depth)
			if _, err := canonicalJSON([]byte(doc)); (err == nil) != ok {
				t.Errorf("%d times %s: %v", depth, nest.open, err)
			}
		}
	}
}

func FuzzJSONHasOneFormForWhatItSays(f *testing.F) {
	for i, group := range sameJSON {
		for _, doc := range group {
			f.Add([]byte(doc), []byte(sameJSON[(i+1)%len(sameJSON)][0]), uint64(i))
		}
	}
	f.Fuzz(func(t *testing.T, a, b []byte, seed uint64) {
		canonicalA, errA := canonicalJSON(a)
		canonicalB, errB := canonicalJSON(b)
		if errA != nil {
			if json.Valid(a) && deepest(a) < maxJSONDepth {
				t.Errorf("%q: %v", a, errA)
			}
			return
		}
		if again, err := canonicalJSON(canonicalA); err != nil || !bytes.Equal(again, canonicalA) {
			t.Errorf("%q becomes %q, and that %q, %v", a, canonicalA, again, err)
		}
		if errB == nil && bytes.Equal(canonicalA, canonicalB) && !reflect.DeepEqual(decoded(t, a), decoded(t, b)) {
			t.Errorf("%q and %q are both %q", a, b, canonicalA)
		}
		if restyled, ok := restyle(rand.New(rand.NewPCG(seed, 0)), a); ok {
			if other, err := canonicalJSON(restyled); err != nil || !bytes.Equal(other, canonicalA) {
				t.Errorf("%q becomes %q, and %q becomes %q, %v", a, canonicalA, restyled, other, err)
			}
		}
	})
}

// deepest counts brackets, also those in strings.
func deepest(doc []byte) int { return bytes.Count(doc, []byte("[")) + bytes.Count(doc, []byte("{")) }

func decoded(t *testing.T, doc []byte) any {
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%q: %v", doc, err)
	}
	return v
}

// restyle writes a document in another way, unless encoding/json would change
// what it says: it repairs bad UTF-8, and drops members whose name comes again.
func restyle(r *rand.Rand, doc []byte) ([]byte, bool) {
	if !utf8.Valid(doc) || bytes.Contains(bytes.ToLower(doc), []byte(`\ud`)) {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	var out bytes.Buffer
	ok := restyleValue(r, d, &out)
	return out.Bytes(), ok
}

func space(r *rand.Rand) string { return []string{"", "", " ", "\n\t", "\r "}[r.IntN(5)] }

func restyleValue(r *rand.Rand, d *json.Decoder, out *bytes.Buffer) bool {
	token, err := d.Token()
	if err != nil {
		return false
	}
	out.WriteString(space(r))
	defer func() { out.WriteString(space(r)) }()
	switch v := token.(type) {
	case json.Delim:
		if v == '[' {
			return restyleArray(r, d, out)
		}
		return restyleObject(r, d, out)
	case string:
		out.WriteString(restyleString(r, v))
	case json.Number:
		out.WriteString(string(v))
	case nil:
		out.WriteString("null")
	default:
		fmt.Fprint(out, v)
	}
	return true
}

func restyleArray(r *rand.Rand, d *json.Decoder, out *bytes.Buffer) bool {
	out.WriteString("[" + space(r))
	for first := true; d.More(); first = false {
		if !first {
			out.WriteByte(',')
		}
		if !restyleValue(r, d, out) {
			return false
		}
	}
	_, _ = d.Token()
	out.WriteByte(']')
	return true
}

func restyleObject(r *rand.Rand, d *json.Decoder, out *bytes.Buffer) bool {
	var members []string
	names := make(map[string]bool)
	for d.More() {
		token, err := d.Token()
		name, isName := token.(string)
		if err != nil || !isName || names[name] {
			return false
		}
		names[name] = true
		var value bytes.Buffer
		if !restyleValue(r, d, &value) {
			return false
		}
		members = append(members, space(r)+restyleString(r, name)+space(r)+":"+value.String())
	}
	_, _ = d.Token()
	r.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	out.WriteString("{" + space(r) + strings.Join(members, ",") + "}")
	return true
}

func restyleString(r *rand.Rand, s string) string {
	var out strings.Builder
	out.WriteByte('"')
	for _, c := range s {
		escape := r.IntN(2) == 0 || c < ' ' || c == '"' || c == '\\'
		switch {
		case !escape:
			out.WriteRune(c)
		case c > 0xffff:
			c -= 0x10000
			fmt.Fprintf(&out, `\u%04x\u%04X`, 0xd800+c>>10, 0xdc00+c&0x3ff)
		default:
			fmt.Fprintf(&out, `\u%04x`, c)
		}
	}
	out.WriteByte('"')
	return out.String()
}

func BenchmarkCanonicalJSON(b *testing.B) {
	doc := []byte(`{"customer":"c-1","amount":1099,"currency":"EUR","lines":[{"sku":"a","n":2},{"n":1,"sku":"b"}],"note":"caf\u00e9"}`)
	b.SetBytes(int64(len(doc)))
	for b.Loop() {
		if _, err := canonicalJSON(doc); err != nil {
			b.Fatal(err)
		}
	}
}

// The last one counts in encoding/json, which ignores case.
func TestMembersWhoseNamesDifferInCaseStayInTheirOrder(t *testing.T) {
	t.Parallel()
	canonical := func(doc string) string {
		out, err := canonicalJSON([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	for _, pair := range [][2]string{
		{`{"amount":1,"Amount":100}`, `{"Amount":100,"amount":1}`},
		{`{"amount":1,"b":2,"AMOUNT":100}`, `{"AMOUNT":100,"b":2,"amount":1}`},
		{`{"s":1,"ſ":2}`, `{"ſ":2,"s":1}`},
		{`{"k":1,"\u212a":2}`, `{"\u212a":2,"k":1}`},
		{`{"\ud800":1,"\udfff":2}`, `{"\udfff":2,"\ud800":1}`},
		{`{"a\ud800":1,"A\ufffd":2}`, `{"A\ufffd":2,"a\ud800":1}`},
		{"{\"\\ud800\":1,\"\xff\":2}", "{\"\xff\":2,\"\\ud800\":1}"},
		{`{"\"a":1,"\"A":2}`, `{"\"A":2,"\"a":1}`},
	} {
		if canonical(pair[0]) == canonical(pair[1]) {
			t.Errorf("%q for both of %q", canonical(pair[0]), pair)
		}
	}
	for _, pair := range [][2]string{
		{`{"b":1,"a":2,"A":3}`, `{"a":2,"A":3,"b":1}`},
		{`{"\\ud800":1,"\\udfff":2}`, `{"\\udfff":2,"\\ud800":1}`}, // a backslash and letters
		{`{"\u0001":1,"\u0002":2}`, `{"\u0002":2,"\u0001":1}`},
	} {
		if a, b := canonical(pair[0]), canonical(pair[1]); a != b {
			t.Errorf("%q, %q", a, b)
		}
	}
}

// A comparison of two names that folded both again would take 30 times as long as
// encoding/json for such a body.
func TestEachCharacterOfANameIsFoldedOnce(t *testing.T) {
	t.Parallel()
	const names, length = 200, 50
	for _, letters := range []string{"kK\u212a", "sS\u017f", "a"} {
		var doc bytes.Buffer
		for i := range names {
			doc.WriteString(`,"`)
			for k := range length {
				all := []rune(letters)
				doc.WriteRune(all[(i>>(k%8)+k)%len(all)])
			}
			doc.WriteString(`":{"k":0}`)
		}
		c := canonicalizer{in: []byte("{" + doc.String()[1:] + "}")}
		if err := c.value(0); err != nil {
			t.Fatal(err)
		}
		if want := names * (length + 2 + 3); c.folds != want { // with the quotes, and the inner name
			t.Errorf("%s: %d characters were folded, want %d", letters, c.folds, want)
		}
	}
}
