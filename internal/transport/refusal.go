package transport

import "time"

// ReplayedTrailer is what a replay has in its trailer, with the value "true". It is not in
// the header: clients of gRPC retry nothing that has a header (design A6, "When Retries
// are Valid").
const ReplayedTrailer = "idempotent-replayed"

// A Refusal answers a call of gRPC or Connect, instead of the handler or after it.
type Refusal struct {
	Reason  string // of the ErrorInfo: the name of the problem in idemhttp, as AIP-193 spells it
	Code    uint32 // a google.rpc.Code
	Message string

	// RetryAfter is when the client should send the call again, with the same key.
	// 0: it should not.
	RetryAfter time.Duration
}

// Of google.rpc.Code.
const (
	invalidArgument    = 3
	permissionDenied   = 7
	failedPrecondition = 9
	aborted            = 10
	internal           = 13
	unavailable        = 14
)

// retryAfter is short: to wait for a call in flight has already taken the Store's Wait.
const retryAfter = time.Second

// IsFault reports whether the refusal is the fault of the server, and worth a report.
func (r Refusal) IsFault() bool { return r.Code == internal || r.Code == unavailable }

// MissingKey refuses a call without a key.
func MissingKey(where string) Refusal {
	return Refusal{Reason: "KEY_MISSING", Code: invalidArgument, Message: "send a new idempotency key, such as a UUID, in " + where + ", and the same one with every retry"}
}

// InvalidKey refuses a call whose key cannot be used.
func InvalidKey(why string) Refusal {
	return Refusal{Reason: "KEY_INVALID", Code: invalidArgument, Message: "the idempotency key is not valid: " + why}
}

// NoScope refuses a call that does not say whose it is.
func NoScope() Refusal {
	return Refusal{Reason: "NO_SCOPE", Code: permissionDenied, Message: "an idempotency key belongs to whoever made it, and the call names nobody"}
}

// Unrecordable refuses a call whose response cannot be recorded.
func Unrecordable() Refusal {
	return Refusal{Reason: "UNRECORDABLE", Code: internal, Message: "the response cannot be recorded; nothing was kept"}
}

// RefusalOf is that of a call that has ended without an answer of its handler.
func RefusalOf(o Outcome) Refusal {
	switch o {
	case InProgress:
		return Refusal{"IN_PROGRESS", aborted, "a call with this idempotency key is in progress, and this one has executed nothing: send it again later, with the same key", retryAfter}
	case KeyReused:
		return Refusal{"KEY_REUSED", failedPrecondition, "the idempotency key was used for another call, and nothing was executed: a new operation needs a new key", 0}
	case KeyInvalid:
		return InvalidKey("it is not text that this server can store")
	case ScopeInvalid:
		return Refusal{"SCOPE_INVALID", invalidArgument, "the name of whoever sends the call can have 255 bytes of UTF-8, without NUL and without characters that this server cannot store", 0}
	case OutcomeUnknown:
		return Refusal{"OUTCOME_UNKNOWN", unavailable, "it is not known whether the call has taken effect: send it again, with the same idempotency key, which finds out; a new key could execute it twice", retryAfter}
	case Unfinished:
		return Refusal{"UNFINISHED", unavailable, "an operation with this idempotency key has begun and has not ended: send the call again later, with the same key; a new key could execute it twice", retryAfter}
	case Abandoned, Undecodable:
		return Refusal{"STUCK", internal, "an earlier operation with this idempotency key has left no answer to such a call, and nothing was executed by this one; a new key could execute it twice", 0}
	case Unavailable:
		return Refusal{"UNAVAILABLE", unavailable, "the call could not be executed now, and nothing was kept: send it again later, with the same idempotency key", retryAfter}
	}
	return Refusal{"FAILED", internal, "the call failed, and nothing was kept", 0}
}
