package idemhttp

import (
	"errors"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/transport"
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
	return problemOf(transport.OutcomeOf(key, err, x.response != nil))
}

func problemOf(outcome transport.Outcome) *Problem {
	switch outcome {
	case transport.InProgress:
		return &inProgress
	case transport.KeyReused:
		return &keyReused
	case transport.Unfinished:
		return &unfinished
	case transport.OutcomeUnknown:
		// 503 rather than 500: what the client should do is send it again, and
		// this is the status that says so, with Retry-After (RFC 9110, section
		// 15.6.4).
		return &outcomeUnknown
	case transport.Abandoned:
		return stuck.because("An earlier request with this key has taken effect and left no response. Nothing was executed by this one, and sending it again does not help before the service has looked at what was written. %s", newKeyTwice)
	case transport.KeyInvalid:
		return keyInvalid.because("The key has a character that this server cannot store. Nothing was executed.")
	case transport.ScopeInvalid:
		return &scopeInvalid
	case transport.Undecodable:
		return stuck.because("What is stored for this key is no answer to such a request. Nothing was executed by this one. %s", newKeyTwice)
	case transport.Unavailable:
		return &unavailable
	}
	return &failed
}

// newKeyTwice warns a client that would take an error for the end.
const newKeyTwice = "A new key could execute it twice."
