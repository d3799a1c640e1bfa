package idemconnect

import (
	"context"
	"errors"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/pgidem/idempotency/internal/transport"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// ErrorDomain is the domain of the ErrorInfo of each error of the Interceptor's own.
const ErrorDomain = "github.com/pgidem/idempotency"

// refuse reports what is behind a refusal, and makes the error of it (the messages are in
// google/rpc/error_details.proto).
func (c *call) refuse(r transport.Refusal, behind error) error {
	if r.IsFault() {
		c.cfg.Report(c.ctx, c.request, behind)
	}
	refused := connect.NewError(connect.Code(r.Code), errors.New(r.Message))
	addDetail(refused, &errdetails.ErrorInfo{Domain: ErrorDomain, Reason: r.Reason})
	if r.RetryAfter > 0 {
		addDetail(refused, &errdetails.RetryInfo{RetryDelay: durationpb.New(r.RetryAfter)})
		c.pushBack(refused, r.RetryAfter)
	}
	return refused
}

// pushBack says when to come back as the clients of each protocol read it: RFC 9110,
// section 10.2.3, and gRPC's design A6, "Pushback".
func (c *call) pushBack(refused *connect.Error, after time.Duration) {
	if c.request.Peer().Protocol == connect.ProtocolConnect {
		refused.Meta().Set("Retry-After", strconv.Itoa(int(after.Seconds())))
		return
	}
	refused.Meta().Set("Grpc-Retry-Pushback-Ms", strconv.FormatInt(after.Milliseconds(), 10))
}

func addDetail(e *connect.Error, m proto.Message) {
	if detail, err := connect.NewErrorDetail(m); err == nil { // as it is for such messages
		e.AddDetail(detail)
	}
}

// ended is the error of a call whose context has ended before it was done. A client that
// has cancelled is no fault to report; a deadline can be that of a pool without a free
// connection.
func (c *call) ended(behind error) error {
	if errors.Is(c.ctx.Err(), context.DeadlineExceeded) {
		c.cfg.Report(c.ctx, c.request, behind)
		return connect.NewError(connect.CodeDeadlineExceeded, c.ctx.Err())
	}
	return connect.NewError(connect.CodeCanceled, c.ctx.Err())
}
