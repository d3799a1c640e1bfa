package idemhttp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// A Transport is an [http.RoundTripper] that makes it safe to repeat requests
// which are not, and repeats them. The zero value is ready to use:
//
//	client := &http.Client{Transport: &idemhttp.Transport{}}
//
// It has to be the outermost that repeats a request: whatever repeats outside of
// it, such as another retrying client, sends a new key each time, unless its
// requests have one by [WithKey].
//
// Use it only with servers that keep idempotency keys, such as a [Middleware]:
// any other executes a request as often as it arrives.
//
// A request gets a new key, as [NewID] makes it, unless the caller gave it one
// by its header or by [WithKey]. The key is sent as a String of RFC 9651, section
// 3.3.3, that is, in quotes (but see Bare), and in every attempt with the same bytes. So is a
// header field that the caller has set, as it is. To send the same
// [http.Request] once more is a new operation with a new key; a redirect that
// keeps the method (307, 308) is the same operation.
//
// By method:
//   - POST, PATCH and every method that is not known to be idempotent (RFC 9110,
//     section 9.2.2) has a key and is repeated.
//   - PUT and DELETE are treated so only if the caller gave them a key: whoever
//     repeats them without one may overwrite what others have done since.
//   - GET, HEAD, OPTIONS, TRACE, CONNECT, PROPFIND, REPORT, SEARCH and QUERY are
//     passed on as they are, as is a request whose header has the key's field
//     without a value (nil).
//     [http.Transport] itself repeats the safe ones when an idle connection turns
//     out to be closed.
//
// A request is sent again after
//   - an error of Base: whatever the server has done, the key protects it.
//     Not after the end of the context, or a handshake that TLS has refused.
//   - 408, 425, 429, 502, 503 and 504.
//   - 409 with a Retry-After: the first attempt is still being executed. The
//     Middleware sends it so. A 409 without it is an answer of the
//     application, and left to the caller.
//
// It needs a body that can be sent again: none, or one with
// [http.Request.GetBody], which [http.NewRequest] sets for a [bytes.Buffer],
// [bytes.Reader] or [strings.Reader]. Any other is sent once, with its key.
//
// The pauses grow from about 0.2 s to about 10 s, doubling, each longer or
// shorter by up to a half at random. A Retry-After (RFC 9110, section 10.2.3),
// in seconds or as a date, makes them longer, never shorter. Attempts end with
// MaxAttempts, or when the pause would outlast MaxElapsed or the deadline of the
// context. The caller then gets the last response, unread, or the last error, at
// once. A context that is cancelled in a pause ends it at once with
// the context's error. Responses that are not the last are read, up to 64 KiB
// and no longer than the pause, so that their connections can be used again, and
// closed.
//
// An attempt has no time limit except the context's: to repeat those that hang,
// set [http.Transport.ResponseHeaderTimeout] in Base. A response whose body
// breaks off has been returned already: the caller can send the operation
// again, with the key of [Sent].
//
// Errors name the key and the number of attempts, and wrap their cause; Sent
// returns both for errors and for responses. [http.Transport] may
// send a request with the key once more by itself, when an idle connection turns
// out to be closed; that is not counted.
//
// A Transport is safe for concurrent use, starts no goroutine that outlives
// RoundTrip, and must not be changed once in use.
type Transport struct {
	// Base sends each attempt. Default: [http.DefaultTransport].
	Base http.RoundTripper

	// Header is the name of the field that carries the key. Default:
	// Idempotency-Key.
	Header string

	// Bare sends the key without quotes, to a server that takes nothing else, as
	// one whose schema says "format: uuid". Default: a String, as the draft asks.
	Bare bool

	// MaxAttempts is how many times a request is sent, the first included; 1 is
	// never again. Negative: no limit but those of time. Default: 6.
	MaxAttempts int

	// MaxElapsed is how long after the first attempt began the last one may
	// begin. Negative: no limit but the context's. Default: 30 seconds.
	MaxElapsed time.Duration

	sleep func(context.Context, time.Duration) error // nil: sleep
}

// RoundTrip sends req with its key and repeats it, as described at [Transport].
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	op, err := t.operation(req)
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	if op == nil {
		return t.base().RoundTrip(req)
	}
	return t.repeat(req, op)
}

// CloseIdleConnections closes those of Base, if it knows how to.
// [http.Client.CloseIdleConnections] calls it.
func (t *Transport) CloseIdleConnections() {
	if base, ok := t.base().(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}

func (t *Transport) base() http.RoundTripper {
	if t.Base == nil {
		return http.DefaultTransport
	}
	return t.Base
}

func (t *Transport) repeat(req *http.Request, op *operation) (*http.Response, error) {
	ctx := req.Context()
	plan := t.newSchedule(ctx)
	for attempt := 1; ; attempt++ {
		out, err := op.request(req, attempt)
		if err != nil {
			return nil, op.failed(attempt-1, err)
		}
		resp, err := t.base().RoundTrip(out)
		asked, again := verdict(ctx, resp, err)
		pause := time.Duration(0)
		if again = again && canRepeat(req); again {
			pause, again = plan.next(asked)
		}
		if !again {
			return op.answer(ctx, out, attempt, resp, err)
		}
		if gone := t.pause(ctx, pause, resp); gone != nil {
			return nil, op.failed(attempt, leftWaiting(gone, resp, err))
		}
	}
}

// verdict says whether an attempt may have been in vain only for the moment,
// and how long the server has asked to be left alone.
func verdict(ctx context.Context, resp *http.Response, err error) (asked time.Duration, again bool) {
	if err != nil {
		return 0, ctx.Err() == nil && !isRefused(err)
	}
	if resp == nil {
		return 0, false // Base is broken; http.Client reports it
	}
	asked, said := retryAfter(resp)
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return asked, true
	case http.StatusConflict:
		return asked, said
	}
	return 0, false
}

// isRefused reports what no repetition mends: a certificate that is not
// trusted, or a server that does not speak TLS.
func isRefused(err error) bool {
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	_, plain := errors.AsType[tls.RecordHeaderError](err)
	return certificate || plain
}

// answer is what the caller gets for the last attempt.
func (op *operation) answer(ctx context.Context, out *http.Request, attempts int, resp *http.Response, err error) (*http.Response, error) {
	if err != nil {
		if ended := ctx.Err(); ended != nil && !errors.Is(err, ended) {
			err = fmt.Errorf("%w: %w", ended, err)
		}
		return nil, op.failed(attempts, err)
	}
	if resp != nil && resp.Request == nil {
		resp.Request = out
	}
	return resp, nil
}

// leftWaiting is the context's error, with what the last attempt came to.
func leftWaiting(ended error, resp *http.Response, err error) error {
	if err != nil {
		return fmt.Errorf("waiting to send again: %w (the last attempt: %w)", ended, err)
	}
	return fmt.Errorf("waiting to send again: %w (the last attempt: %s)", ended, resp.Status)
}

// pause gives resp up, if there is one, and returns when d is over or with the
// error of ctx.
func (t *Transport) pause(ctx context.Context, d time.Duration, resp *http.Response) error {
	end := time.Now().Add(d)
	if resp != nil && resp.Body != nil {
		discard(ctx, resp.Body, d)
	}
	wait := t.sleep
	if wait == nil {
		wait = sleep
	}
	return wait(ctx, time.Until(end))
}

// maxDiscard is in bytes. To read more costs more than a new connection.
const maxDiscard = 64 << 10

// discard reads the rest of body, so that its connection can be used again, and
// closes it: when d or ctx is over, in the middle of a Read.
func discard(ctx context.Context, body io.ReadCloser, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = body.Close() })
	defer stop()
	_, _ = io.CopyN(io.Discard, body, maxDiscard)
	_ = body.Close()
}
