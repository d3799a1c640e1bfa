package idemhttp

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/pgidem/idempotency"
)

// allocated is how many bytes a function makes the process allocate.
func allocated(f func()) int {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int(after.TotalAlloc - before.TotalAlloc)
}

// numbered repeats a text that has a number in it, up to a size.
func numbered(format string, size int) string {
	var b strings.Builder
	for i := 0; b.Len() < size; i++ {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

func TestFingerprintCostsInProportionToTheRequest(t *testing.T) {
	// It measures what the process allocates: not parallel.
	const mega = 1 << 20
	const form, multi = "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"
	part := func(header, data string) string { return "--x\r\n" + header + "\r\n" + data + "\r\n" }
	for name, test := range map[string]struct{ contentType, body string }{
		"bytes":                                {"application/octet-stream", strings.Repeat("\xff", mega)},
		"a form of many pairs":                 {form, strings.Repeat("&", mega)},
		"a form of many names":                 {form, numbered("a%d=&", mega)},
		"JSON that is deep":                    {"application/json", strings.Repeat("[", mega/2) + strings.Repeat("]", mega/2)},
		"JSON objects that are deep":           {"application/json", strings.Repeat(`{"":`, mega/5) + "1" + strings.Repeat("}", mega/5)},
		"JSON as deep as is looked":            {"application/json", "[" + strings.TrimSuffix(strings.Repeat(strings.Repeat("[", 127)+strings.Repeat("]", 127)+",", mega/255), ",") + "]"},
		"JSON of many members":                 {"application/json", "{" + strings.Repeat(`"":1,`, mega/5) + `"":1}`},
		"JSON of many members out of order":    {"application/json", `{"b":1,` + strings.Repeat(`"a":1,`, mega/6) + `"":1}`},
		"JSON of many objects":                 {"application/json", "[" + strings.Repeat(`{"":1},`, mega/7) + `1]`},
		"JSON of many objects out of order":    {"application/json", "[" + strings.Repeat(`{"b":1,"a":1},`, mega/14) + `1]`},
		"JSON objects inside of one another":   {"application/json", "[" + strings.Repeat(strings.Repeat(`{"":1,"":`, 100)+"1"+strings.Repeat("}", 100)+",", mega/1002) + `1]`},
		"JSON out of order at every depth":     {"application/json", strings.Repeat(`{"b":1,"a":`, 120) + `"` + strings.Repeat("a", mega) + `"` + strings.Repeat("}", 120)},
		"JSON of many escapes":                 {"application/json", `"` + strings.Repeat(`\ud800`, mega/6) + `"`},
		"multipart of many parts":              {"multipart/form-data; boundary=x", strings.Repeat("--x\n\n", mega/5) + "--x--"},
		"multipart of the many parts allowed":  {multi, strings.Repeat(part("", strings.Repeat("a", 1000)), 999) + "--x--"},
		"multipart of one large part":          {multi, part("", strings.Repeat("a", mega)) + "--x--"},
		"multipart that does not end":          {multi, strings.Repeat("--x\r\n\r\n", mega/7)},
		"multipart with a large part header":   {multi, part("A: "+strings.Repeat("a", mega)+"\r\n", "") + "--x--"},
		"multipart with many part headers":     {multi, part(strings.Repeat("a:\r\n", mega/4), "") + "--x--"},
		"multipart with many allowed headers":  {multi, strings.Repeat(part(numbered("a%d:\r\n", mega/50), ""), 50) + "--x--"},
		"multipart with a folded part header":  {multi, part("A: a\r\n"+strings.Repeat(" a\r\n", mega/4), "") + "--x--"},
		"multipart in many lines":              {multi, part("", strings.Repeat("\r\n-", mega/3)) + "--x--"},
		"multipart with a preamble":            {multi, strings.Repeat("\r\n", mega/2) + part("", "") + "--x--"},
		"a Content-Type of many parameters":    {"text/plain" + numbered(";a%d=1", mega), ""},
		"a multipart type of many parameters":  {multi + numbered(";a%d=1", mega), ""},
		"a Content-Type in many continuations": {"text/plain" + numbered(";a*%d=1", mega), ""},
		"a JSON type of many parameters":       {"application/json;charset=utf-8" + numbered(";a%d=1", mega), "{}"},
		"a Content-Type that is encoded":       {"text/plain; a*=utf-8''" + strings.Repeat("%61", mega/3), ""},
	} {
		r := httptest.NewRequest("POST", "/", nil)
		r.Header.Set("Content-Type", test.contentType)
		size, body := len(test.contentType)+len(test.body), []byte(test.body)
		made := allocated(func() { fingerprint(r, body, []string{"Content-Type", "Content-Encoding"}) })
		if made > 10*size || strings.HasSuffix(name, "one large part") && made > size+size/2 {
			t.Errorf("%s: %d bytes were allocated for %d", name, made, size)
		}
	}
}

func TestHeaderFieldsAreCopiedForTheScopeAlone(t *testing.T) {
	// It measures what the process allocates: not parallel.
	r := httptest.NewRequest("POST", "/", nil)
	for i := range 100_000 {
		r.Header[fmt.Sprint("A", i)] = []string{""}
	}
	r.Header.Set("Idempotency-Key", "k")
	m := &Middleware{cfg: Config{Scope: func(*http.Request) (string, error) { return "a", nil }}.withDefaults(idempotency.Config{})}
	copied := allocated(func() { r.Header.Clone() })
	made := allocated(func() {
		if _, problem := (&exchange{m: m, r: r}).key(); problem != nil {
			t.Error(problem)
		}
	})
	if made > copied+copied/2 {
		t.Errorf("%d bytes were allocated, where a copy of the header takes %d", made, copied)
	}
}

func TestHostileKeyFieldIsNotParsed(t *testing.T) {
	// It measures what the process allocates: not parallel.
	for _, line := range []string{
		`"k"` + numbered(";a%d=1", 1<<20), "k" + numbered(";a%d", 1<<20), strings.Repeat("a", 1<<20),
		`"` + strings.Repeat(`\"`, 1<<19) + `"`, "(" + strings.Repeat("a ", 1<<19) + ")",
	} {
		made := allocated(func() {
			if key, err := parseKey([]string{line}, 255); err == nil {
				t.Errorf("got %q", key)
			}
		})
		if made > 1<<16 {
			t.Errorf("%.20s...: %d bytes were allocated", line, made)
		}
	}
	longest := `"` + strings.Repeat(`\"`, 255) + `"` + strings.Repeat(";a", 1700)
	if key, err := parseKey([]string{longest}, 255); err != nil || len(key) != 255 {
		t.Errorf("of a key of 255 characters, got %d, %v", len(key), err)
	}
}
