package idemhttp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"

	"github.com/dunglas/httpsfv"
	"github.com/pgidem/idempotency/internal/transport"
)

// WithKey returns a context whose requests are sent by [Transport] with id as
// their key, instead of a new one, so that an operation can be repeated when
// the process that began it is gone: keep the id, as [NewID] makes it, before
// the first request.
//
// The context belongs to one operation: all requests sent with it, except those
// of safe methods, have the same key, and a server that sees it with two
// different requests refuses the second. The id is 1 or more bytes of printable
// ASCII (servers take 255 at most), and for [Transport.Bare] without spaces and
// other separators; with any other, the Transport fails without
// sending anything. A key in the request's header goes before the id.
func WithKey(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, givenKey{}, id)
}

// NewID returns a new idempotency key: a UUIDv7 (RFC 9562, section 5.7) in its
// text form of 36 bytes. Within a process each is greater than those returned
// before, also as text and whatever the clock does, so that the index of the
// server's table grows at its right edge. 62 bits are from crypto/rand: an id
// cannot be guessed, but it shows when it was made. It never fails, and is safe
// for concurrent use.
func NewID() string { return transport.NewID() }

// Sent returns the key of what [Transport] has sent, without the quotes of the
// header field, and how many times, given what [http.Client.Do] has returned:
//
//	resp, err := client.Do(req)
//	key, attempts := idemhttp.Sent(resp, err)
//
// With [WithKey], the key repeats the operation. It is "" when there is none,
// because the request was passed on as it was, or because a
// [http.Client.Timeout] has hidden the Transport's error (its text still has the
// key; a deadline of the context hides nothing). Attempts are those of the last
// request where redirects were followed.
func Sent(resp *http.Response, err error) (key string, attempts int) {
	if e, ok := errors.AsType[*sendError](err); ok {
		return e.key, e.attempts
	}
	if resp == nil || resp.Request == nil {
		return "", 0
	}
	s := sentBy(resp.Request)
	return s.key, s.attempts
}

type givenKey struct{} // in a caller's context: the id, a string

type sentKey struct{} // in the context of a request of ours: a sent

type sent struct {
	key      string
	attempts int
}

func sentBy(req *http.Request) sent {
	s, _ := req.Context().Value(sentKey{}).(sent)
	return s
}

// A sendError is the error of a request that has a key.
type sendError struct {
	sent
	err error
}

func (e *sendError) Error() string {
	plural := "s"
	if e.attempts == 1 {
		plural = ""
	}
	return fmt.Sprintf("idemhttp: key %s, %d attempt%s: %v", e.key, e.attempts, plural, e.err)
}

func (e *sendError) Unwrap() error { return e.err }

// Timeout is what [net/url.Error.Timeout] asks.
func (e *sendError) Timeout() bool {
	t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](e.err)
	return ok && t.Timeout()
}

// An operation is what all attempts have in common.
type operation struct {
	key    string // as the server reads it
	header string
	field  string // of header; "" when the caller has set it
}

// operation returns nil for a request that is passed on as it is.
func (t *Transport) operation(req *http.Request) (*operation, error) {
	if isSafe(req.Method) {
		return nil, nil
	}
	header := cmp.Or(t.Header, "Idempotency-Key")
	if lines, set := fieldLines(req.Header, header); set {
		return callersOperation(header, lines)
	}
	key, given := keyFor(req)
	if !given {
		if isIdempotent(req.Method) {
			return nil, nil
		}
		key = NewID()
	}
	field, err := t.field(key)
	if err != nil {
		return nil, err
	}
	return &operation{key: key, header: header, field: field}, nil
}

// field is the value of the header field for a key.
func (t *Transport) field(key string) (string, error) {
	if t.Bare {
		if quoted(key) != `"`+key+`"` {
			return "", fmt.Errorf("idemhttp: key %q cannot be sent without quotes (Transport.Bare): it needs letters, digits and some punctuation; nothing was sent", key)
		}
		return key, nil
	}
	field, err := httpsfv.Marshal(httpsfv.NewItem(key))
	if key == "" || err != nil {
		return "", fmt.Errorf("idemhttp: key %q is not 1 or more bytes of printable ASCII: nothing was sent", key)
	}
	return field, nil
}

// callersOperation has the key that the caller has put into the header, which
// is sent as it is. No line at all is how net/http is told to send none. What
// no server takes for one key is an oversight, and too dangerous to send.
func callersOperation(header string, lines []string) (*operation, error) {
	if len(lines) == 0 {
		return nil, nil
	}
	if len(lines) > 1 || strings.Trim(lines[0], " \t") == "" {
		return nil, fmt.Errorf("idemhttp: the request's %s is not one key, but %q: nothing was sent", header, lines)
	}
	key, err := parseKey(lines, math.MaxInt)
	if err != nil {
		key = lines[0] // the server may have a syntax of its own
	}
	return &operation{key: key, header: header}, nil
}

// fieldLines finds a header field also where the caller has not written it in
// the canonical form, in which http.Header looks it up.
func fieldLines(h http.Header, name string) (lines []string, set bool) {
	for key, values := range h {
		if strings.EqualFold(key, name) {
			lines, set = append(lines, values...), true
		}
	}
	return lines, set
}

// keyFor is the key of the context, or of the request that was answered with
// the redirect (307 or 308) which req follows: it is the same operation.
func keyFor(req *http.Request) (key string, given bool) {
	if id, ok := req.Context().Value(givenKey{}).(string); ok {
		return id, true
	}
	if req.Response != nil && req.Response.Request != nil {
		key = sentBy(req.Response.Request).key
	}
	return key, key != ""
}

// request is a copy of req for the given attempt.
func (op *operation) request(req *http.Request, attempt int) (*http.Request, error) {
	ctx := context.WithValue(req.Context(), sentKey{}, sent{op.key, attempt})
	out := req.Clone(ctx)
	if op.field != "" {
		if out.Header == nil {
			out.Header = http.Header{}
		}
		out.Header.Set(op.header, op.field)
	}
	if attempt == 1 || !hasBody(req) {
		return out, nil
	}
	body, err := req.GetBody()
	if err != nil {
		return nil, fmt.Errorf("getting the body again: %w", err)
	}
	out.Body = body
	return out, nil
}

func (op *operation) failed(attempts int, err error) error {
	return &sendError{sent{op.key, attempts}, err}
}

func hasBody(req *http.Request) bool { return req.Body != nil && req.Body != http.NoBody }

// canRepeat reports whether the body can be sent more than once.
func canRepeat(req *http.Request) bool { return !hasBody(req) || req.GetBody != nil }
