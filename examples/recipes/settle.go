package recipes

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency"
)

// A verdict is what a consumer does with a message when Do has returned.
type verdict int

const (
	// acknowledge: the effect is committed, by this delivery or an earlier one.
	acknowledge verdict = iota

	// retry: nothing of this delivery was kept, and a later one can succeed. Put it back.
	retry

	// deadLetter: every redelivery would fail in the same way. Keep the message where a
	// person looks, and acknowledge it, so that it is in nobody's way.
	deadLetter
)

// maxDeliveries ends the retries of an error that the function itself returns. The broker's
// own limit (MaxDeliver, maxReceiveCount) has to be higher, or off: it counts the
// deliveries of an outage too.
const maxDeliveries = 5

// settle says what becomes of a message for which Do, DoTx, Query or a Procedure has
// returned err. Delivery is 1 for the first one; it decides how long to wait.
func settle(err error, delivery int) (verdict, time.Duration) {
	switch {
	case err == nil:
		return acknowledge, 0
	case isHopeless(err):
		return deadLetter, 0
	case isPassing(err), delivery < maxDeliveries:
		return retry, min(time.Second<<min(max(delivery, 1)-1, 6), time.Minute)
	default:
		return deadLetter, 0
	}
}

// isHopeless reports whether only a person can help: the sender's mistake, or a mistake in
// the code, or an operation whose outcome somebody has to look up. When that is done, the
// message is sent again from the dead letters, with the same id.
func isHopeless(err error) bool {
	for _, hopeless := range []error{
		errMalformed,
		idempotency.ErrKeyReused,    // two messages with one id: the first one has won
		idempotency.ErrInvalidKey,   // an id that is empty, too long or no text
		idempotency.ErrAbandoned,    // the effect may be there: look before Store.Delete
		idempotency.ErrTooLarge,     // the function's result, not the message
		idempotency.ErrUndecodable,  // the result's type has to change
		idempotency.ErrStepsChanged, // begun by other code, which has to finish it
		idempotency.ErrCallExpired,  // look at the other side, then Store.Settle
	} {
		if errors.Is(err, hopeless) {
			return true
		}
	}
	return false
}

// isPassing reports whether the message is not to blame, so that no number of deliveries
// makes it a dead letter: otherwise an hour without the database would put an hour of
// messages there.
func isPassing(err error) bool {
	for _, passing := range []error{
		idempotency.ErrInProgress,     // another delivery is at work
		idempotency.ErrOutcomeUnknown, // the next call finds out
		idempotency.ErrUnfinished,     // the procedure goes on with the next call
		context.Canceled,              // this consumer stops
		context.DeadlineExceeded,
		io.EOF, io.ErrUnexpectedEOF, pgconn.ErrConnClosed,
	} {
		if errors.Is(err, passing) {
			return true
		}
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch pgErr.Code[:min(2, len(pgErr.Code))] {
		case "08", "40", "53", "57": // connection, conflict, resources, shutdown
			return true
		}
		return false
	}
	_, network := errors.AsType[net.Error](err)
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	return network || connecting
}
