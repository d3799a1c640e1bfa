package idemhttp_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemhttp"
)

func form(r *http.Request) {
	withKey("k")(r)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
}

func chunked(edit func(*http.Request)) func(*http.Request) {
	return func(r *http.Request) {
		edit(r)
		r.ContentLength = -1
	}
}

// amounts answers with the amount of a form, or with the body.
func amounts(w http.ResponseWriter, r *http.Request) {
	if amount := r.FormValue("amount"); amount != "" {
		fmt.Fprint(w, "charged ", amount)
		return
	}
	body, _ := io.ReadAll(r.Body)
	fmt.Fprintf(w, "charged %s", body)
}

func TestBodyThatSomebodyHasReadBeforeIsRefused(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	multi, boundary := multipartOf("x1x", "amount", "10")
	multiForm := func(r *http.Request) {
		withKey("k")(r)
		r.Header.Set("Content-Type", "multipart/form-data; boundary="+boundary)
	}
	reads := func(r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }
	for name, test := range map[string]struct {
		before func(*http.Request)
		edit   func(*http.Request)
		body   string
	}{
		"a form":                         {func(r *http.Request) { r.FormValue("_method") }, form, "amount=10"},
		"a form of unknown length":       {func(r *http.Request) { r.FormValue("_method") }, chunked(form), "amount=10"},
		"a multipart form":               {func(r *http.Request) { r.FormValue("_method") }, multiForm, multi},
		"a multipart form, unknown":      {func(r *http.Request) { r.FormValue("_method") }, chunked(multiForm), multi},
		"a multipart form, part by part": {readsParts, chunked(multiForm), multi},
		"text": {reads, func(r *http.Request) {
			withKey("k")(r)
			r.Header.Set("Content-Type", "text/plain")
		}, "10"},
		"JSON":                      {reads, withKey("k"), `{"amount": 10}`},
		"JSON of unknown length":    {reads, chunked(withKey("k")), `{"amount": 10}`},
		"the first bytes":           {func(r *http.Request) { _, _ = io.ReadFull(r.Body, make([]byte, 5)) }, withKey("k"), `{"amount": 10}`},
		"closed":                    {func(r *http.Request) { reads(r); r.Body.Close() }, withKey("k"), `{"amount": 10}`},
		"closed, of unknown length": {func(r *http.Request) { reads(r); r.Body.Close() }, chunked(form), `amount=10`},
		"taken away":                {func(r *http.Request) { reads(r); r.Body = http.NoBody }, withKey("k"), `{"amount": 10}`},
		"nil":                       {func(r *http.Request) { reads(r); r.Body = nil }, withKey("k"), `{"amount": 10}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			inner := b.middleware(idemhttp.Config{}).Handler(b.charging(amounts))
			server := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				test.before(r)
				inner.ServeHTTP(w, r)
			}))
			b.do(server, "POST", "/", test.body, test.edit).isProblem(t, 500, "failed")
			b.ran(0)
			if !strings.Contains(b.reports(), "before the Middleware") {
				t.Errorf("reported %s", b.reports())
			}
		})
	}
}

func readsParts(r *http.Request) {
	parts, err := r.MultipartReader()
	if err != nil {
		return
	}
	for {
		if _, err := parts.NextPart(); err != nil {
			_, _ = io.Copy(io.Discard, r.Body)
			return
		}
	}
}

func TestBodyThatWasPutBackIsTaken(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for name, before := range map[string]func(*http.Request){
		"as it was": func(r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
		},
		"after a form was read": func(r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			r.FormValue("amount")
			r.Body = io.NopCloser(bytes.NewReader(body))
		},
		"not read at all": func(r *http.Request) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			inner := b.middleware(idemhttp.Config{}).Handler(b.charging(amounts))
			server := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				before(r)
				inner.ServeHTTP(w, r)
			}))
			b.do(server, "POST", "/", "amount=10", form).is(t, 200, "charged 10", false)
			b.do(server, "POST", "/", "amount=10", form).is(t, 200, "charged 10", true)
			b.do(server, "POST", "/", "amount=99999", form).isProblem(t, 422, "key-reused")
		})
	}
}

func TestEmptyBodyIsABody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, created)
	for i, head := range []string{
		"Content-Length: 0\r\n\r\n",
		"Content-Length: 0\r\nContent-Type: application/json\r\n\r\n",
		"Content-Length: 0\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n",
		"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"Transfer-Encoding: chunked\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n0\r\n\r\n",
	} {
		conn := dial(t, server, fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccount: a\r\nIdempotency-Key: k%d\r\n%s", i, head))
		if got, err := io.ReadAll(conn); !strings.HasPrefix(string(got), "HTTP/1.1 201 ") {
			t.Errorf("%q: got %q, %v", head, got, err)
		}
	}
}

func TestBodyThatOuterMiddlewareHasDecompressedIsTaken(t *testing.T) {
	t.Parallel()
	b := setup(t)
	inner := b.middleware(idemhttp.Config{}).Handler(b.charging(amounts))
	server := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		plain, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
		}
		r.Body = plain // and leaves the Content-Length, which is larger
		inner.ServeHTTP(w, r)
	}))
	var zipped bytes.Buffer
	zip := gzip.NewWriter(&zipped)
	io.WriteString(zip, "10")
	zip.Close()
	b.do(server, "POST", "/", zipped.String(), func(r *http.Request) {
		withKey("k")(r)
		r.Header.Set("Content-Encoding", "gzip")
	}).is(t, 200, "charged 10", false)
}

func TestScopeAndHooksCanReadTheBodyAndEveryoneHasItWhole(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for name, scope := range map[string]func(*http.Request) (string, error){
		"as a form": func(r *http.Request) (string, error) { return r.FormValue("account"), nil },
		"whole": func(r *http.Request) (string, error) {
			body, err := io.ReadAll(r.Body)
			return fmt.Sprint(strings.Contains(string(body), "account=a")), err
		},
		"some of it": func(r *http.Request) (string, error) {
			first := make([]byte, 9)
			_, err := io.ReadFull(r.Body, first)
			return string(first), err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			server := b.protected(idemhttp.Config{Scope: scope}, amounts)
			b.do(server, "POST", "/", "account=a&amount=10", form).is(t, 200, "charged 10", false)
			b.do(server, "POST", "/", "account=a&amount=99999", form).isProblem(t, 422, "key-reused")
			b.do(server, "POST", "/", "account=a&amount=10", form).is(t, 200, "charged 10", true)
		})
	}
}

func TestScopeThatReadsABodyOverTheLimitIs413(t *testing.T) {
	t.Parallel()
	b := setup(t)
	scope := func(r *http.Request) (string, error) { return r.FormValue("account"), nil }
	server := b.protected(idemhttp.Config{Scope: scope, MaxRequestBody: 10}, created)
	b.do(server, "POST", "/", "account=a&amount=10", form).isProblem(t, 413, "body-too-large")
	if b.reports() != "[]" {
		t.Errorf("reported %s", b.reports())
	}
}

func TestRequestOfNobodyIsRefusedBeforeItsBodyArrives(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.protected(idemhttp.Config{}, created)
	conn := dial(t, server, "POST / HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n")
	got := make([]byte, 12)
	if _, err := io.ReadFull(conn, got); string(got) != "HTTP/1.1 403" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestLimitOfOuterMiddlewareIsTheOneNamed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for limit, want := range map[int64]string{100: "can have 100 bytes", 1 << 30: "can have 150 bytes"} {
		m := b.middleware(idemhttp.Config{MaxRequestBody: 150})
		server := b.serve(http.MaxBytesHandler(m.Handler(http.NotFoundHandler()), limit))
		got := b.do(server, "POST", "/", strings.Repeat("x", 200), withKey("k"))
		got.isProblem(t, 413, "body-too-large")
		if !strings.Contains(got.body, want) {
			t.Errorf("got %s, want %s", got.body, want)
		}
	}
}

func TestBodySlowerThanTheServerWaitsIs408(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := httptest.NewUnstartedServer(b.middleware(idemhttp.Config{}).Handler(b.charging(created)))
	server.Config.ReadTimeout = 300 * time.Millisecond
	server.Start()
	t.Cleanup(server.Close)
	conn := dial(t, server, "POST / HTTP/1.1\r\nHost: x\r\nAccount: a\r\nIdempotency-Key: k\r\nContent-Length: 10\r\n\r\nabc")
	got, _ := io.ReadAll(conn) // the server ends the connection
	if !strings.HasPrefix(string(got), "HTTP/1.1 408 ") || !strings.Contains(string(got), "body-timeout") {
		t.Errorf("got %q", got)
	}
	b.ran(0)
}

func TestTransportRepeatsABodyThatWasTooSlow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := httptest.NewUnstartedServer(b.middleware(idemhttp.Config{}).Handler(b.charging(amounts)))
	server.Config.ReadTimeout = 300 * time.Millisecond
	server.Start()
	t.Cleanup(server.Close)
	attempts := 0
	req, err := http.NewRequestWithContext(t.Context(), "POST", server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = 2
	req.GetBody = func() (io.ReadCloser, error) {
		if attempts++; attempts > 1 {
			return io.NopCloser(strings.NewReader("10")), nil
		}
		return io.NopCloser(io.MultiReader(strings.NewReader("1"), slow{}, strings.NewReader("0"))), nil
	}
	req.Body, _ = req.GetBody()
	req.Header.Set("Account", b.account)
	resp, err := b.transport(&http.Transport{}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if string(body) != "charged 10" || attempts < 2 {
		t.Errorf("got %d %q after %d attempts", resp.StatusCode, body, attempts)
	}
	b.effects(1)
}

// slow has nothing to read for longer than the server waits.
type slow struct{}

func (slow) Read([]byte) (int, error) {
	time.Sleep(700 * time.Millisecond)
	return 0, io.EOF
}

func multipartOf(boundary string, fields ...string) (body, of string) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	_ = w.SetBoundary(boundary)
	for i := 0; i < len(fields); i += 2 {
		_ = w.WriteField(fields[i], fields[i+1])
	}
	w.Close()
	return b.String(), boundary
}

func TestFilesOfAFormAreRemoved(t *testing.T) {
	// TMPDIR is the process's: not parallel.
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	b := setup(t)
	files := func() int {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	parse := func(r *http.Request) {
		if err := r.ParseMultipartForm(1); err != nil {
			t.Error(err)
		}
	}
	seen := 0
	server := b.serve(b.middleware(idemhttp.Config{
		Scope:       func(r *http.Request) (string, error) { parse(r); return r.FormValue("account"), nil },
		Fingerprint: func(r *http.Request, body []byte) idempotency.Fingerprint { parse(r); return idempotency.Fingerprint{} },
	}).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		parse(r)
		seen = files()
		b.flaky(w, r)
	})))
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	_ = w.WriteField("account", "a")
	part, err := w.CreateFormFile("file", "file.bin")
	if err != nil {
		t.Fatal(err)
	}
	part.Write(make([]byte, 100_000))
	w.Close()
	b.do(server, "POST", "/", body.String(), func(r *http.Request) {
		withKey("k")(r)
		r.Header.Set("Content-Type", w.FormDataContentType())
	}).is(t, 201, `{"id": 1}`, false)
	b.ran(2)
	if seen == 0 {
		t.Error("no file was made: the test shows nothing")
	}
	server.Close() // after the handlers have ended
	if left := files(); left != 0 {
		t.Errorf("%d files are left, of %d", left, seen)
	}
}

func TestFilesOfAFormThatOuterMiddlewareHasParsedAreItsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	open := func(r *http.Request) {
		f, err := r.MultipartForm.File["file"][0].Open()
		if err != nil {
			t.Error(err)
			return
		}
		f.Close()
	}
	inner := b.middleware(idemhttp.Config{}).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		open(r)
		b.flaky(w, r)
	}))
	server := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		if err := r.ParseMultipartForm(1); err != nil {
			t.Error(err)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		inner.ServeHTTP(w, r)
		open(r)
	}))
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	part, err := w.CreateFormFile("file", "file.bin")
	if err != nil {
		t.Fatal(err)
	}
	part.Write(make([]byte, 100_000))
	w.Close()
	b.do(server, "POST", "/", body.String(), func(r *http.Request) {
		withKey("k")(r)
		r.Header.Set("Content-Type", w.FormDataContentType())
	}).is(t, 201, `{"id": 1}`, false)
	b.ran(2)
}
