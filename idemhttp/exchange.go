package idemhttp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency"
)

// An exchange is one request under a key, and its response.
type exchange struct {
	m    *Middleware
	w    http.ResponseWriter
	r    *http.Request
	next http.Handler
	body []byte

	// detach ends the connection between the client and the handler's context.
	detach func() bool

	response *response // of the last run of next; nil before the first
}

func (m *Middleware) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if Tx(r.Context()) != nil { // inside of another Middleware, whose key it is
		next.ServeHTTP(w, r)
		return
	}
	x := &exchange{m: m, w: w, r: r, next: next, detach: func() bool { return true }}
	key, problem := x.key()
	if problem != nil {
		m.refuse(w, *problem)
		return
	}
	ctx := r.Context()
	if m.cfg.FinishDisconnected {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		if end, limited := r.Context().Deadline(); limited { // not the client's doing
			ctx, cancel = context.WithDeadline(ctx, end)
			defer cancel()
		}
		x.detach = context.AfterFunc(r.Context(), cancel)
		defer x.detach()
	}
	rec, replayed, err := idempotency.Do(ctx, m.store, key, x.run)
	switch {
	case err != nil:
		x.fail(err)
	case replayed:
		replay(w, &rec)
	default:
		x.response.deliver()
	}
}

// key reads all of the request: nothing is claimed before.
func (x *exchange) key() (idempotency.Key, *problem) {
	cfg := &x.m.cfg
	id, err := parseKey(x.r.Header.Values(cfg.Header), cfg.MaxKeyLength)
	switch {
	case err != nil:
		p := keyInvalid.because("%s: %v.", cfg.Header, err)
		return idempotency.Key{}, &p
	case id == "" && !cfg.Optional:
		p := keyMissing.because("Send a new key, such as a UUID, in %s, and the same one with every retry.", cfg.Header)
		return idempotency.Key{}, &p
	case id == "":
		id = NewID()
	}
	scope, err := cfg.Scope(x.r)
	switch {
	case err != nil:
		cfg.Report(x.r, fmt.Errorf("finding the scope: %w", err))
		return idempotency.Key{}, &failed
	case scope == "":
		return idempotency.Key{}, &noScope
	}
	if problem := x.readBody(); problem != nil {
		return idempotency.Key{}, problem
	}
	return idempotency.Key{Scope: scope, ID: id, Fingerprint: cfg.Fingerprint(x.request(x.r.Context()), x.body)}, nil
}

func (x *exchange) readBody() *problem {
	limit := x.m.cfg.MaxRequestBody
	body, err := io.ReadAll(http.MaxBytesReader(x.w, x.r.Body, limit))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		p := bodyTooLarge.because("It can have %d bytes. Nothing was executed.", limit)
		return &p
	}
	if err != nil {
		return &bodyUnreadable
	}
	x.body = body
	return nil
}

// request is the request as a handler gets it, unread and its own.
func (x *exchange) request(ctx context.Context) *http.Request {
	r := x.r.Clone(ctx)
	r.Body = io.NopCloser(bytes.NewReader(x.body))
	r.ContentLength, r.TransferEncoding = int64(len(x.body)), nil
	return r
}

// A rolledBack error carries a response that is sent although, or because,
// nothing was kept.
type rolledBack struct {
	cause error // of the last statement that failed; Do runs again for some
}

func (e *rolledBack) Error() string { return "idemhttp: the handler's response is not final" }
func (e *rolledBack) Unwrap() error { return e.cause }

// An unrecordableError is of a response that cannot be recorded.
type unrecordableError struct{ cause error }

func (e *unrecordableError) Error() string { return e.cause.Error() }
func (e *unrecordableError) Unwrap() error { return e.cause }

// run is the function of [idempotency.Do]: one run of the handler.
func (x *exchange) run(ctx context.Context, tx pgx.Tx) (record, error) {
	x.detach()
	x.response = newResponse(x.w)
	var seen error
	watched := watchedTx{tx, &seen}
	x.next.ServeHTTP(x.response, x.request(context.WithValue(ctx, txKey{}, pgx.Tx(watched))))

	if err := x.response.finish(); err != nil {
		return record{}, &unrecordableError{err}
	}
	switch {
	case !x.m.cfg.Record(x.response.status):
		return record{}, &rolledBack{seen}
	case watched.broken():
		return record{}, fmt.Errorf("idemhttp: the handler answered %d although a statement of its transaction failed: %w", x.response.status, seen)
	case ctx.Err() != nil:
		// A handler that sees its context end may return without a word, which
		// is an empty 200: not one to record.
		return record{}, fmt.Errorf("idemhttp: the request ended before its handler: %w (%w)", ctx.Err(), context.Cause(ctx))
	}
	return x.response.record(x.m)
}

// fail answers a request that has kept nothing, or may have.
func (x *exchange) fail(err error) {
	if _, ok := errors.AsType[*rolledBack](err); ok {
		x.response.deliver()
		return
	}
	p := x.problem(err)
	gone := x.r.Context().Err() != nil && errors.Is(err, context.Canceled)
	if p.Status >= 500 && !gone {
		x.m.cfg.Report(x.r, err)
	}
	x.m.refuse(x.w, p)
}

func (x *exchange) problem(err error) problem {
	cannotRecord, unrecordableResponse := errors.AsType[*unrecordableError](err)
	switch {
	case unrecordableResponse:
		return unrecordable.because("%v", cannotRecord)
	case errors.Is(err, idempotency.ErrInProgress):
		return inProgress
	case errors.Is(err, idempotency.ErrKeyReused):
		return keyReused
	case errors.Is(err, idempotency.ErrOutcomeUnknown):
		// 503 rather than 500: what the client should do is send it again, and
		// this is the status that says so, with Retry-After (RFC 9110, section
		// 15.6.4).
		return outcomeUnknown
	case errors.Is(err, idempotency.ErrAbandoned):
		return failed.because("An earlier request with this key has taken effect and left no response. Nothing was executed by this one.")
	case errors.Is(err, idempotency.ErrInvalidKey), errors.Is(err, idempotency.ErrUndecodable):
		return failed // the scope is no text; the record is no response
	case x.response == nil, passes(err):
		return unavailable
	}
	return failed
}

// passes reports whether the same request can succeed a little later: conflicts
// with others, and a server that cannot be reached, is short of something, or
// shuts down (SQLSTATE classes 40, 53, 57 and 08).
func passes(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch pgErr.Code[:min(2, len(pgErr.Code))] {
		case "40", "53", "57", "08":
			return true
		}
		return false
	}
	_, network := errors.AsType[net.Error](err)
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	return network || connecting || errors.Is(err, pgconn.ErrConnClosed) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
