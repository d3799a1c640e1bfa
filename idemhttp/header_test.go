package idemhttp_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemhttp"
)

func TestKeyHeaderOverTheWire(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, created)
	for _, test := range []struct{ lines, name string }{
		{"", "key-missing"},
		{"Idempotency-Key:\r\n", "key-invalid"},
		{"Idempotency-Key: \"\"\r\n", "key-invalid"},
		{"Idempotency-Key: a\r\nIdempotency-Key: a\r\n", "key-invalid"},
		{"Idempotency-Key: \"a\", \"b\"\r\n", "key-invalid"},
		{"Idempotency-Key: a, b\r\n", "key-invalid"},
		{"Idempotency-Key: a b\r\n", "key-invalid"},
		{"Idempotency-Key: \"a\r\n", "key-invalid"},
		{"Idempotency-Key: \"a\tb\"\r\n", "key-invalid"},
		{"Idempotency-Key: ä\r\n", "key-invalid"},
		{"Idempotency-Key: " + strings.Repeat("a", 256) + "\r\n", "key-invalid"},
		{"Idempotency-Key: a\x01b\r\n", ""}, // net/http's own 400
		{"Idempotency-Key: a\x00b\r\n", ""},
	} {
		got := raw(t, server, "POST / HTTP/1.1\r\nHost: x\r\nAccount: a\r\n"+test.lines+"Content-Length: 0\r\n\r\n")
		if !strings.HasPrefix(got, "HTTP/1.1 400 ") || !strings.Contains(got, test.name) {
			t.Errorf("%q: got %q", test.lines, got)
		}
	}
	b.ran(0)
}

func TestAllSpellingsOfAKeyAreTheSameKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, created)
	b.post(server, `8e03978e-40d5-43e8-bc93-6894a57f9324`).is(t, 201, `{"id": 1}`, false)
	for _, field := range []string{
		`8e03978e-40d5-43e8-bc93-6894a57f9324`,
		`"8e03978e-40d5-43e8-bc93-6894a57f9324"`,
		`"8e03978e-40d5-43e8-bc93-6894a57f9324";v=1`,
		`8e03978e-40d5-43e8-bc93-6894a57f9324; v=1`,
	} {
		b.post(server, field).is(t, 201, `{"id": 1}`, true)
	}
	b.post(server, `"8E03978E-40D5-43E8-BC93-6894A57F9324"`).is(t, 201, `{"id": 1}`, false) // case matters
	b.ran(2)
}

func TestOtherHeaderNames(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, name := range []string{"X-Idempotency-Key", "PayPal-Request-Id"} {
		server := b.protected(idemhttp.Config{Header: name}, created)
		b.post(server, "k").isProblem(t, 400, "key-missing")
		for _, replayed := range []bool{false, true} {
			b.do(server, "POST", "/", "", func(r *http.Request) { r.Header.Set(name, name) }).is(t, 201, `{"id": 1}`, replayed)
		}
	}
}

func TestProblemsAreProblemDetailsWithADocumentation(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const documentation = "https://api.example.com/docs/idempotency"
	for url, want := range map[string]string{"": "", documentation: "<" + documentation + `>; rel="describedby"; type="text/html"`} {
		server := b.protected(idemhttp.Config{Documentation: url}, created)
		got := b.do(server, "POST", "/", "{}", nil)
		got.isProblem(t, 400, "key-missing")
		if got.Header.Get("Link") != want {
			t.Errorf("Link is %q, want %q", got.Header.Get("Link"), want)
		}
		if !strings.Contains(got.body, "Idempotency-Key") || got.Header.Get("Content-Language") != "en" {
			t.Errorf("got %v %s", got.Header, got.body)
		}
	}
}

func TestEveryProblemTypeIsDocumented(t *testing.T) {
	t.Parallel()
	b := setup(t)
	doc, err := os.ReadFile("../docs/http.md")
	if err != nil {
		t.Fatal(err)
	}
	types := make(map[string]bool)
	for _, p := range b.middleware(idemhttp.Config{}).Policy().Problems {
		_, name, _ := strings.Cut(p.Type, "#")
		if !strings.Contains(string(doc), "\n### "+name+"\n") {
			t.Errorf("docs/http.md has no section %q", name)
		}
		types[p.Type] = true
	}
	if len(types) != 16 {
		t.Errorf("%d types", len(types))
	}
}

func TestPolicySaysWhatTheMiddlewareDoes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.store = b.storeOn(b.pool, idempotency.Config{Retention: time.Hour})
	m := b.middleware(idemhttp.Config{
		Header: "X-Idempotency-Key", Optional: true, Methods: []string{"POST", "PUT"}, MaxKeyLength: 64,
		MaxRequestBody: 1000, Documentation: "https://example.com/",
		KeepHeaders: []string{"age", "set-cookie"}, DropHeaders: []string{"X-Debug"},
		Record: func(status int, _, _ http.Header) bool { return status < 500 && status != 409 },
	})
	p := m.Policy()
	p.Scope = "an account"
	server := b.serve(p)
	got := b.do(server, "GET", "/", "", nil)
	var policy map[string]any
	if err := json.Unmarshal([]byte(got.body), &policy); err != nil || got.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("%v, %v", err, got.Header)
	}
	for name, want := range map[string]string{
		"header": "X-Idempotency-Key", "required": "false", "methods": "[POST PUT]", "max_key_length": "64",
		"max_request_body": "1000", "retention_seconds": "3600", "scope": "an account",
		"not_recorded_statuses": "[409 500-599]", "documentation": "https://example.com/",
		"specification": "draft-ietf-httpapi-idempotency-key-header-07 (expired)",
	} {
		if got := fmt.Sprint(policy[name]); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if list := fmt.Sprint(policy["not_replayed_headers"]); strings.Contains(list, "Age ") || !strings.Contains(list, " X-Debug ") || !strings.Contains(list, " !Lock-Token ") || !strings.Contains(list, " !set-cookie]") {
		t.Errorf("not_replayed_headers is %s", list)
	}
	if got := b.do(server, "POST", "/", "", nil); got.StatusCode != 405 || got.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %d, Allow %q", got.StatusCode, got.Header.Get("Allow"))
	}
}

func TestPolicyNamesTheFirstAndTheLastStatusThatAreNotRecorded(t *testing.T) {
	t.Parallel()
	m := setup(t).middleware(idemhttp.Config{Record: func(status int, _, _ http.Header) bool { return status != 200 && status != 599 }})
	if got := fmt.Sprint(m.Policy().NotRecorded); got != "[200 599]" {
		t.Error(got)
	}
}

func TestDefaultPolicy(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p := b.middleware(idemhttp.Config{}).Policy()
	if fmt.Sprint(p.NotRecorded) != "[307-308 401 403 406-409 411-412 416-417 421 423 425-426 428-429 431 500-599]" || !p.Required || p.RetentionSeconds != 86400 ||
		p.Header != "Idempotency-Key" || p.MaxKeyLength != 255 {
		t.Errorf("got %+v", p)
	}
	if !strings.HasSuffix(p.SameRequest, ": Content-Type, Content-Encoding, Content-Language, Content-Disposition, Content-Range") {
		t.Errorf("SameRequest is %q", p.SameRequest)
	}
	own := idemhttp.Config{Fingerprint: func(*http.Request, []byte) idempotency.Fingerprint { return idempotency.Fingerprint{} }}
	if p := b.middleware(own).Policy(); strings.Contains(p.SameRequest, "JSON") {
		t.Errorf("SameRequest is %q", p.SameRequest)
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for field, cfg := range map[string]idemhttp.Config{
		"Header":         {Header: "Idempotency Key"},
		"MaxKeyLength":   {MaxKeyLength: 256},
		"MaxRequestBody": {MaxRequestBody: -1},
		"MaxRecord":      {MaxRecord: -1},
		"Methods":        {Methods: []string{"POST", "HEAD"}},
		"Documentation":  {Documentation: "/docs"},
	} {
		cfg.Scope = account
		if _, err := idemhttp.New(b.store, cfg); err == nil || !strings.HasPrefix(err.Error(), "idemhttp: Config."+field+" is ") {
			t.Errorf("%s: %v", field, err)
		}
	}
	for _, keys := range [][][]byte{{[]byte("too short")}, {make([]byte, 16), make([]byte, 15)}} {
		_, err := idemhttp.New(b.store, idemhttp.Config{Scope: account, FingerprintKeys: keys})
		if err == nil || !strings.HasPrefix(err.Error(), "idemhttp: Config.FingerprintKeys is ") {
			t.Errorf("FingerprintKeys %q: %v", keys, err)
		}
	}
	for _, methods := range [][]string{{}, {"post"}, {"POST", "Put"}} {
		_, err := idemhttp.New(b.store, idemhttp.Config{Scope: account, Methods: methods})
		if err == nil || !strings.HasPrefix(err.Error(), "idemhttp: Config.Methods is ") {
			t.Errorf("Methods %q: %v", methods, err)
		}
	}
	// What is too small even for the status would be executed again and again.
	b.store = b.storeOn(b.pool, idempotency.Config{MaxResult: 28})
	if _, err := idemhttp.New(b.store, idemhttp.Config{Scope: account}); err == nil || !strings.HasPrefix(err.Error(), "idemhttp: Config.MaxRecord is 28: ") {
		t.Errorf("MaxRecord of 28: %v", err)
	}
	if _, err := idemhttp.New(nil, idemhttp.Config{Scope: account}); err == nil {
		t.Error("no store, and no error")
	}
}
