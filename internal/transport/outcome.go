package transport

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

// An Outcome is what an error means for whoever sent the request.
type Outcome int

const (
	// Failed: nothing was kept, and the same request will most likely fail again.
	Failed Outcome = iota

	// Unavailable: nothing was kept, and the same request can succeed a little later.
	Unavailable

	InProgress     // another request with the key is in progress
	KeyReused      // the key belongs to another request
	KeyInvalid     // the database cannot store the key
	ScopeInvalid   // the scope cannot be stored
	OutcomeUnknown // the connection was lost during COMMIT
	Unfinished     // the key belongs to a procedure that has begun and not ended
	Abandoned      // an earlier request has taken effect and left no answer
	Undecodable    // what is stored for the key is no answer to such a request
)

// OutcomeOf is the outcome of an error that a call for the key has ended with. Ran says
// whether the handler has run: where it has not, nothing but the database can have failed.
func OutcomeOf(key idempotency.Key, err error, ran bool) Outcome {
	if o, named := named(key, err); named {
		return o
	}
	if !ran || Passes(err) {
		return Unavailable
	}
	return Failed
}

// named is for the errors that have a name in the package idempotency.
func named(key idempotency.Key, err error) (o Outcome, is bool) {
	switch {
	case errors.Is(err, idempotency.ErrInProgress):
		return InProgress, true
	case errors.Is(err, idempotency.ErrKeyReused):
		return KeyReused, true
	case errors.Is(err, idempotency.ErrUnfinished):
		return Unfinished, true
	case errors.Is(err, idempotency.ErrOutcomeUnknown):
		return OutcomeUnknown, true
	case errors.Is(err, idempotency.ErrAbandoned):
		return Abandoned, true
	case errors.Is(err, idempotency.ErrInvalidKey) && isStorable(key.Scope): // the encoding of the database lacks something
		return KeyInvalid, true
	case errors.Is(err, idempotency.ErrInvalidKey):
		return ScopeInvalid, true // of the id all else was checked
	case errors.Is(err, idempotency.ErrUndecodable):
		return Undecodable, true
	}
	return Failed, false
}

// isStorable reports whether every database can store a scope.
func isStorable(scope string) bool {
	return len(scope) <= 255 && !strings.ContainsFunc(scope, func(r rune) bool { return r == 0 || r >= utf8.RuneSelf })
}

// Passes reports whether the same request can succeed a little later: conflicts
// with others, and a server that cannot be reached, is short of something, or
// shuts down (SQLSTATE classes 40, 53, 57 and 08).
func Passes(err error) bool {
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
