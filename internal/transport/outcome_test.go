package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency"
)

func TestErrorMeansWhatASenderCanDo(t *testing.T) {
	t.Parallel()
	const later = "later, with the same"
	says := map[string]string{
		"IN_PROGRESS": later, "UNFINISHED": later, "UNAVAILABLE": later, "OUTCOME_UNKNOWN": "with the same idempotency key", "STUCK": "a new key could execute it twice",
		"KEY_REUSED": "a new operation needs a new key", "KEY_INVALID": "is not valid", "SCOPE_INVALID": "255 bytes", "FAILED": "nothing was kept",
	}
	codes := map[string]uint32{ // of google.rpc.Code
		"IN_PROGRESS": 10, "UNFINISHED": 14, "UNAVAILABLE": 14, "OUTCOME_UNKNOWN": 14, "STUCK": 13, "KEY_REUSED": 9, "KEY_INVALID": 3, "SCOPE_INVALID": 3, "FAILED": 13,
	}
	pg := func(code string) error { return fmt.Errorf("x: %w", &pgconn.PgError{Code: code}) }
	for _, test := range []struct {
		scope     string
		err       error
		ran       bool
		want      Outcome
		reason    string
		tellsWhen bool
	}{
		{"a", idempotency.ErrInProgress, false, InProgress, "IN_PROGRESS", true},
		{"a", fmt.Errorf("%w: %w", idempotency.ErrInProgress, pg("40001")), true, InProgress, "IN_PROGRESS", true},
		{"a", idempotency.ErrKeyReused, false, KeyReused, "KEY_REUSED", false},
		{"a", idempotency.ErrUnfinished, false, Unfinished, "UNFINISHED", true},
		{"a", fmt.Errorf("%w: %w", idempotency.ErrOutcomeUnknown, context.Canceled), true, OutcomeUnknown, "OUTCOME_UNKNOWN", true},
		{"a", idempotency.ErrAbandoned, false, Abandoned, "STUCK", false},
		{"a", idempotency.ErrUndecodable, false, Undecodable, "STUCK", false},
		{"a", idempotency.ErrInvalidKey, false, KeyInvalid, "KEY_INVALID", false},
		{strings.Repeat("a", 255), idempotency.ErrInvalidKey, false, KeyInvalid, "KEY_INVALID", false},
		{strings.Repeat("a", 256), idempotency.ErrInvalidKey, false, ScopeInvalid, "SCOPE_INVALID", false},
		{"ä", idempotency.ErrInvalidKey, false, ScopeInvalid, "SCOPE_INVALID", false},
		{"a\x00", idempotency.ErrInvalidKey, false, ScopeInvalid, "SCOPE_INVALID", false},

		{"a", pg("42P01"), false, Unavailable, "UNAVAILABLE", true}, // nothing but the database can have failed
		{"a", pg("42P01"), true, Failed, "FAILED", false},
		{"a", pg("23505"), true, Failed, "FAILED", false},
		{"a", pg(""), true, Failed, "FAILED", false},
		{"a", errors.New("x"), true, Failed, "FAILED", false},
		{"a", pg("40001"), true, Unavailable, "UNAVAILABLE", true},
		{"a", pg("53300"), true, Unavailable, "UNAVAILABLE", true},
		{"a", pg("57P01"), true, Unavailable, "UNAVAILABLE", true},
		{"a", pg("08006"), true, Unavailable, "UNAVAILABLE", true},
		{"a", context.Canceled, true, Unavailable, "UNAVAILABLE", true},
		{"a", context.DeadlineExceeded, true, Unavailable, "UNAVAILABLE", true},
		{"a", &net.OpError{Op: "read", Err: errors.New("x")}, true, Unavailable, "UNAVAILABLE", true},
		{"a", &pgconn.ConnectError{}, true, Unavailable, "UNAVAILABLE", true},
		{"a", pgconn.ErrConnClosed, true, Unavailable, "UNAVAILABLE", true},
		{"a", io.EOF, true, Unavailable, "UNAVAILABLE", true},
		{"a", io.ErrUnexpectedEOF, true, Unavailable, "UNAVAILABLE", true},
	} {
		got := OutcomeOf(idempotency.Key{Scope: test.scope}, test.err, test.ran)
		r := RefusalOf(got)
		if got != test.want || r.Reason != test.reason || (r.RetryAfter > 0) != test.tellsWhen || !strings.Contains(r.Message, says[r.Reason]) || r.Code != codes[r.Reason] {
			t.Errorf("%T, ran %v: got %d and %+v", test.err, test.ran, got, r)
		}
		// What can be sent again later is UNAVAILABLE or ABORTED, which clients repeat.
		if repeats := r.Code == 14 || r.Code == 10; repeats != test.tellsWhen {
			t.Errorf("%s has the code %d", r.Reason, r.Code)
		}
		if r.IsFault() != (r.Code == 13 || r.Code == 14) {
			t.Errorf("%s is a fault: %v", r.Reason, r.IsFault())
		}
	}
}

func TestRefusalBeforeTheCallSaysWhatItLacks(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		r      Refusal
		reason string
		code   uint32
		says   string
	}{
		{MissingKey("the metadata k"), "KEY_MISSING", 3, "in the metadata k, and the same one with every retry"},
		{InvalidKey("it was sent 2 times"), "KEY_INVALID", 3, "is not valid: it was sent 2 times"},
		{NoScope(), "NO_SCOPE", 7, "names nobody"},
		{Unrecordable(), "UNRECORDABLE", 13, "nothing was kept"},
	} {
		if row.r.Reason != row.reason || row.r.Code != row.code || !strings.Contains(row.r.Message, row.says) || row.r.RetryAfter != 0 || row.r.IsFault() != (row.code == 13) {
			t.Errorf("%+v, want %s with code %d", row.r, row.reason, row.code)
		}
	}
}
