package idemhttp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestMethodThatIsNotIdempotentGetsAKeyInQuotes(t *testing.T) {
	t.Parallel()
	quotedUUIDv7 := regexp.MustCompile(`^"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"$`)
	for _, method := range []string{"POST", "PATCH", "LOCK", "post"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			srv := serve(t, answer(201))
			req := post(t, srv.URL, "x")
			req.Method = method
			resp, err := srv.client().Do(req)
			check(t, resp, err, 201, 1)
			field := srv.only(t)
			if !quotedUUIDv7.MatchString(field) {
				t.Errorf("the field is %s", field)
			}
			if key, _ := Sent(resp, err); `"`+key+`"` != field {
				t.Errorf("Sent's key is %s, the field %s", key, field)
			}
		})
	}
}

func TestOtherMethodsArePassedOnAsTheyAre(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"", "GET", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PUT", "DELETE"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			req := post(t, "http://example.com/", "x")
			req.Method = method
			passedOn(t, req)
		})
	}
}

func TestSafeMethodIgnoresTheKeyOfTheContext(t *testing.T) {
	t.Parallel()
	req := post(t, "http://example.com/", "")
	req.Method = "GET"
	passedOn(t, req.WithContext(WithKey(t.Context(), "order-42")))
}

func TestHeaderFieldWithoutValueIsPassedOnAsItIs(t *testing.T) {
	t.Parallel()
	req := post(t, "http://example.com/", "x")
	req.Header["Idempotency-Key"] = nil
	passedOn(t, req.WithContext(WithKey(t.Context(), "order-42")))
}

// passedOn checks that Base gets req itself, once, and the caller its response.
func passedOn(t *testing.T, req *http.Request) {
	t.Helper()
	calls := 0
	want := &http.Response{StatusCode: 503, Body: http.NoBody}
	tr := &Transport{sleep: noSleep, Base: roundTrip(func(got *http.Request) (*http.Response, error) {
		if calls++; got != req {
			t.Error("the request is another one")
		}
		return want, nil
	})}
	resp, err := tr.RoundTrip(req)
	if resp != want || err != nil || calls != 1 {
		t.Errorf("the response is %v, %v after %d calls", resp, err, calls)
	}
	if key, attempts := Sent(resp, err); key != "" || attempts != 0 {
		t.Errorf("Sent is %q, %d", key, attempts)
	}
}

func TestErrorOfARequestWithoutKeyIsNotWrapped(t *testing.T) {
	t.Parallel()
	cause := errors.New("cause")
	tr := &Transport{Base: roundTrip(func(*http.Request) (*http.Response, error) { return nil, cause })}
	req := post(t, "http://example.com/", "")
	req.Method = "GET"
	if _, err := tr.RoundTrip(req); err != cause {
		t.Errorf("the error is %v", err)
	}
}

func TestCallersFieldIsSentByteForByte(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ field, key string }{
		"bare":              {`8e03978e-40d5-43e8-bc93-6894a57f9324`, `8e03978e-40d5-43e8-bc93-6894a57f9324`},
		"in quotes":         {`"order \"42\""`, `order "42"`},
		"with parameters":   {`"order-42";v=1`, `order-42`},
		"of another syntax": {`{order 42}`, `{order 42}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := serve(t, answer(503), answer(201))
			req := post(t, srv.URL, "x")
			req.Header.Set("Idempotency-Key", test.field)
			// The header is nearer to the request than the context.
			resp, err := srv.client().Do(req.WithContext(WithKey(t.Context(), "other")))
			check(t, resp, err, 201, 2)
			srv.sameKeyAndBody(t, 2, "x")
			if got := srv.seen()[0].lines[0]; got != test.field {
				t.Errorf("the field arrived as %s", got)
			}
			if key, _ := Sent(resp, err); key != test.key {
				t.Errorf("Sent's key is %s", key)
			}
		})
	}
}

func TestCallersFieldIsFoundInAnyCase(t *testing.T) {
	t.Parallel()
	srv := serve(t, answer(503), answer(201))
	req := post(t, srv.URL, "x")
	req.Header["idempotency-key"] = []string{"order-42"}
	resp, err := srv.client().Do(req)
	check(t, resp, err, 201, 2)
	srv.sameKeyAndBody(t, 2, "x")
}

func TestKeyOfTheContextIsSentInQuotes(t *testing.T) {
	t.Parallel()
	for key, field := range map[string]string{
		"order-42":     `"order-42"`,
		`a "b" \c~ ,;`: `"a \"b\" \\c~ ,;"`,
	} {
		srv := serve(t, answer(503), answer(201))
		resp, err := srv.client().Do(post(t, srv.URL, "x").WithContext(WithKey(t.Context(), key)))
		check(t, resp, err, 201, 2)
		srv.sameKeyAndBody(t, 2, "x")
		if got := srv.seen()[0].lines[0]; got != field {
			t.Errorf("the field of key %s arrived as %s", key, got)
		}
		if got, _ := Sent(resp, err); got != key {
			t.Errorf("Sent's key is %s, not %s", got, key)
		}
	}
}

func TestPUTAndDELETEWithAKeyAreRepeated(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"PUT", "DELETE"} {
		srv := serve(t, answer(503), answer(200))
		req := post(t, srv.URL, "x")
		req.Method = method
		resp, err := srv.client().Do(req.WithContext(WithKey(t.Context(), "order-42")))
		check(t, resp, err, 200, 2)
		srv.sameKeyAndBody(t, 2, "x")
	}
}

func TestWhatIsNoKeyIsNotSent(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*http.Request) *http.Request{
		"empty key":      withKey(""),
		"key of no text": withKey("\x00"),
		"key of Unicode": withKey("Bestellung №42"),
		"line break":     withKey("a\r\nX-Evil: 1"),
		"empty field":    withField(""),
		"blank field":    withField(" \t"),
		"two fields":     withField("a", "b"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := &Transport{Base: roundTrip(func(*http.Request) (*http.Response, error) {
				t.Error("the request was sent")
				return nil, io.EOF
			})}
			req := post(t, "http://example.com/", "")
			body := newBody("x")
			req.Body = body
			_, err := tr.RoundTrip(change(req))
			if err == nil || !strings.Contains(err.Error(), "nothing was sent") {
				t.Errorf("the error is %v", err)
			}
			body.mustClose(t)
		})
	}
}

func withKey(key string) func(*http.Request) *http.Request {
	return func(req *http.Request) *http.Request {
		return req.WithContext(WithKey(req.Context(), key))
	}
}

func withField(lines ...string) func(*http.Request) *http.Request {
	return func(req *http.Request) *http.Request {
		req.Header["Idempotency-Key"] = lines
		return req
	}
}

func TestKeyInAHeaderOfAnotherName(t *testing.T) {
	t.Parallel()
	var fields []string
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		fields = append(fields, r.Header.Get("X-Idempotency-Key"))
		answer([]int{503, 201}[len(fields)-1])(w, r)
	})
	c := srv.client()
	c.Transport.(*Transport).Header = "x-idempotency-key"
	resp, err := c.Do(post(t, srv.URL, "x"))
	check(t, resp, err, 201, 2)
	if key, _ := Sent(resp, err); fields[0] != `"`+key+`"` || fields[1] != fields[0] {
		t.Errorf("the fields are %q, the key %s", fields, key)
	}
	if lines := srv.seen()[0].lines; len(lines) != 0 {
		t.Errorf("Idempotency-Key was sent too: %q", lines)
	}
}

func TestNewOperationIsANewKey(t *testing.T) {
	t.Parallel()
	srv := serve(t, answer(503), answer(201), answer(503), answer(201))
	req := post(t, srv.URL, "")
	for range 2 { // the same request, sent twice, is two operations
		resp, err := srv.client().Do(req)
		check(t, resp, err, 201, 2)
	}
	seen := srv.seen()
	if a, b := seen[0].lines[0], seen[2].lines[0]; a >= b || seen[1].lines[0] != a || seen[3].lines[0] != b {
		t.Errorf("%q arrived: two keys are needed, in order", seen)
	}
}

func TestRedirectThatKeepsTheMethodKeepsTheKey(t *testing.T) {
	t.Parallel()
	for _, status := range []int{307, 308} {
		srv := serve(t, answer(503), answer(status, "Location", "/new"), answer(503), answer(201))
		resp, err := srv.client().Do(post(t, srv.URL, "x"))
		check(t, resp, err, 201, 2) // of the second request
		srv.sameKeyAndBody(t, 4, "x")
	}
}

func TestRedirectToGETHasNoKey(t *testing.T) {
	t.Parallel()
	srv := serve(t, answer(303, "Location", "/new"), answer(200))
	resp, err := srv.client().Do(post(t, srv.URL, "x").WithContext(WithKey(t.Context(), "order-42")))
	if err != nil {
		t.Fatal(err)
	}
	_ = text(t, resp)
	if got := srv.seen()[1]; got.method != "GET" || len(got.lines) != 0 {
		t.Errorf("%+v arrived", got)
	}
}

func TestKeyOfABrokenOffResponseRepeatsTheOperation(t *testing.T) {
	t.Parallel()
	srv := serve(t, breakOff("HTTP/1.1 201 Created\r\nContent-Length: 10\r\n\r\n1"), answer(201))
	resp, err := srv.client().Do(post(t, srv.URL, "x"))
	check(t, resp, err, 201, 1)
	if _, err := io.ReadAll(resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("reading the body ends with %v", err)
	}
	key, _ := Sent(resp, err)
	resp, err = srv.client().Do(post(t, srv.URL, "x").WithContext(WithKey(t.Context(), key)))
	check(t, resp, err, 201, 1)
	srv.sameKeyAndBody(t, 2, "x")
}

func TestSentFindsNothingElsewhere(t *testing.T) {
	t.Parallel()
	for _, resp := range []*http.Response{nil, {}, {Request: post(t, "http://example.com/", "")}} {
		for _, err := range []error{nil, io.EOF} {
			if key, attempts := Sent(resp, err); key != "" || attempts != 0 {
				t.Errorf("Sent(%v, %v) is %q, %d", resp, err, key, attempts)
			}
		}
	}
}

func TestRequestWithoutHeaderMapAndBaseWithoutRequest(t *testing.T) {
	t.Parallel()
	tr := &Transport{Base: roundTrip(func(req *http.Request) (*http.Response, error) {
		if req.Header.Get("Idempotency-Key") == "" {
			t.Error("there is no key")
		}
		return &http.Response{StatusCode: 201, Body: http.NoBody}, nil
	})}
	req := post(t, "http://example.com/", "")
	req.Header = nil
	resp, err := tr.RoundTrip(req)
	check(t, resp, err, 201, 1)
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// only is the one field of the one request that arrived.
func (s *scriptedServer) only(t *testing.T) string {
	t.Helper()
	seen := s.seen()
	if len(seen) != 1 || len(seen[0].lines) != 1 {
		t.Fatalf("%+v arrived", seen)
	}
	return seen[0].lines[0]
}

// FuzzKeyArrives: what is sent for a key is what the server's parser makes of
// it, in one line, or nothing is sent.
func FuzzKeyArrives(f *testing.F) {
	for _, key := range []string{"", NewID(), `a"b\c`, "\x7f", "é", "a\r\nb", " a ", "?1", ":YQ==:"} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		req, _ := http.NewRequestWithContext(WithKey(context.Background(), key), "POST", "http://example.com/", nil)
		op, err := new(Transport).operation(req)
		printable := key != "" && !slices.ContainsFunc([]byte(key), func(c byte) bool { return c < ' ' || c > '~' })
		if (err == nil) != printable {
			t.Fatalf("key %q: %v", key, err)
		}
		if err != nil {
			return
		}
		out, err := op.request(req, 1)
		if err != nil {
			t.Fatal(err)
		}
		var wire bytes.Buffer
		if err := out.Write(&wire); err != nil {
			t.Fatal(err)
		}
		arrived, err := parseKey(out.Header.Values("Idempotency-Key"), 1<<30)
		if err != nil || arrived != key || !bytes.Contains(wire.Bytes(), []byte("\r\nIdempotency-Key: "+op.field+"\r\n")) {
			t.Errorf("key %q arrives as %q: %v", key, arrived, err)
		}
	})
}
