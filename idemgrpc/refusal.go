package idemgrpc

import (
	"context"
	"errors"
	"strconv"

	"github.com/pgidem/idempotency/internal/transport"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// ErrorDomain is the domain of the ErrorInfo of each error of the Interceptor's own.
const ErrorDomain = "github.com/pgidem/idempotency"

// pushback is what a client with a retryPolicy waits, instead of its own backoff (gRPC's
// design A6, "Pushback").
const pushback = "grpc-retry-pushback-ms"

// refuse reports what is behind a refusal, and makes the status of it (the messages are
// in google/rpc/error_details.proto).
func (c *call) refuse(r transport.Refusal, behind error) error {
	if r.IsFault() {
		c.cfg.Report(c.ctx, c.method, behind)
	}
	plain := status.New(codes.Code(r.Code), r.Message)
	info := &errdetails.ErrorInfo{Domain: ErrorDomain, Reason: r.Reason}
	detailed, err := plain.WithDetails(info)
	if r.RetryAfter > 0 {
		detailed, err = plain.WithDetails(info, &errdetails.RetryInfo{RetryDelay: durationpb.New(r.RetryAfter)})
		_ = grpc.SetTrailer(c.ctx, metadata.Pairs(pushback, strconv.FormatInt(r.RetryAfter.Milliseconds(), 10)))
	}
	if err != nil {
		return plain.Err()
	}
	return detailed.Err()
}

// ended is the error of a call whose context has ended before it was done. A client that
// has cancelled is no fault to report; a deadline can be that of a pool without a free
// connection.
func (c *call) ended(behind error) error {
	if errors.Is(c.ctx.Err(), context.DeadlineExceeded) {
		c.cfg.Report(c.ctx, c.method, behind)
	}
	return status.FromContextError(c.ctx.Err()).Err()
}
