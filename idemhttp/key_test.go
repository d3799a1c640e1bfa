package idemhttp

import (
	"net/http"
	"strings"
	"testing"

	"github.com/dunglas/httpsfv"
	"github.com/pgidem/idempotency"
)

// keyFields is what clients send, and the key that it means; "" is an error.
var keyFields = []struct{ field, key string }{
	{`"8e03978e-40d5-43e8-bc93-6894a57f9324"`, "8e03978e-40d5-43e8-bc93-6894a57f9324"},
	{`8e03978e-40d5-43e8-bc93-6894a57f9324`, "8e03978e-40d5-43e8-bc93-6894a57f9324"},
	{`KG5LxwFBepaKHyUD`, "KG5LxwFBepaKHyUD"},
	{`"KG5LxwFBepaKHyUD"`, "KG5LxwFBepaKHyUD"},
	{`-_starts-like-a-nanoid`, "-_starts-like-a-nanoid"},
	{`order:17/retry=YQ==`, "order:17/retry=YQ=="},
	{`42`, "42"},
	{`-4.2`, "-4.2"},
	{`*`, "*"},
	{`""a""`, ""},
	{`"a b, c; d"`, "a b, c; d"},
	{`"a\"b\\c"`, `a"b\c`},
	{` "a" `, "a"},
	{" a\t", "a"},

	// parameters are accepted and ignored
	{`"a";v=1;w;x="y, z";t=:YQ==:`, "a"},
	{`a;v=1`, "a"},
	{`"a"; v=?0`, "a"},

	// two keys, or a list
	{`"a", "b"`, ""},
	{`a, b`, ""},
	{`a,b`, ""},
	{`("a")`, ""},
	{`("a" "b")`, ""},
	{`a b`, ""},
	{`"a" "b"`, ""},

	// other types
	{`:YQ==:`, ""},
	{`?1`, ""},
	{`@1659578233`, ""},
	{`%"a"`, ""},

	// garbage
	{``, ""},
	{`""`, ""},
	{`"`, ""},
	{`"a`, ""},
	{`a"`, ""},
	{`"a"b`, ""},
	{`"a\b"`, ""},
	{`a\b`, ""},
	{`"a";`, ""},
	{`"a";=`, ""},
	{`;v=1`, ""},
	{`{a}`, ""},
	{"\"a\tb\"", ""},
	{"a\x00b", ""},
	{"\"a\x00b\"", ""},
	{"\"a\x7fb\"", ""},
	{"\"a\nb\"", ""},
	{"\"ä\"", ""},
	{"ä", ""},
	{"\"a\xffb\"", ""},
	{`a;p="` + strings.Repeat("x", maxKeyField-6) + `"`, "a"},
	{`a;p="` + strings.Repeat("x", maxKeyField-5) + `"`, ""},
}

func TestKeyIsAStringOrABareKey(t *testing.T) {
	t.Parallel()
	for _, test := range keyFields {
		want := test.key
		key, err := parseKey([]string{test.field}, 255)
		if key != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v; want %q", test.field, key, err, want)
		}
	}
}

func TestNoFieldIsNoKey(t *testing.T) {
	t.Parallel()
	if key, err := parseKey(nil, 255); key != "" || err != nil {
		t.Errorf("got %q, %v", key, err)
	}
}

func TestKeyOnTwoLinesIsRefused(t *testing.T) {
	t.Parallel()
	for _, lines := range [][]string{{`"a"`, `"a"`}, {`"a`, `b"`}, {"a", ""}} {
		if key, err := parseKey(lines, 255); err == nil {
			t.Errorf("%q: got %q", lines, key)
		}
	}
}

func TestKeyHasALimit(t *testing.T) {
	t.Parallel()
	for _, quote := range []string{"", `"`} {
		for length, ok := range map[int]bool{9: true, 10: true, 11: false} {
			field := quote + strings.Repeat("a", length) + quote + ";v=1"
			if _, err := parseKey([]string{field}, 10); (err == nil) != ok {
				t.Errorf("%q: got %v", field, err)
			}
		}
	}
}

func TestKeysOfTheClientAreRead(t *testing.T) {
	t.Parallel()
	id := NewID()
	for _, field := range []string{id, `"` + id + `"`} {
		if key, err := parseKey([]string{field}, 255); key != id || err != nil {
			t.Errorf("%q: got %q, %v", field, key, err)
		}
	}
}

func FuzzKey(f *testing.F) {
	for _, test := range keyFields {
		f.Add(test.field)
	}
	f.Fuzz(func(t *testing.T, field string) {
		key, err := parseKey([]string{field}, 255)
		if err != nil {
			if key != "" {
				t.Errorf("%q: %q and %v", field, key, err)
			}
			return
		}
		if key == "" || len(key) > 255 || strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q: %q is no key", field, key)
		}
		quoted, err := httpsfv.Marshal(httpsfv.NewItem(key))
		if err != nil {
			t.Fatalf("%q: %q cannot be sent: %v", field, key, err)
		}
		if again, err := parseKey([]string{quoted}, 255); again != key || err != nil {
			t.Errorf("%q means %q, and %q means %q, %v", field, key, quoted, again, err)
		}
		// Everything that is a String by the RFC is taken as it says.
		item, err := httpsfv.UnmarshalItem([]string{field})
		if s, ok := item.Value.(string); err == nil && ok && s != key {
			t.Errorf("%q: got %q, RFC 9651 says %q", field, key, s)
		}
	})
}

func TestHeaderNamesAreAsUsersWriteThem(t *testing.T) {
	t.Parallel()
	cfg := Config{Header: "paypal-request-id"}.withDefaults(idempotency.Config{MaxResult: 1})
	if cfg.Header != http.CanonicalHeaderKey("PayPal-Request-Id") {
		t.Errorf("got %q", cfg.Header)
	}
}
