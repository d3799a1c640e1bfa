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
		if got != test.want || r.Reason != test.reason || (r.RetryAfter > 0) != test.tellsWhen || r.Message == "" {
			t.Errorf("%T, ran %v: got %d and %+v", test.err, test.ran, got, r)
		}
		// What can be sent again later is UNAVAILABLE or ABORTED, which clients repeat.
		if repeats := r.Code == unavailable || r.Code == aborted; repeats != test.tellsWhen {
			t.Errorf("%s has the code %d", r.Reason, r.Code)
		}
		if r.IsFault() != (r.Code == internal || r.Code == unavailable) {
			t.Errorf("%s is a fault: %v", r.Reason, r.IsFault())
		}
	}
}
