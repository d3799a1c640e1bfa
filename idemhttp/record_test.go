package idemhttp

import (
	"bytes"
	"encoding/json"
	"net/http"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestRecordKeepsEveryByte(t *testing.T) {
	t.Parallel()
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	for _, body := range []string{"", "text", `{"a": "<b>&"}`, "\u2028\u2029\ufffd\x00\x7f", "😀", "\xff", string(every), "half \xf0\x9f"} {
		in := record{
			Status:  201,
			Header:  map[string][]octets{"A": {octets(body), octets("b")}, "Nil": {}},
			Body:    octets(body),
			Trailer: map[string][]octets{"T": {octets(body)}},
		}
		stored, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		var out record
		if err := json.Unmarshal(stored, &out); err != nil {
			t.Errorf("%q: %v", body, err)
		}
		if !bytes.Equal(out.Body, in.Body) || !reflect.DeepEqual(toHeader(out.Header), toHeader(in.Header)) ||
			!reflect.DeepEqual(toHeader(out.Trailer), toHeader(in.Trailer)) {
			t.Errorf("%q: stored as %s, read as %+v", body, stored, out)
		}
	}
}

func TestRecordIsReadable(t *testing.T) {
	t.Parallel()
	r := record{Status: 200, Header: toOctets(http.Header{"Content-Type": {"application/json"}}), Body: octets(`{"id": 1}`)}
	stored, err := json.Marshal(r)
	const want = `{"status":200,"header":{"Content-Type":["application/json"]},"body":"{\"id\": 1}"}`
	if string(stored) != want || err != nil {
		t.Errorf("got %s, %v", stored, err)
	}
	r = record{Status: 200, Body: octets("\xff\x00")}
	stored, err = json.Marshal(r)
	if string(stored) != `{"status":200,"body":{"base64":"/wA="}}` || err != nil {
		t.Errorf("got %s, %v", stored, err)
	}
}

func TestWhatIsNoRecordIsNotRead(t *testing.T) {
	t.Parallel()
	for _, stored := range []string{
		`{}`, `null`, `1`, `"a"`, `[]`, `{"status":0}`, `{"status":101}`, `{"status":1000}`, `{"status":"200"}`,
		`{"status":200,"body":1}`, `{"status":200,"body":{}}`, `{"status":200,"body":{"base64":"?"}}`,
		`{"status":200,"body":[]}`, `{"status":200,"header":{"A":"b"}}`, `{"status":200,"header":{"A":[null]}}`,
	} {
		var r record
		if err := json.Unmarshal([]byte(stored), &r); err == nil {
			t.Errorf("%s was read as %+v", stored, r)
		}
	}
}

func TestErrorOfWhatIsNoRecordShowsNothingOfIt(t *testing.T) {
	t.Parallel()
	for _, stored := range []string{
		`{"status":4111}`, `{"status":41111111111111111111}`, `{"status":4111.5}`, `{"status":"4111"}`, `{"status":200,"body":4111}`,
		`{"status":200,"header":4111}`, `{"status":200,"header":{"A":[41111111111111111111]}}`, `{"status":200,"omitted":4111}`,
		`{"status":200,"body":{"base64":"4111?"}}`, `{"status":200,"deleted":[4111]}`, `4111`,
	} {
		var r record
		err := json.Unmarshal([]byte(stored), &r)
		if err == nil || strings.Contains(err.Error(), "4111") {
			t.Errorf("%s: %v", stored, err)
		}
	}
}

func TestFittingRecordIsNeverLarger(t *testing.T) {
	t.Parallel()
	r := record{
		Status: 201,
		Header: toOctets(http.Header{"Location": {"/charges/1"}, "Etag": {`"1"`}, "X-Note": {strings.Repeat("n", 200)}}),
		Body:   octets(strings.Repeat("b", 300)),
	}
	whole, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for less, omitted := range map[int]bool{0: false, 1: true} {
		if small, err := r.fitting(len(whole) - less); err != nil || small.Omitted != omitted {
			t.Errorf("in %d of %d bytes: %+v, %v", len(whole)-less, len(whole), small, err)
		}
	}
	left := make(map[string]bool)
	for limit := 40; limit < 700; limit++ {
		small, err := r.fitting(limit)
		if err != nil {
			t.Fatal(err)
		}
		stored, err := json.Marshal(small)
		if err != nil || len(stored) > limit {
			t.Errorf("%d bytes for %d, %v", len(stored), limit, err)
		}
		if small.Status != 201 || small.Omitted == (len(small.Body) > 0) {
			t.Errorf("%+v for %d", small, limit)
		}
		left[string(stored)] = true
	}
	if len(left) != 4 {
		t.Errorf("%d kinds of records: %v", len(left), left)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(200, "Content-Type", "text/plain", []byte("hello"), "T", "v")
	f.Add(201, "Location", "/a\xff", []byte{0, 0xff}, "", "")
	f.Add(299, "", "", []byte("\u2028<&>\ufffd"), "X", "\x00")
	f.Fuzz(func(t *testing.T, status int, name, value string, body []byte, trailer, trailerValue string) {
		status = 200 + (status%800+800)%800
		name, trailer = strings.ToValidUTF8(name, "-"), strings.ToValidUTF8(trailer, "-") // as tokens are
		in := record{
			Status:  status,
			Header:  toOctets(http.Header{name: {value, "b"}}),
			Body:    body,
			Trailer: toOctets(http.Header{trailer: {trailerValue}}),
		}
		stored, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		var out record
		if err := json.Unmarshal(stored, &out); err != nil {
			t.Fatalf("%s: %v", stored, err)
		}
		if out.Status != status || !bytes.Equal(out.Body, body) ||
			!reflect.DeepEqual(toHeader(out.Header), toHeader(in.Header)) ||
			!reflect.DeepEqual(toHeader(out.Trailer), toHeader(in.Trailer)) {
			t.Errorf("%+v was stored as %s and read as %+v", in, stored, out)
		}
	})
}

func FuzzStoredBytesNeverPanic(f *testing.F) {
	f.Add([]byte(`{"status":200,"body":"a","header":{"A":["b",{"base64":"/w=="}]}}`))
	f.Add([]byte(`{"status":200,"body":{"base64":null}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, stored []byte) {
		var r record
		if json.Unmarshal(stored, &r) != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatalf("%s: %v", stored, err)
		}
		var out record
		if err := json.Unmarshal(again, &out); err != nil || !bytes.Equal(out.Body, r.Body) || out.Status != r.Status {
			t.Errorf("%s became %s, and that %+v, %v", stored, again, out, err)
		}
	})
}

func TestWhatIsTooLargeToRecordIsNotMadeJSONFirst(t *testing.T) {
	// It measures what the process allocates: not parallel.
	for name, r := range map[string]record{
		"body":    {Status: 200, Body: bytes.Repeat([]byte("\xff"), 16<<20)},
		"header":  {Status: 200, Header: map[string][]octets{"A": {bytes.Repeat([]byte("a"), 16<<20)}}},
		"added":   {Status: 200, Added: map[string][]octets{"A": {bytes.Repeat([]byte("a"), 16<<20)}}},
		"trailer": {Status: 200, Trailer: map[string][]octets{"A": {bytes.Repeat([]byte("a"), 16<<20)}}},

		"a body that its escapes make too large": {Status: 200, Body: bytes.Repeat([]byte("\x01"), 1<<20-100)},
		"a body of HTML":                         {Status: 200, Body: bytes.Repeat([]byte("<>&"), 300<<10)},
		"a body of line separators":              {Status: 200, Body: bytes.Repeat([]byte("\u2028\u2029"), 150<<10)},
		"a body of quotes":                       {Status: 200, Body: bytes.Repeat([]byte(`\"`), 400<<10)},
		"bytes that base64 makes too large":      {Status: 200, Body: bytes.Repeat([]byte("\xff"), 1<<20-100)},
		"many empty values":                      {Status: 200, Header: map[string][]octets{"A": make([]octets, 1<<20)}},
		"values that escapes make too large":     {Status: 200, Header: map[string][]octets{"A": {bytes.Repeat([]byte("<"), 1<<20-100)}}},
		"many deleted fields":                    {Status: 200, Deleted: make([]string, 1<<20)},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		small, err := r.fitting(1 << 20)
		runtime.ReadMemStats(&after)
		if err != nil || !small.Omitted || small.Status != 200 {
			t.Errorf("%s: got %+v, %v", name, small, err)
		}
		if made := after.TotalAlloc - before.TotalAlloc; made > 1<<16 {
			t.Errorf("%s: %d KiB were allocated", name, made>>10)
		}
	}
}

func TestSizeIsNeverMoreThanTheJSON(t *testing.T) {
	t.Parallel()
	everyByte, everyRune := record{Status: 200}, record{Status: 200}
	for i := range 256 {
		everyByte.Body = append(everyByte.Body, byte(i))
	}
	for r := range rune(0x3000) {
		everyRune.Body = utf8.AppendRune(everyRune.Body, r)
	}
	for _, r := range []record{
		{Status: 200},
		{Status: 200, Body: octets("a")},
		{Status: 200, Body: octets("\xff")},
		{Status: 200, Header: map[string][]octets{"A": {octets("b"), octets("c")}, "D": {}}, Added: map[string][]octets{"E": {octets("f")}}},
		{Status: 200, Trailer: map[string][]octets{"A": {octets("\xff\xfe")}}, Deleted: []string{"A"}},
		{Status: 200, Deleted: []string{"A", "B"}, Header: map[string][]octets{"A": nil, "B": {nil, nil}}},
		everyByte, everyRune,
	} {
		stored, err := json.Marshal(r)
		if err != nil || r.size() > len(stored) {
			t.Errorf("size %d of %s, %v", r.size(), stored, err)
		}
	}
}
