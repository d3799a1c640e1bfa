package idemhttp

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency"
)

// fail answers a request that has kept nothing, or may have.
func (x *exchange) fail(key idempotency.Key, err error) {
	if _, ok := errors.AsType[*rolledBack](err); ok {
		x.response.deliver()
		return
	}
	x.m.refuse(x.w, x.r, *x.problem(key, err).causedBy(err))
}

func (x *exchange) problem(key idempotency.Key, err error) *Problem {
	cannotRecord, unrecordableResponse := errors.AsType[*unrecordableError](err)
	if unrecordableResponse {
		return unrecordable.because("%v", cannotRecord)
	}
	if p := problemOf(key, err); p != nil {
		return p
	}
	if x.response == nil || passes(err) {
		return &unavailable
	}
	return &failed
}

// problemOf returns nil for an error that has no name in the package idempotency.
func problemOf(key idempotency.Key, err error) *Problem {
	switch {
	case errors.Is(err, idempotency.ErrInProgress):
		return &inProgress
	case errors.Is(err, idempotency.ErrKeyReused):
		return &keyReused
	case errors.Is(err, idempotency.ErrUnfinished):
		return &unfinished
	case errors.Is(err, idempotency.ErrOutcomeUnknown):
		// 503 rather than 500: what the client should do is send it again, and
		// this is the status that says so, with Retry-After (RFC 9110, section
		// 15.6.4).
		return &outcomeUnknown
	case errors.Is(err, idempotency.ErrAbandoned):
		return stuck.because("An earlier request with this key has taken effect and left no response. Nothing was executed by this one, and sending it again does not help before the service has looked at what was written. %s", newKeyTwice)
	case errors.Is(err, idempotency.ErrInvalidKey) && isStorable(key.Scope): // the encoding of the database lacks something
		return keyInvalid.because("The key has a character that this server cannot store. Nothing was executed.")
	case errors.Is(err, idempotency.ErrInvalidKey):
		return &scopeInvalid // of the id all else was checked
	case errors.Is(err, idempotency.ErrUndecodable):
		return stuck.because("What is stored for this key is no answer to such a request. Nothing was executed by this one. %s", newKeyTwice)
	}
	return nil
}

// newKeyTwice warns a client that would take an error for the end.
const newKeyTwice = "A new key could execute it twice."

// isStorable reports whether every database can store a scope.
func isStorable(scope string) bool {
	return len(scope) <= 255 && !strings.ContainsFunc(scope, func(r rune) bool { return r == 0 || r >= utf8.RuneSelf })
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
