package idemgrpc

import (
	"context"

	"github.com/pgidem/idempotency/internal/transport"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// Key is a client interceptor that gives each call an idempotency key, a new UUIDv7, in
// the metadata [MetadataKey], unless the caller has set one there.
//
//	conn, err := grpc.NewClient(target, grpc.WithChainUnaryInterceptor(idemgrpc.Key), ...)
//
// All attempts that are made beneath it have the same key: those of the retryPolicy in
// the service config (gRPC's design A6), and those of interceptors that come after it in
// the chain. Let them repeat UNAVAILABLE and ABORTED, and calls to methods alone that are
// executed under a key. Key itself repeats nothing.
//
// A caller that repeats an operation by calling again, perhaps in another process, has to
// set the key itself, and to keep it before the first call:
//
//	ctx = metadata.AppendToOutgoingContext(ctx, idemgrpc.MetadataKey, order.ChargeKey)
func Key(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	sent, _ := metadata.FromOutgoingContext(ctx)
	if len(sent.Get(MetadataKey)) == 0 {
		ctx = metadata.AppendToOutgoingContext(ctx, MetadataKey, transport.NewID())
	}
	return invoke(ctx, method, request, reply, conn, opts...)
}
