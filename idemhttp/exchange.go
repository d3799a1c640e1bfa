package idemhttp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/transport"
)

// An exchange is one request under a key, and its response.
type exchange struct {
	m    *Middleware
	w    http.ResponseWriter
	r    *http.Request
	next http.Handler

	body        requestBody
	copies      []*http.Request         // of r, as others have got it
	fingerprint idempotency.Fingerprint // not keyed

	// detach ends the connection between the client and the handler's context.
	detach func() bool

	response *response     // of the last run of next; nil before the first
	ran      *http.Request // that the last run of next has got
	before   *trace        // of the run before this one
}

func (m *Middleware) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if transport.RunOf(r.Context()) != nil { // inside of another Middleware, whose key it is
		next.ServeHTTP(w, r)
		return
	}
	m.exchange(w, r, func(x *exchange, key idempotency.Key) {
		x.next = next
		ctx, done := x.context()
		defer done()
		rec, replayed, err := x.do(ctx, key)
		switch {
		case err != nil:
			x.fail(key, err)
		case replayed:
			m.replay(w, &rec)
		default:
			x.response.deliver()
		}
	})
}

// exchange calls answer with the key of the request, if it has one.
func (m *Middleware) exchange(w http.ResponseWriter, r *http.Request, answer func(*exchange, idempotency.Key)) {
	x := &exchange{m: m, w: w, r: r, detach: func() bool { return true }}
	defer x.tidy()
	defer x.giveBack()
	key, problem := x.key()
	if problem != nil {
		m.refuse(w, r, *problem)
		return
	}
	answer(x, key)
}

// context is that of the request, and with Config.FinishDisconnected ends with the
// client's connection only until detach.
func (x *exchange) context() (ctx context.Context, done func()) {
	ctx = x.r.Context()
	if !x.m.cfg.FinishDisconnected {
		return ctx, func() {}
	}
	end, limited := ctx.Deadline()
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	x.detach = context.AfterFunc(x.r.Context(), cancel)
	expire := cancel
	if limited { // not the client's doing
		ctx, expire = context.WithDeadline(ctx, end)
	}
	return ctx, func() {
		x.detach()
		expire()
		cancel()
	}
}

// key reads all of the request: nothing is claimed before.
func (x *exchange) key() (idempotency.Key, *Problem) {
	cfg := &x.m.cfg
	id, problem := "", (*Problem)(nil)
	if cfg.Key == nil { // nothing else is asked for a request without a key
		if id, problem = x.keyOfHeader(); problem != nil {
			return idempotency.Key{}, problem
		}
	}
	scope, problem := x.scope()
	if problem != nil {
		return idempotency.Key{}, problem
	}
	if problem := x.readBody(); problem != nil {
		return idempotency.Key{}, problem
	}
	if cfg.Key != nil {
		if id, problem = x.keyOfRequest(); problem != nil {
			return idempotency.Key{}, problem
		}
	}
	if cfg.Fingerprint != nil {
		x.fingerprint = cfg.Fingerprint(x.request(x.r.Context()), x.body.bytes)
	} else {
		x.fingerprint = fingerprint(x.r, x.body.bytes, cfg.FingerprintHeaders) // needs no copy
	}
	return idempotency.Key{Scope: scope, ID: id, Fingerprint: x.m.keyed(x.fingerprint)}, nil
}

func (x *exchange) keyOfHeader() (string, *Problem) {
	cfg := &x.m.cfg
	id, err := parseKey(x.r.Header.Values(cfg.Header), cfg.MaxKeyLength)
	if err != nil {
		return "", keyInvalid.because("%s: %v.", cfg.Header, err)
	}
	return x.orNone(id, fmt.Sprintf("Send a new key, such as a UUID, in %s, and the same one with every retry.", cfg.Header))
}

func (x *exchange) keyOfRequest() (string, *Problem) {
	cfg := &x.m.cfg
	id, err := cfg.Key(x.request(x.r.Context()), x.body.bytes)
	switch {
	case err != nil:
		return "", keyInvalid.because("%v.", err)
	case len(id) > cfg.MaxKeyLength:
		return "", keyInvalid.because("The key has %d bytes, more than %d.", len(id), cfg.MaxKeyLength)
	case !utf8.ValidString(id) || strings.IndexByte(id, 0) >= 0:
		return "", keyInvalid.because("The key is not text: it is not UTF-8, or has a NUL.")
	}
	return x.orNone(id, "The request has no key where this server looks for it.")
}

// orNone is for a request without a key.
func (x *exchange) orNone(id, missing string) (string, *Problem) {
	switch {
	case id != "":
		return id, nil
	case x.m.cfg.Optional:
		return NewID(), nil
	}
	return "", keyMissing.because("%s", missing)
}

// scope asks for the scope. That may read the body, of a copy: the handler and
// the fingerprint have all of it.
func (x *exchange) scope() (string, *Problem) {
	r := x.clone(x.r.Context())
	r.Body = &bodyOnDemand{x: x}
	scope, err := x.m.cfg.Scope(r)
	switch {
	case x.body.problem != nil:
		return "", x.body.problem
	case err != nil:
		return "", failed.causedBy(fmt.Errorf("finding the scope: %w", err))
	case scope == "":
		return "", &noScope
	}
	return scope, nil
}

// do executes the request, or finds its record. A record of another fingerprint
// can be one of this request all the same: made with another key of
// Config.FingerprintKeys.
func (x *exchange) do(ctx context.Context, key idempotency.Key) (record, bool, error) {
	rec, replayed, err := x.doAs(ctx, key)
	if !errors.Is(err, idempotency.ErrKeyReused) {
		return rec, replayed, err
	}
	stored, lookup := x.m.store.Get(ctx, key)
	switch {
	case errors.Is(lookup, idempotency.ErrNotFound): // it has expired in between
		return x.doAs(ctx, key)
	case lookup != nil:
		return record{}, false, lookup
	case slices.Contains(x.keyedFingerprints(), stored.Key.Fingerprint):
		key.Fingerprint = stored.Key.Fingerprint
		return x.doAs(ctx, key)
	case rec.UnmarshalJSON(stored.Result) != nil:
		return record{}, false, fmt.Errorf("idemhttp: the key was used by something else than a request, in the same scope: %w", idempotency.ErrUndecodable)
	}
	return record{}, false, err
}

func (x *exchange) doAs(ctx context.Context, key idempotency.Key) (record, bool, error) {
	return idempotency.Do(ctx, x.m.store, key, func(ctx context.Context, tx pgx.Tx) (record, error) {
		return x.run(ctx, tx, key)
	})
}

// clone is a copy of the request for somebody else, who may change it.
func (x *exchange) clone(ctx context.Context) *http.Request {
	r := x.r.Clone(ctx)
	x.copies = append(x.copies, r)
	return r
}

// request is the request as a handler gets it, unread and its own.
func (x *exchange) request(ctx context.Context) *http.Request {
	r := x.clone(ctx)
	r.Body = io.NopCloser(bytes.NewReader(x.body.bytes))
	r.ContentLength, r.TransferEncoding = int64(len(x.body.bytes)), nil
	return r
}

// giveBack leaves in the request what a handler without the Middleware would
// have left there, for outer middleware that reads it afterwards: the Pattern
// and the values of its path, the form, a changed URL.
func (x *exchange) giveBack() {
	if x.ran == nil {
		return
	}
	body, length, encoding := x.r.Body, x.r.ContentLength, x.r.TransferEncoding
	*x.r = *x.ran.WithContext(x.r.Context())
	x.r.Body, x.r.ContentLength, x.r.TransferEncoding = body, length, encoding
}

// tidy removes the files of the forms that were parsed, as net/http does for
// the request that it has made. A form that came with the request is its maker's.
func (x *exchange) tidy() {
	for _, r := range x.copies {
		if r.MultipartForm != nil && !x.body.formFromOutside {
			_ = r.MultipartForm.RemoveAll()
		}
	}
}
