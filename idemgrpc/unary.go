package idemgrpc

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/transport"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Unary is the interceptor: grpc.ChainUnaryInterceptor takes it. It executes the handler
// of each of [Config.Methods] once per key, in a transaction that the handler gets with
// [Tx], and records the response in the same transaction. A retry gets the recorded
// response with "idempotent-replayed: true" in the trailer, and the handler is not run.
//
// Nothing is sent before the transaction has committed; if it cannot commit, the client
// gets an error instead. By the outcome:
//   - the handler returns nil: the response, the header and the trailer are recorded,
//     everything commits, they are sent. So it is when the context has ended meanwhile.
//   - it returns an error: everything is rolled back, the error is sent with its details,
//     header and trailer, and the next call with the key is executed. A status made by
//     [Final] is recorded instead, and commits.
//   - it panics: everything is rolled back, and the panic goes on to the server.
//   - the client cancels, or its deadline ends: the context does. What follows is for the
//     handler to say.
//   - the process dies: nothing is kept, and the key is free.
//
// The handler must have no effects except through its transaction, and can be run again,
// with the same request and an empty header and trailer, after a serialization failure, a
// deadlock or a lost connection, also where it has made another status of that. What it
// leaves behind when it returns, such as a goroutine, has no transaction any more.
//
// An error of the Interceptor's own has an ErrorInfo with [ErrorDomain] and a reason.
// Where sending the call again helps, after a second and with the same key, it also has a
// RetryInfo, and grpc-retry-pushback-ms in the trailer for clients with a retryPolicy:
//   - ABORTED, IN_PROGRESS: another call with the key was not done within the Store's
//     Wait. Retry.
//   - FAILED_PRECONDITION, KEY_REUSED: the key belongs to another request.
//   - INVALID_ARGUMENT: KEY_MISSING, KEY_INVALID, SCOPE_INVALID.
//   - PERMISSION_DENIED, NO_SCOPE.
//   - UNAVAILABLE: the database cannot be used now (UNAVAILABLE), or did not answer to
//     COMMIT (OUTCOME_UNKNOWN), or the key belongs to a procedure that has not ended
//     (UNFINISHED). Retry.
//   - INTERNAL: nothing was kept, although the handler returned nil (FAILED, such as a
//     statement whose error it has swallowed; UNRECORDABLE, such as a response larger than
//     the Store's MaxResult); or the key has no answer to such a call (STUCK).
//   - CANCELLED and DEADLINE_EXCEEDED, without a reason: the context has ended before the
//     handler was run, or between two runs.
//
// Interceptors that come before this one are run for each call, and what they set in the
// header or the trailer is not recorded: authentication, logging and tracing belong there.
// Those that come after are run with the handler. One that makes an error of another
// there has to wrap it, or Final is not found.
//
// Everything inside of another Interceptor, or of a Middleware of package idemhttp, passes
// through: their key and transaction hold.
func (i *Interceptor) Unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	response, protected := i.methods[info.FullMethod]
	if !protected || transport.RunOf(ctx) != nil {
		return handler(ctx, request)
	}
	c := &call{Interceptor: i, ctx: ctx, method: info.FullMethod, handler: handler, responseType: response}
	key, refused := c.key(request)
	if refused != nil {
		return nil, refused
	}
	rec, replayed, err := idempotency.Do(ctx, i.store, key, func(ctx context.Context, tx pgx.Tx) (transport.Record, error) {
		return c.run(ctx, tx, key)
	})
	switch {
	case err != nil:
		return nil, c.fail(key, err)
	case replayed:
		return c.replay(rec)
	}
	c.deliver(c.last.header, c.last.trailer)
	return c.response, c.err
}

// A call is one call of a method under a key.
type call struct {
	*Interceptor
	ctx          context.Context
	method       string
	handler      grpc.UnaryHandler
	responseType protoreflect.MessageType

	request proto.Message

	// Of the last run of the handler; last is nil before the first.
	last     *heldBack
	response any
	err      error
}

// key returns the key that the call is executed under, or the refusal.
func (c *call) key(request any) (key idempotency.Key, refused error) {
	message, ok := request.(proto.Message)
	if !ok {
		return key, c.refuse(transport.RefusalOf(transport.Failed), fmt.Errorf("idemgrpc: the request is a %T, and no proto.Message", request))
	}
	c.request = message
	id, err := c.cfg.Key(c.ctx, message)
	if err == nil {
		err = transport.CheckLength(id)
	}
	switch {
	case err != nil:
		return key, c.refuse(transport.InvalidKey(err.Error()), err)
	case id == "":
		return key, c.refuse(transport.MissingKey("the metadata "+MetadataKey+", or where this server looks for it"), nil)
	}
	scope, err := c.cfg.Scope(c.ctx, c.method)
	switch {
	case hasStatus(err):
		return key, err
	case err != nil:
		return key, c.refuse(transport.RefusalOf(transport.Failed), fmt.Errorf("idemgrpc: finding the scope: %w", err))
	case scope == "":
		return key, c.refuse(transport.NoScope(), nil)
	}
	print, err := c.fingerprint()
	if err != nil {
		return key, c.refuse(transport.RefusalOf(transport.Failed), fmt.Errorf("idemgrpc: the fingerprint of the request: %w", err))
	}
	return idempotency.Key{Scope: scope, ID: id, Fingerprint: print}, nil
}

func (c *call) fingerprint() (idempotency.Fingerprint, error) {
	if c.cfg.Fingerprint != nil {
		return c.cfg.Fingerprint(c.method, c.request), nil
	}
	return fingerprintOf(c.method, c.request)
}

func keyOfMetadata(ctx context.Context, _ proto.Message) (string, error) {
	return transport.OneKey(metadata.ValueFromIncomingContext(ctx, MetadataKey))
}

// run is the function of [idempotency.Do]: one run of the handler.
func (c *call) run(ctx context.Context, tx pgx.Tx, key idempotency.Key) (transport.Record, error) {
	watched := transport.Watch(tx)
	c.last = &heldBack{method: c.method}
	c.handle((&transport.Run{Tx: watched, Key: key}).In(ctx), watched)

	final, isFinal := errors.AsType[*finalError](c.err)
	switch {
	case c.err != nil && !isFinal:
		return transport.Record{}, &handlerError{c.err, watched.Seen()}
	case watched.Broken():
		return transport.Record{}, fmt.Errorf("idemgrpc: the handler has ended with %v although a statement of its transaction failed: %w", statusOf(c.err).Code(), watched.Seen())
	}
	rec, err := c.record(final)
	if err != nil {
		return transport.Record{}, &unrecordableError{err}
	}
	return rec, nil
}

// handle runs the handler, and ends its use of the transaction, the header and the
// trailer also when it panics.
func (c *call) handle(ctx context.Context, tx *transport.WatchedTx) {
	defer c.last.end()
	defer tx.End()
	// A handler may change its request, and can be run again.
	c.response, c.err = c.handler(grpc.NewContextWithServerTransportStream(ctx, c.last), proto.Clone(c.request))
}

// A handlerError carries an error of the handler's through [idempotency.Do], which runs
// the handler again for some. The first of the two says why the transaction has failed.
type handlerError struct {
	error
	seen error // of the last statement that failed
}

func (e *handlerError) Unwrap() []error {
	if e.seen == nil {
		return []error{e.error}
	}
	return []error{e.seen, e.error}
}

// ErrorType is what telemetry calls the error by (see package idemotel): its code, as
// OpenTelemetry has it for gRPC, and not a type of this package.
func (e *handlerError) ErrorType() string {
	return code.Code(statusOf(e.error).Code()).String()
}

// An unrecordableError is of a response that cannot be recorded.
type unrecordableError struct{ cause error }

func (e *unrecordableError) Error() string {
	return "idemgrpc: the response cannot be recorded: " + e.cause.Error()
}
func (e *unrecordableError) Unwrap() error { return e.cause }

// fail returns the error of a call that has kept nothing, or may have.
func (c *call) fail(key idempotency.Key, err error) error {
	if h, ok := errors.AsType[*handlerError](err); ok {
		if err != error(h) { // Do has something to say about it
			c.cfg.Report(c.ctx, c.method, err)
		}
		c.deliver(c.last.header, c.last.trailer)
		return h.error
	}
	outcome := transport.OutcomeOf(key, err, c.last != nil)
	_, unrecordable := errors.AsType[*unrecordableError](err)
	switch {
	case unrecordable, errors.Is(err, idempotency.ErrTooLarge):
		return c.refuse(transport.Unrecordable(), err)
	case c.ctx.Err() != nil && outcome == transport.Unavailable:
		return c.ended(err)
	}
	return c.refuse(transport.RefusalOf(outcome), err)
}

// deliver sends a header and a trailer. It fails where an interceptor in front has sent
// the header, which has no effect then without this Interceptor either.
func (c *call) deliver(header, trailer metadata.MD) {
	_ = grpc.SetHeader(c.ctx, header)
	_ = grpc.SetTrailer(c.ctx, trailer)
}

// hasStatus reports whether an error says by itself which status it is.
func hasStatus(err error) bool {
	_, has := status.FromError(err)
	return err != nil && has
}
