package idemconnect

import (
	"context"

	"connectrpc.com/connect"
	"github.com/pgidem/idempotency/internal/transport"
)

// Key is an interceptor for clients that gives each unary call an idempotency key, a new
// UUIDv7, in [Header], unless the caller has set one there. Methods that have no side
// effects, as their schema says, get none.
//
//	client := payv1connect.NewPaymentsClient(http.DefaultClient, url,
//		connect.WithInterceptors(connect.UnaryInterceptorFunc(idemconnect.Key)))
//
// All attempts that interceptors after it make have the same key. Key itself repeats
// nothing, and neither does connect-go. When the call has returned, a request that is
// used again gets a new key.
//
// A caller that repeats an operation by calling again, perhaps in another process, has to
// set the key itself, and to keep it before the first call.
func Key(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		header := request.Header()
		spec := request.Spec()
		if !spec.IsClient || spec.IdempotencyLevel == connect.IdempotencyNoSideEffects || len(header.Values(Header)) > 0 {
			return next(ctx, request)
		}
		header.Set(Header, transport.NewID())
		defer header.Del(Header)
		return next(ctx, request)
	}
}
