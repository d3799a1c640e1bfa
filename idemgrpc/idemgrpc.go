// Package idemgrpc gives the unary methods of a gRPC server idempotency keys: a call
// that is sent again with the same key has one effect, and gets the response of the
// first. The response is recorded in the transaction that the handler writes in, so
// there is no crash after which one of the two is missing.
//
// For most servers, [New], [Interceptor.Unary] and [Tx] are all you need:
//
//	idem, err := idemgrpc.New(store, idemgrpc.Config{
//		Methods: []string{pb.Payments_Charge_FullMethodName},
//		Scope:   accountOf,
//	})
//	server := grpc.NewServer(grpc.ChainUnaryInterceptor(authenticate, idem.Unary))
//
//	func (s *payments) Charge(ctx context.Context, r *pb.ChargeRequest) (*pb.ChargeResponse, error) {
//		tx := idemgrpc.Tx(ctx)
//		...
//	}
//
// Clients make the key, with [Key] or by themselves, and send it in the metadata
// [MetadataKey].
package idemgrpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/pgidem/idempotency"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// MetadataKey is the metadata that carries the key of a call.
const MetadataKey = "idempotency-key"

// Config is the configuration of an Interceptor. Methods and Scope are required; the
// zero value of each other field means its default.
type Config struct {
	// Methods that are executed under a key, by their generated names, such as
	// pb.Payments_Charge_FullMethodName ("/pay.v1.Payments/Charge"). All others pass
	// through.
	Methods []string

	// Scope says whose key it is: the account, tenant or user that sends the call, 1 to
	// 255 bytes. Method is as in Methods. It has no default, because in a key space that
	// clients share each can be given the responses of the others.
	//
	// A retry gets the recorded response without the handler being asked: what the
	// handler would check of its sender, such as a role, belongs in an interceptor in
	// front, or into the scope.
	//
	// An empty scope is refused with PERMISSION_DENIED, and one that is too long or no
	// text with INVALID_ARGUMENT. An error that has a status, such as UNAUTHENTICATED,
	// is the answer; any other is reported, and answered with INTERNAL.
	Scope func(ctx context.Context, method string) (string, error)

	// Key takes the key from elsewhere than MetadataKey, such as the request_id of a
	// request as in AIP-155. An empty key is none, which is INVALID_ARGUMENT. So is an
	// error, and its text is sent to the client. The request must not be changed.
	// Default: MetadataKey, of which "k" in quotes is the same key as k.
	Key func(ctx context.Context, request proto.Message) (string, error)

	// Fingerprint identifies what a call asks for; a key that comes with another one is
	// FAILED_PRECONDITION. Default: the method, and the request with all its fields,
	// also those that this program does not know. It does not depend on the order in
	// which they, or the entries of a map, were sent.
	Fingerprint func(method string, request proto.Message) idempotency.Fingerprint

	// Report is called with what is behind an INTERNAL, UNAVAILABLE or DEADLINE_EXCEEDED
	// of the Interceptor's own. Default: it is logged with slog.
	Report func(ctx context.Context, method string, err error)
}

func (c Config) withDefaults() Config {
	if c.Key == nil {
		c.Key = keyOfMetadata
	}
	if c.Report == nil {
		c.Report = func(ctx context.Context, method string, err error) {
			slog.ErrorContext(ctx, "idemgrpc: call failed", "method", method, "error", err)
		}
	}
	return c
}

// An Interceptor executes calls under their idempotency keys. It is safe for concurrent
// use; several can share one Store.
type Interceptor struct {
	store   *idempotency.Store
	cfg     Config                              // with its defaults
	methods map[string]protoreflect.MessageType // the type of the response
}

// New returns an Interceptor, or an error that names the field of cfg that cannot be
// used. The code of the methods' services has to be linked into the program: a method
// that is not known, or streams, would pass through unprotected, and is an error.
func New(store *idempotency.Store, cfg Config) (*Interceptor, error) {
	switch {
	case store == nil:
		return nil, errors.New("idemgrpc: store is nil")
	case cfg.Scope == nil:
		return nil, errors.New("idemgrpc: Config.Scope is nil: without it clients would share their keys, and be given each other's responses")
	case len(cfg.Methods) == 0:
		return nil, errors.New("idemgrpc: Config.Methods is empty: nothing would be executed under a key")
	}
	i := &Interceptor{store: store, cfg: cfg.withDefaults(), methods: make(map[string]protoreflect.MessageType)}
	for _, name := range cfg.Methods {
		response, err := responseOf(name)
		if err != nil {
			return nil, fmt.Errorf("idemgrpc: Config.Methods has %q, %w", name, err)
		}
		i.methods[name] = response
	}
	return i, nil
}

// responseOf returns the type of the response of a unary method.
func responseOf(method string) (protoreflect.MessageType, error) {
	service, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + name))
	d, ok := found.(protoreflect.MethodDescriptor)
	if err != nil || !ok || method != fmt.Sprintf("/%s/%s", d.Parent().FullName(), d.Name()) {
		return nil, errors.New(`which is no method of a service whose generated code is in this program: the name is like "/pay.v1.Payments/Charge", and there is a constant of it that ends in _FullMethodName`)
	}
	if d.IsStreamingClient() || d.IsStreamingServer() {
		return nil, errors.New("which streams: only the response of a unary method can be recorded")
	}
	response, err := protoregistry.GlobalTypes.FindMessageByName(d.Output().FullName())
	if err != nil {
		return nil, fmt.Errorf("whose response %s has no generated code in this program: %w", d.Output().FullName(), err)
	}
	return response, nil
}
