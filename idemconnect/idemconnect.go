// Package idemconnect gives the unary methods of a Connect server idempotency keys: a
// call that is sent again with the same key has one effect, and gets the response of the
// first, in each of the protocols Connect, gRPC and gRPC-Web. The response is recorded in
// the transaction that the handler writes in, so there is no crash after which one of the
// two is missing.
//
// For most servers, [New] and [Tx] are all you need:
//
//	idem, err := idemconnect.New(store, idemconnect.Config{Scope: accountOf})
//	mux.Handle(payv1connect.NewPaymentsHandler(payments, connect.WithInterceptors(authenticate, idem)))
//
//	func (s *payments) Charge(ctx context.Context, r *connect.Request[payv1.ChargeRequest]) (*connect.Response[payv1.ChargeResponse], error) {
//		tx := idemconnect.Tx(ctx)
//		...
//	}
//
// Clients make the key, with [Key] or by themselves, and send it in the header field
// [Header]. A record is the same as that of package idemgrpc, so that a service can be
// served by both on one Store.
package idemconnect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/pgidem/idempotency"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// Header is the header field that carries the key of a call.
const Header = "Idempotency-Key"

// Config is the configuration of an Interceptor. Only Scope is required; the zero value
// of each other field means its default.
type Config struct {
	// Scope says whose key it is: the account, tenant or user that sends the call, 1 to
	// 255 bytes. It has no default, because in a key space that clients share each can be
	// given the responses of the others.
	//
	// A retry gets the recorded response without the handler being asked: what the
	// handler would check of its sender, such as a role, belongs in an interceptor in
	// front, or into the scope.
	//
	// An empty scope is refused with permission_denied, and one that is too long or no
	// text with invalid_argument. A [connect.Error], such as unauthenticated, is the
	// answer; any other error is reported, and answered with internal.
	Scope func(ctx context.Context, request connect.AnyRequest) (string, error)

	// Methods that are executed under a key, by their generated names, such as
	// payv1connect.PaymentsChargeProcedure ("/pay.v1.Payments/Charge"). All others pass
	// through. Default: all that the schema does not say to be without side effects or
	// idempotent (option idempotency_level); those that are idempotent pass through
	// without a key in Header.
	Methods []string

	// Key takes the key from elsewhere than Header, such as the request_id of a message
	// as in AIP-155. An empty key is none, which is invalid_argument. So is an error, and
	// its text is sent to the client. The request must not be changed. Default: Header,
	// of which "k" in quotes is the same key as k.
	Key func(ctx context.Context, request connect.AnyRequest) (string, error)

	// Fingerprint identifies what a call asks for; a key that comes with another one is
	// failed_precondition. Default: the method, and the message with all its fields, also
	// those that this program does not know. It does not depend on the protocol, nor on
	// the order in which the fields, or the entries of a map, were sent.
	Fingerprint func(request connect.AnyRequest) idempotency.Fingerprint

	// Report is called with what is behind an internal, unavailable or deadline_exceeded
	// of the Interceptor's own. Default: it is logged with slog.
	Report func(ctx context.Context, request connect.AnyRequest, err error)
}

func (c Config) withDefaults() Config {
	c.Methods = slices.Clone(c.Methods)
	if c.Report == nil {
		c.Report = func(ctx context.Context, request connect.AnyRequest, err error) {
			slog.ErrorContext(ctx, "idemconnect: call failed", "method", request.Spec().Procedure, "error", err)
		}
	}
	return c
}

// An Interceptor executes calls under their idempotency keys. It is safe for concurrent
// use; several can share one Store.
type Interceptor struct {
	store *idempotency.Store
	cfg   Config // with its defaults
}

// New returns an Interceptor, or an error that names the field of cfg that cannot be
// used. The code of the services of [Config.Methods] has to be linked into the program: a
// method that is not known, or streams, would pass through unprotected, and is an error.
func New(store *idempotency.Store, cfg Config) (*Interceptor, error) {
	switch {
	case store == nil:
		return nil, errors.New("idemconnect: store is nil")
	case cfg.Scope == nil:
		return nil, errors.New("idemconnect: Config.Scope is nil: without it clients would share their keys, and be given each other's responses")
	case cfg.Methods != nil && len(cfg.Methods) == 0:
		return nil, errors.New("idemconnect: Config.Methods is empty, and not nil: nothing would be executed under a key")
	}
	for _, name := range cfg.Methods {
		if err := checkMethod(name); err != nil {
			return nil, fmt.Errorf("idemconnect: Config.Methods has %q, %w", name, err)
		}
	}
	return &Interceptor{store: store, cfg: cfg.withDefaults()}, nil
}

func checkMethod(name string) error {
	d, err := methodNamed(name)
	switch {
	case err != nil:
		return err
	case d.IsStreamingClient() || d.IsStreamingServer():
		return errors.New("which streams: only the response of a unary method can be recorded")
	case d.Options().(*descriptorpb.MethodOptions).GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS:
		return errors.New("which has no side effects, as its schema says: it passes through always")
	}
	_, err = responseOf(d)
	return err
}

// methodNamed finds a method by the name that calls have.
func methodNamed(procedure string) (protoreflect.MethodDescriptor, error) {
	service, name, _ := strings.Cut(strings.TrimPrefix(procedure, "/"), "/")
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + name))
	d, ok := found.(protoreflect.MethodDescriptor)
	if err != nil || !ok || procedure != fmt.Sprintf("/%s/%s", d.Parent().FullName(), d.Name()) {
		return nil, errors.New(`which is no method of a service whose generated code is in this program: the name is like "/pay.v1.Payments/Charge", and there is a constant of it that ends in Procedure`)
	}
	return d, nil
}

// responseOf returns the type of a method's response.
func responseOf(d protoreflect.MethodDescriptor) (protoreflect.MessageType, error) {
	response, err := protoregistry.GlobalTypes.FindMessageByName(d.Output().FullName())
	if err != nil {
		return nil, fmt.Errorf("whose response %s has no generated code in this program: %w", d.Output().FullName(), err)
	}
	return response, nil
}

// protects reports whether a call is executed under a key. One of an idempotent method
// that carries a key is: its client counts on the key.
func (i *Interceptor) protects(request connect.AnyRequest) bool {
	spec := request.Spec()
	switch {
	case spec.IsClient, spec.IdempotencyLevel == connect.IdempotencyNoSideEffects:
		return false
	case i.cfg.Methods != nil:
		return slices.Contains(i.cfg.Methods, spec.Procedure)
	case spec.IdempotencyLevel == connect.IdempotencyIdempotent:
		return i.cfg.Key == nil && len(request.Header().Values(Header)) > 0
	}
	return true
}
