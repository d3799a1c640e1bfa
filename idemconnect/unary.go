package idemconnect

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/transport"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// WrapUnary makes the Interceptor one of package connect: connect.WithInterceptors takes
// it. It executes each call that is protected (see [Config.Methods]) once per key, in a
// transaction that the handler gets with [Tx], and records the response in the same
// transaction. A retry gets the recorded response with "Idempotent-Replayed: true" in the
// trailer, and the handler is not run. The message of a replay has the method's own type;
// an interceptor in front gets it from the response's Any.
//
// Nothing is sent before the transaction has committed; if it cannot commit, the client
// gets an error instead. By the outcome:
//   - the handler returns a nil error: the response, its header and trailer, and those of
//     its [connect.CallInfo], are recorded, everything commits, they are sent. So it is
//     when the context has ended meanwhile.
//   - it returns an error: everything is rolled back, the error is sent as it is, and the
//     next call with the key is executed. An error made by [Final] is recorded instead,
//     and commits.
//   - it panics: everything is rolled back, and the panic goes on to the server.
//   - the client cancels, or its deadline ends: the context does. What follows is for the
//     handler to say.
//   - the process dies: nothing is kept, and the key is free.
//
// The handler must have no effects except through its transaction, and can be run again,
// with the same request and an empty header and trailer, after a serialization failure, a
// deadlock or a lost connection, also where it has made another error of that. What it
// leaves behind when it returns, such as a goroutine, has no transaction any more.
//
// An error of the Interceptor's own has an ErrorInfo with [ErrorDomain] and a reason.
// Where sending the call again helps, after a second and with the same key, it also has a
// RetryInfo, and in its metadata what clients of the protocol know: Retry-After, or
// Grpc-Retry-Pushback-Ms.
//   - aborted, IN_PROGRESS: another call with the key was not done within the Store's
//     Wait. Retry.
//   - failed_precondition, KEY_REUSED: the key belongs to another request.
//   - invalid_argument: KEY_MISSING, KEY_INVALID, SCOPE_INVALID.
//   - permission_denied, NO_SCOPE.
//   - unavailable: the database cannot be used now (UNAVAILABLE), or did not answer to
//     COMMIT (OUTCOME_UNKNOWN), or the key belongs to a procedure that has not ended
//     (UNFINISHED). Retry.
//   - internal: nothing was kept, although the handler returned no error (FAILED, such as
//     a statement whose error it has swallowed; UNRECORDABLE, such as a response larger
//     than the Store's MaxResult); or the key has no answer to such a call (STUCK).
//   - canceled and deadline_exceeded, without a reason: the context has ended before the
//     handler was run, or between two runs.
//
// Interceptors that come before this one are run for each call, and what they set is not
// recorded: authentication, logging and tracing belong there. Those that come after are
// run with the handler. One that makes an error of another there has to wrap it, or Final
// is not found.
//
// Everything inside of another Interceptor, or of a Middleware of package idemhttp, passes
// through: their key and transaction hold.
func (i *Interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		if !i.protects(request) || transport.RunOf(ctx) != nil {
			return next(ctx, request)
		}
		return i.serve(ctx, request, next)
	}
}

// WrapStreamingHandler lets methods that stream through: they cannot be recorded.
func (i *Interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// WrapStreamingClient does nothing: the Interceptor is for servers.
func (i *Interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (i *Interceptor) serve(ctx context.Context, request connect.AnyRequest, next connect.UnaryFunc) (connect.AnyResponse, error) {
	c := &call{Interceptor: i, ctx: ctx, request: request, next: next, fields: fieldsOf(ctx)}
	key, refused := c.key()
	if refused != nil {
		return nil, refused
	}
	c.before = requestBefore{proto.Clone(c.message), request.Header().Clone()}
	rec, replayed, err := idempotency.Do(ctx, i.store, key, func(ctx context.Context, tx pgx.Tx) (transport.Record, error) {
		return c.run(ctx, tx, key)
	})
	switch {
	case err != nil:
		return nil, c.fail(key, err)
	case replayed:
		c.fields.reset()
		return c.replay(rec)
	}
	return c.response, c.err
}

// A call is one call of a method under a key.
type call struct {
	*Interceptor
	ctx          context.Context
	request      connect.AnyRequest
	message      proto.Message // of the request
	responseType protoreflect.MessageType
	next         connect.UnaryFunc

	fields fields        // that are sent with whatever is answered
	before requestBefore // the first run

	// Of the last run of the handler.
	ran      bool
	response connect.AnyResponse
	err      error
}

// A requestBefore is what a run may have changed of its request.
type requestBefore struct {
	message proto.Message
	header  http.Header
}

// key returns the key that the call is executed under, or the refusal.
func (c *call) key() (key idempotency.Key, refused error) {
	if err := c.findTypes(); err != nil {
		return key, c.refuse(transport.RefusalOf(transport.Failed), fmt.Errorf("idemconnect: the method is one %w", err))
	}
	id, err := c.keyID()
	if err == nil {
		err = transport.CheckLength(id)
	}
	switch {
	case err != nil:
		return key, c.refuse(transport.InvalidKey(err.Error()), err)
	case id == "":
		return key, c.refuse(transport.MissingKey("the header field "+Header+", or where this server looks for it"), nil)
	}
	scope, err := c.cfg.Scope(c.ctx, c.request)
	switch {
	case asError(err) != nil:
		return key, err
	case err != nil:
		return key, c.refuse(transport.RefusalOf(transport.Failed), fmt.Errorf("idemconnect: finding the scope: %w", err))
	case scope == "":
		return key, c.refuse(transport.NoScope(), nil)
	}
	print, err := c.fingerprint()
	if err != nil {
		return key, c.refuse(transport.RefusalOf(transport.Failed), fmt.Errorf("idemconnect: the fingerprint of the request: %w", err))
	}
	return idempotency.Key{Scope: scope, ID: id, Fingerprint: print}, nil
}

// findTypes asks for what a replay will need before anything is executed.
func (c *call) findTypes() (err error) {
	message, ok := c.request.Any().(proto.Message)
	if !ok {
		return fmt.Errorf("whose request is a %T, and no proto.Message", c.request.Any())
	}
	c.message = message
	d, ok := c.request.Spec().Schema.(protoreflect.MethodDescriptor)
	if !ok { // a handler that was made without connect.WithSchema
		if d, err = methodNamed(c.request.Spec().Procedure); err != nil {
			return err
		}
	}
	c.responseType, err = responseOf(d)
	return err
}

func (c *call) keyID() (string, error) {
	if c.cfg.Key != nil {
		return c.cfg.Key(c.ctx, c.request)
	}
	return transport.OneKey(c.request.Header().Values(Header))
}

func (c *call) fingerprint() (idempotency.Fingerprint, error) {
	if c.cfg.Fingerprint != nil {
		return c.cfg.Fingerprint(c.request), nil
	}
	return fingerprintOf(c.request.Spec().Procedure, c.message)
}

// run is the function of [idempotency.Do]: one run of the handler.
func (c *call) run(ctx context.Context, tx pgx.Tx, key idempotency.Key) (transport.Record, error) {
	c.startOver()
	watched := transport.Watch(tx)
	c.handle((&transport.Run{Tx: watched, Key: key}).In(ctx), watched)

	_, isFinal := errors.AsType[*finalError](c.err)
	switch {
	case c.err != nil && !isFinal:
		return transport.Record{}, &handlerError{c.err, watched.Seen()}
	case watched.Broken():
		return transport.Record{}, fmt.Errorf("idemconnect: the handler has returned although a statement of its transaction failed: %w", watched.Seen())
	}
	rec, err := c.record()
	if err != nil {
		return transport.Record{}, &unrecordableError{err}
	}
	return rec, nil
}

// startOver undoes what an earlier run has done to the request, the header and the
// trailer. They cannot be replaced: the types of package connect that hold them are not
// open.
func (c *call) startOver() {
	c.fields.reset()
	if c.ran {
		proto.Reset(c.message)
		proto.Merge(c.message, c.before.message)
		restore(c.request.Header(), c.before.header)
	}
	c.ran = true
}

// handle runs the handler, and ends its use of the transaction also when it panics.
func (c *call) handle(ctx context.Context, tx *transport.WatchedTx) {
	defer tx.End()
	c.response, c.err = c.next(ctx, c.request)
	c.dropMark()
}

// dropMark takes the mark of a replay away, which is ours: it can come from a server
// behind the handler, which passes fields on.
func (c *call) dropMark() {
	all := []http.Header{c.fields.header, c.fields.trailer, metaOf(c.err)}
	if c.err == nil {
		all = append(all, c.response.Header(), c.response.Trailer())
	}
	for _, h := range all {
		h.Del(replayedField)
	}
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
	number, _, _ := statusOf(e.error)
	return code.Code(number).String()
}

// An unrecordableError is of a response that cannot be recorded.
type unrecordableError struct{ cause error }

func (e *unrecordableError) Error() string {
	return "idemconnect: the response cannot be recorded: " + e.cause.Error()
}
func (e *unrecordableError) Unwrap() error { return e.cause }

// fail returns the error of a call that has kept nothing, or may have.
func (c *call) fail(key idempotency.Key, err error) error {
	if h, ok := errors.AsType[*handlerError](err); ok {
		if err != error(h) { // Do has something to say about it
			c.cfg.Report(c.ctx, c.request, err)
		}
		return h.error
	}
	c.fields.reset()
	outcome := transport.OutcomeOf(key, err, c.ran)
	_, unrecordable := errors.AsType[*unrecordableError](err)
	switch {
	case unrecordable, errors.Is(err, idempotency.ErrTooLarge):
		return c.refuse(transport.Unrecordable(), err)
	case c.ctx.Err() != nil && outcome == transport.Unavailable:
		return c.ended(err)
	}
	return c.refuse(transport.RefusalOf(outcome), err)
}
