package idemgrpc_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemgrpc"
	"github.com/pgidem/idempotency/idemgrpc/internal/pay"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// A tap is a codec that keeps the bytes of each response.
type tap struct {
	encoding.Codec
	mu        sync.Mutex
	responses [][]byte
}

func (t *tap) Name() string                  { return "proto" }
func (t *tap) Marshal(v any) ([]byte, error) { return proto.Marshal(v.(proto.Message)) }
func (t *tap) Unmarshal(data []byte, v any) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.responses = append(t.responses, slices.Clone(data))
	return proto.Unmarshal(data, v.(proto.Message))
}

// unknown is a field that no message of the tests has.
var unknown = protowire.AppendString(protowire.AppendTag(nil, 1000, protowire.BytesType), "from a later release\xff")

func TestRetryGetsTheResponseOfTheFirst(t *testing.T) {
	t.Parallel()
	b := setup(t)
	wire := &tap{}
	c := b.protected(idemgrpc.Config{}, func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		response, err := b.charge(ctx, r)
		response.ProtoReflect().SetUnknown(unknown)
		return response, err
	}, grpc.WithDefaultCallOptions(grpc.ForceCodec(wire)))
	first := c.pay("k")
	first.is(t, 10, false)
	for range 2 {
		again := c.pay("k")
		again.is(t, 10, true)
		same(t, "the replay", again.ChargeResponse, first.ChargeResponse)
	}
	if string(first.ProtoReflect().GetUnknown()) != string(unknown) {
		t.Error("the unknown field is lost")
	}
	for _, response := range wire.responses {
		if string(response) != string(wire.responses[0]) {
			t.Errorf("a replay is %x, and the first response was %x", response, wire.responses[0])
		}
	}
	b.ran(1)
	b.effects(1)
	if b.reports() != "[]" {
		t.Errorf("reported %s", b.reports())
	}
}

func TestCallsAreRefusedWithCodeReasonAndRetry(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemgrpc.Config{}, b.charge)
	c.pay("k").is(t, 10, false)
	other := &pay.ChargeRequest{Account: "a", Amount: 11}
	c.send(c.with("k"), other).isRefusal(t, codes.FailedPrecondition, "KEY_REUSED")
	with := func(md ...string) context.Context { return metadata.AppendToOutgoingContext(t.Context(), md...) }
	for name, test := range map[string]struct {
		ctx    context.Context
		code   codes.Code
		reason string
	}{
		"no key":               {with("account", "a"), codes.InvalidArgument, "KEY_MISSING"},
		"an empty key":         {with("account", "a", "idempotency-key", ""), codes.InvalidArgument, "KEY_MISSING"},
		"an empty, quoted key": {with("account", "a", "idempotency-key", `""`), codes.InvalidArgument, "KEY_MISSING"},
		"two keys":             {with("account", "a", "idempotency-key", "k1", "idempotency-key", "k2"), codes.InvalidArgument, "KEY_INVALID"},
		"a key too long":       {with("account", "a", "idempotency-key", strings.Repeat("k", 256)), codes.InvalidArgument, "KEY_INVALID"},
		"nobody":               {with("idempotency-key", "k"), codes.PermissionDenied, "NO_SCOPE"},
		"a scope too long":     {with("account", strings.Repeat("a", 256), "idempotency-key", "k"), codes.InvalidArgument, "SCOPE_INVALID"},
	} {
		t.Run(name, func(t *testing.T) {
			c.send(test.ctx, tenEuros()).isRefusal(t, test.code, test.reason)
		})
	}
	b.ran(1)
	if b.reports() != "[]" {
		t.Errorf("reported %s", b.reports())
	}
	if long := c.pay(strings.Repeat("k", 256)); !strings.Contains(long.err.Error(), "256 bytes, more than 255") {
		t.Errorf("got %v", long.err)
	}
	c.pay(strings.Repeat("k", 255)).is(t, 10, false)
}

func TestKeyInQuotesIsTheSameKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemgrpc.Config{}, b.charge)
	c.pay("k").is(t, 10, false)
	c.pay(`"k"`).is(t, 10, true)
	for _, other := range []string{`"k`, `k"`, `"`, `""k""`} {
		c.pay(other).is(t, 10, false)
	}
}

func TestMapInAnotherOrderIsTheSameRequest(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemgrpc.Config{}, b.charge)
	for i := range 100 {
		r := &pay.ChargeRequest{Amount: 10, Labels: map[string]string{}, Item: &pay.Item{Parts: map[string]*pay.Item{}}}
		for n := range 10 {
			r.Labels[fmt.Sprint(n)], r.Item.Parts[fmt.Sprint(n)] = "x", &pay.Item{}
		}
		c.send(c.with("k"), r).is(t, 10, i > 0)
	}
	b.ran(1)
}

func TestKeysOfTwoScopesAreTwoKeys(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemgrpc.Config{}, b.charge)
	c.pay("k").is(t, 10, false)
	b.account = "account-2"
	c.pay("k").is(t, 10, false)
	c.pay("k").is(t, 10, true)
	b.ran(2)
}

func TestDuplicateInFlightIsAbortedAfterWait(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.store = b.storeOn(b.pool, idempotency.Config{Wait: -1})
	running, finish := make(chan bool), make(chan bool)
	c := b.protected(idemgrpc.Config{}, func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		running <- true
		<-finish
		return b.charge(ctx, r)
	})
	first := make(chan answer)
	go func() { first <- c.pay("k") }()
	<-running
	c.pay("k").isRefusal(t, codes.Aborted, "IN_PROGRESS")
	close(finish)
	a := <-first
	a.is(t, 10, false)
	c.pay("k").is(t, 10, true)
	b.ran(1)
	if b.reports() != "[]" {
		t.Errorf("reported %s", b.reports())
	}
}

func TestUnreachableStoreIsUnavailableAndTheHandlerIsNotRun(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // nobody listens at its address now
	pool, err := pgxpool.New(t.Context(), fmt.Sprint("sslmode=disable user=nobody host=127.0.0.1 port=", l.Addr().(*net.TCPAddr).Port))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	b.store = b.storeOn(pool, idempotency.Config{})
	b.protected(idemgrpc.Config{}, b.charge).pay("k").isRefusal(t, codes.Unavailable, "UNAVAILABLE")
	b.ran(0)
	if !strings.Contains(b.reports(), "connect") {
		t.Errorf("reported %s", b.reports())
	}
}

// Where the handler has not run, nothing but the database can have failed.
func TestStoreWithoutItsTableIsUnavailableAndTheHandlerIsNotRun(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if _, err := b.pool.Exec(t.Context(), "drop table idempotency_keys"); err != nil {
		t.Fatal(err)
	}
	b.protected(idemgrpc.Config{}, b.charge).pay("k").isRefusal(t, codes.Unavailable, "UNAVAILABLE")
	b.ran(0)
}

func TestUnknownOutcomeIsUnavailableAndNeverASecondExecution(t *testing.T) {
	t.Parallel()
	b := setup(t)
	// The end of the context does not hide that nobody knows what became of the call.
	var end context.CancelFunc
	limit := func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		ctx, end = context.WithCancel(ctx)
		defer end()
		return handler(ctx, request)
	}
	c := b.serve(b.charging(func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		// The transaction is gone, and nobody can say what became of the key.
		if _, err := idemgrpc.Tx(ctx).Exec(ctx, "commit"); err != nil {
			t.Error(err)
		}
		end()
		return &pay.ChargeResponse{}, nil
	}), []grpc.UnaryServerInterceptor{limit, b.interceptor(idemgrpc.Config{}).Unary})
	c.pay("k").isRefusal(t, codes.Unavailable, "OUTCOME_UNKNOWN")
	for range 2 {
		c.pay("k").isRefusal(t, codes.Internal, "STUCK")
	}
	b.ran(1)
	b.effects(1)
}

func TestKeyOfAnUnfinishedProcedureIsUnavailable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemgrpc.Config{Fingerprint: func(string, proto.Message) idempotency.Fingerprint { return idempotency.Fingerprint{} }}, b.charge)
	p := idempotency.Procedure[int, int]{Name: "p", Run: func(ctx context.Context, op *idempotency.Op, in int) (int, error) {
		if _, err := idempotency.Step(ctx, op, "one", func(context.Context, pgx.Tx) (int, error) { return 1, nil }); err != nil {
			return 0, err
		}
		return idempotency.Call(ctx, op, "two", func(context.Context, string) (int, error) { return 0, errors.New("away") })
	}}
	if _, _, err := p.Do(t.Context(), b.store, idempotency.Key{Scope: b.account, ID: "k"}, 1); err == nil {
		t.Fatal("the procedure has ended")
	}
	c.pay("k").isRefusal(t, codes.Unavailable, "UNFINISHED")
	b.ran(0)
}

func TestRecordOfAnotherKindIsNeverASecondExecutionAndNotTheClientsFault(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var own idempotency.Fingerprint
	c := b.protected(idemgrpc.Config{Fingerprint: func(string, proto.Message) idempotency.Fingerprint { return own }}, b.charge)
	for id, result := range map[string]any{
		"a map": map[string]int{"id": 1}, "of HTTP": map[string]any{"status": 201, "header": map[string]string{}}, "a text": "done",
		"with a code and no message": map[string]any{"code": "OK", "response": []byte{0xff}},
	} {
		_, _, err := idempotency.Do(t.Context(), b.store, idempotency.Key{Scope: b.account, ID: id},
			func(context.Context, pgx.Tx) (any, error) { return result, nil })
		if err != nil {
			t.Fatal(err)
		}
		c.pay(id).isRefusal(t, codes.Internal, "STUCK")
	}
	b.ran(0)
	if n := len(b.reported); n != 4 {
		t.Errorf("reported %s", b.reports())
	}
}

func TestErrorOfTheHandlerRollsBackAndComesBackWhole(t *testing.T) {
	t.Parallel()
	b := setup(t)
	shown, err := status.New(codes.ResourceExhausted, "no more today").WithDetails(&errdetails.QuotaFailure{Violations: []*errdetails.QuotaFailure_Violation{{Subject: "charges"}}})
	if err != nil {
		t.Fatal(err)
	}
	errs := []error{shown.Err(), fmt.Errorf("charging: %w", shown.Err()), errors.New("no status"), fmt.Errorf("asking: %w", context.DeadlineExceeded), nil}
	c := b.protected(idemgrpc.Config{}, b.charging(func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		if err := errors.Join(grpc.SetHeader(ctx, metadata.Pairs("h", "1")), grpc.SetTrailer(ctx, metadata.Pairs("t", "2"))); err != nil {
			t.Error(err)
		}
		err := errs[0]
		errs = errs[1:]
		return &pay.ChargeResponse{Id: 1, Amount: 10}, err
	}))
	for _, want := range []struct {
		code    codes.Code
		message string
		details int
	}{
		{codes.ResourceExhausted, "no more today", 1},
		{codes.ResourceExhausted, "charging: rpc error: code = ResourceExhausted desc = no more today", 1},
		{codes.Unknown, "no status", 0},
		{codes.DeadlineExceeded, "asking: context deadline exceeded", 0},
	} {
		got := c.pay("k")
		got.isStatus(t, want.code, want.message, false)
		if s := status.Convert(got.err); len(s.Details()) != want.details || want.details > 0 && !proto.Equal(s.Details()[0].(proto.Message), shown.Details()[0].(proto.Message)) {
			t.Errorf("details %v", s.Details())
		}
		if got.header.Get("h") == nil || got.trailer.Get("t") == nil {
			t.Errorf("header %v, trailer %v", got.header, got.trailer)
		}
		b.effects(0)
	}
	c.pay("k").is(t, 10, false)
	c.pay("k").is(t, 10, true)
	b.ran(5)
	b.effects(1)
	if b.reports() != "[]" { // the handler's own
		t.Errorf("reported %s", b.reports())
	}
}

func TestFinalStatusIsRecordedAndReplayedWithItsDetails(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	declined, err := status.New(codes.FailedPrecondition, "declined").WithDetails(&errdetails.ErrorInfo{Reason: "FUNDS"}, tenEuros())
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		err     error
		code    codes.Code
		message string
		details int
	}{
		"a status":              {idemgrpc.Final(declined.Err()), codes.FailedPrecondition, "declined", 2},
		"wrapped":               {fmt.Errorf("card: %w", idemgrpc.Final(declined.Err())), codes.FailedPrecondition, "card: rpc error: code = FailedPrecondition desc = declined", 2},
		"of a wrapped one":      {idemgrpc.Final(fmt.Errorf("card: %w", declined.Err())), codes.FailedPrecondition, "card: rpc error: code = FailedPrecondition desc = declined", 2},
		"no status":             {idemgrpc.Final(errors.New("declined")), codes.Unknown, "declined", 0},
		"an error of a context": {idemgrpc.Final(context.DeadlineExceeded), codes.DeadlineExceeded, "context deadline exceeded", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			c := b.protected(idemgrpc.Config{}, b.charging(func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
				err := errors.Join(grpc.SetHeader(ctx, metadata.Pairs("h", "1")), grpc.SetTrailer(ctx, metadata.Pairs("t-bin", "\xff\x00")))
				if err != nil {
					t.Error(err)
				}
				return nil, test.err
			}))
			for i := range 3 {
				got := c.pay("k")
				if s := status.Convert(got.err); s.Code() != test.code || s.Message() != test.message || len(s.Details()) != test.details || got.isReplay() != (i > 0) {
					t.Errorf("got %v with %v, trailer %v", got.err, s.Details(), got.trailer)
				}
				if fmt.Sprint(got.header.Get("h"), got.trailer.Get("t-bin")) != "[1] [\xff\x00]" {
					t.Errorf("header %v, trailer %v", got.header, got.trailer)
				}
				if test.details > 0 {
					same(t, "the detail", status.Convert(got.err).Details()[1].(proto.Message), tenEuros())
				}
			}
			b.ran(1)
			b.effects(1)
		})
	}
	if idemgrpc.Final(nil) != nil {
		t.Error("Final(nil) is an error")
	}
}

// okError is an error whose status is OK, which grpc-go sends as a success without a
// message.
type okError struct{ error }

func (okError) GRPCStatus() *status.Status { return status.New(codes.OK, "") }

func TestResponseThatCannotBeRecordedIsInternalAndNothingIsKept(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	shared.store = shared.storeOn(shared.pool, idempotency.Config{MaxResult: 1000})
	for name, end := range map[string]handler{
		"too large": func(context.Context, *pay.ChargeRequest) (*pay.ChargeResponse, error) {
			return &pay.ChargeResponse{Labels: map[string]string{"a": strings.Repeat("a", 1000)}}, nil
		},
		"a trailer too large": func(ctx context.Context, _ *pay.ChargeRequest) (*pay.ChargeResponse, error) {
			return &pay.ChargeResponse{}, grpc.SetTrailer(ctx, metadata.Pairs("a", strings.Repeat("a", 1000)))
		},
		"no UTF-8": func(context.Context, *pay.ChargeRequest) (*pay.ChargeResponse, error) {
			return &pay.ChargeResponse{Labels: map[string]string{"a": "\xff"}}, nil
		},
		"a final OK": func(context.Context, *pay.ChargeRequest) (*pay.ChargeResponse, error) {
			return nil, idemgrpc.Final(okError{errors.New("x")})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			c := b.protected(idemgrpc.Config{}, b.charging(end))
			c.pay("k").isRefusal(t, codes.Internal, "UNRECORDABLE")
			b.effects(0)
			if b.reports() == "[]" {
				t.Error("nothing was reported")
			}
		})
	}
}

func TestResponseOfAnInterceptorThatIsNoMessageIsInternal(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, response := range []any{nil, "text"} {
		inside := func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			_, err := handler(ctx, request)
			return response, err
		}
		c := b.serve(b.charge, []grpc.UnaryServerInterceptor{b.interceptor(idemgrpc.Config{}).Unary, inside})
		c.pay("k").isRefusal(t, codes.Internal, "UNRECORDABLE")
	}
	b.effects(0)
}

func TestEqualResponsesAreRecordedAsEqualBytes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemgrpc.Config{}, func(context.Context, *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		return &pay.ChargeResponse{Id: 1, Amount: 10, Labels: map[string]string{"a": "1", "b": "2", "c": "3", "d": "4"}}, nil
	})
	stored := map[string]bool{}
	for i := range 20 {
		id := fmt.Sprint(i)
		c.pay(id).is(t, 10, false)
		r, err := b.store.Get(t.Context(), idempotency.Key{Scope: b.account, ID: id})
		if err != nil || !strings.Contains(string(r.Result), `"code":"OK"`) {
			t.Fatal(string(r.Result), err)
		}
		stored[string(r.Result)] = true
	}
	if len(stored) != 1 {
		t.Errorf("%d different records of equal responses", len(stored))
	}
}

func TestMethodsThatAreNotConfiguredPassThrough(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemgrpc.Config{}, func(ctx context.Context, _ *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		if idemgrpc.Tx(ctx) != nil {
			t.Error("a transaction")
		}
		return &pay.ChargeResponse{Id: 1}, nil
	})
	for range 2 {
		if _, err := c.Refund(t.Context(), tenEuros()); err != nil {
			t.Error(err)
		}
	}
}

func TestInterceptorInsideAnotherPassesThrough(t *testing.T) {
	t.Parallel()
	b := setup(t)
	i := b.interceptor(idemgrpc.Config{})
	c := b.serve(b.charge, []grpc.UnaryServerInterceptor{i.Unary, i.Unary})
	c.pay("k").is(t, 10, false)
	c.pay("k").is(t, 10, true)
	b.ran(1)
}

func TestScopeCanAnswerWithAStatusOfItsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	fail := status.Error(codes.Unauthenticated, "who are you?")
	c := b.protected(idemgrpc.Config{Scope: func(_ context.Context, method string) (string, error) {
		if method != pay.Payments_Charge_FullMethodName {
			t.Error(method)
		}
		return "a", fail
	}}, b.charge)
	c.pay("k").isStatus(t, codes.Unauthenticated, "who are you?", false)
	if b.reports() != "[]" {
		t.Errorf("reported %s", b.reports())
	}
	fail = errors.New("the table of accounts is gone")
	a := c.pay("k")
	a.isRefusal(t, codes.Internal, "FAILED")
	if !strings.Contains(b.reports(), "gone") || strings.Contains(a.err.Error(), "gone") {
		t.Errorf("reported %s, answered %v", b.reports(), a.err)
	}
	b.ran(0)
}

// request_id is where AIP-155 has the key.
func requestID(_ context.Context, request proto.Message) (string, error) {
	r, ok := request.(interface{ GetRequestId() string })
	if !ok {
		return "", fmt.Errorf("%T has no request_id", request)
	}
	if r.GetRequestId() == "bad" {
		return "", errors.New("request_id is bad")
	}
	return r.GetRequestId(), nil
}

func TestRequestIDOfTheMessageCanBeTheKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemgrpc.Config{Key: requestID}, b.charge)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "account", "a", idemgrpc.MetadataKey, "not asked for")
	request := func(id string) *pay.ChargeRequest { return &pay.ChargeRequest{Amount: 10, RequestId: id} }
	c.send(ctx, request("r1")).is(t, 10, false)
	c.send(ctx, request("r1")).is(t, 10, true)
	c.send(ctx, request("r2")).is(t, 10, false)
	c.send(ctx, request("")).isRefusal(t, codes.InvalidArgument, "KEY_MISSING")
	c.send(ctx, request("a\x00b")).isRefusal(t, codes.InvalidArgument, "KEY_INVALID")
	bad := c.send(ctx, request("bad"))
	bad.isRefusal(t, codes.InvalidArgument, "KEY_INVALID")
	if !strings.Contains(bad.err.Error(), "request_id is bad") {
		t.Errorf("got %v", bad.err)
	}
	b.ran(2)
}

func TestNewRefusesWhatWouldNotBeProtected(t *testing.T) {
	t.Parallel()
	b := setup(t)
	charge := []string{pay.Payments_Charge_FullMethodName}
	for want, cfg := range map[string]idemgrpc.Config{
		"Config.Scope is nil":     {Methods: charge},
		"Config.Methods is empty": {Scope: account},
		`Config.Methods has "/pay.v1.Payments/Charg", which is no meth`: {Scope: account, Methods: []string{charge[0], "/pay.v1.Payments/Charg"}},
		`Config.Methods has "/pay.v1.Payments/Watch", which streams`:    {Scope: account, Methods: []string{pay.Payments_Watch_FullMethodName}},
		`Config.Methods has "/pay.v1.Payments/Upload", which streams`:   {Scope: account, Methods: []string{pay.Payments_Upload_FullMethodName}},
		`Config.Methods has "", which is no method`:                     {Scope: account, Methods: []string{""}},
		// Names that are found, and that no call has.
		`Config.Methods has "pay.v1.Payments/Charge", which is no`:  {Scope: account, Methods: []string{"pay.v1.Payments/Charge"}},
		`Config.Methods has "/pay.v1/Payments.Charge", which is no`: {Scope: account, Methods: []string{"/pay.v1/Payments.Charge"}},
		`Config.Methods has "/pay.v1.Payments", which is no`:        {Scope: account, Methods: []string{"/pay.v1.Payments"}},
		`Config.Methods has "/pay.v1/ChargeRequest", which is no`:   {Scope: account, Methods: []string{"/pay.v1/ChargeRequest"}},
	} {
		if i, err := idemgrpc.New(b.store, cfg); i != nil || err == nil || !strings.HasPrefix(err.Error(), "idemgrpc: "+want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if _, err := idemgrpc.New(nil, idemgrpc.Config{Scope: account, Methods: charge}); err == nil || err.Error() != "idemgrpc: store is nil" {
		t.Errorf("got %v", err)
	}
}

func TestParallelDuplicatesExecuteOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	one := b.protected(idemgrpc.Config{}, b.charge)
	b.store = b.storeOn(b.pool, idempotency.Config{}) // as another process has it
	two := b.protected(idemgrpc.Config{}, b.charge)
	var wg sync.WaitGroup
	var first atomic.Int64
	var ids sync.Map
	for range 25 {
		for _, c := range []*client{one, two} {
			wg.Go(func() {
				a := c.pay("k")
				if a.err != nil {
					t.Error(a.err)
				}
				if !a.isReplay() {
					first.Add(1)
				}
				ids.Store(a.GetId(), true)
			})
		}
	}
	wg.Wait()
	n := 0
	ids.Range(func(any, any) bool { n++; return true })
	if n != 1 || first.Load() != 1 {
		t.Errorf("%d answers, %d of them no replay", n, first.Load())
	}
	b.ran(1)
	b.effects(1)
}

func TestPanicLeavesNothingAndReachesTheServer(t *testing.T) {
	t.Parallel()
	b := setup(t)
	recovers := func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (response any, err error) {
		defer func() {
			if p := recover(); p != nil {
				err = status.Error(codes.Internal, fmt.Sprint("recovered: ", p))
			}
		}()
		return handler(ctx, request)
	}
	var left context.Context
	c := b.serve(b.charging(func(ctx context.Context, _ *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		if b.runs.Load() == 1 {
			left = ctx
			panic("boom")
		}
		return &pay.ChargeResponse{Id: 1, Amount: 10}, nil
	}), []grpc.UnaryServerInterceptor{recovers, b.interceptor(idemgrpc.Config{}).Unary})
	c.pay("k").isStatus(t, codes.Internal, "recovered: boom", false)
	b.effects(0)
	if _, err := idemgrpc.Tx(left).Exec(t.Context(), "select 1"); !errors.Is(err, pgx.ErrTxClosed) {
		t.Errorf("after a panic, the transaction says %v", err)
	}
	if grpc.SetHeader(left, metadata.Pairs("a", "b")) == nil || grpc.SetTrailer(left, metadata.Pairs("a", "b")) == nil || grpc.SendHeader(left, nil) == nil {
		t.Error("after a panic, the header and the trailer can be set")
	}
	c.pay("k").is(t, 10, false)
	b.effects(1)
}

// limited is an interceptor that gives a call the deadline in its metadata. It is the
// server's and not the client's, so that the answer comes when the call has ended there.
func limited(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	limit, err := time.ParseDuration(strings.Join(metadata.ValueFromIncomingContext(ctx, "limit"), ""))
	if err != nil {
		return handler(ctx, request)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return handler(ctx, request)
}

// beyondItsDeadline calls a handler that waits for the end of its context, with a
// deadline, until one was long enough for the handler to be run.
func (c *client) beyondItsDeadline(key string) (a answer) {
	c.Helper()
	for limit := 50 * time.Millisecond; c.runs.Load() == 0; limit *= 2 {
		a = c.send(metadata.AppendToOutgoingContext(c.with(key), "limit", limit.String()), tenEuros())
	}
	return a
}

func waitWhereAsked(ctx context.Context) error {
	if len(metadata.ValueFromIncomingContext(ctx, "limit")) == 0 {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func TestHandlerThatSeesItsDeadlineLeavesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.serve(func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		response, err := b.charge(context.WithoutCancel(ctx), r)
		return response, errors.Join(err, waitWhereAsked(ctx))
	}, []grpc.UnaryServerInterceptor{limited, b.interceptor(idemgrpc.Config{}).Unary})
	a := c.beyondItsDeadline("k")
	a.isStatus(t, codes.DeadlineExceeded, "context deadline exceeded", false)
	c.pay("k").is(t, 10, false)
	b.ran(2)
	b.effects(1)
}

func TestNilIsRecordedAlsoWhenTheContextHasEnded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.serve(func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		response, err := b.charge(context.WithoutCancel(ctx), r)
		_ = waitWhereAsked(ctx)
		return response, err
	}, []grpc.UnaryServerInterceptor{limited, b.interceptor(idemgrpc.Config{}).Unary})
	c.beyondItsDeadline("k").is(t, 10, false)
	c.pay("k").is(t, 10, true)
	b.ran(1)
	b.effects(1)
}

// The deadline of a client is that of the handler's context.
func TestDeadlineOfTheClientReachesTheHandler(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemgrpc.Config{}, func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		if end, is := ctx.Deadline(); !is || time.Until(end) > time.Minute {
			t.Errorf("the deadline is %v, %v", end, is)
		}
		return b.charge(ctx, r)
	})
	ctx, cancel := context.WithTimeout(c.with("k"), time.Minute)
	defer cancel()
	c.send(ctx, tenEuros()).is(t, 10, false)
}

func TestContextThatEndsBeforeTheHandlerIsTheClientsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	running, finish, answers := make(chan bool), make(chan bool), make(chan error, 1)
	watch := func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		duplicate := metadata.ValueFromIncomingContext(ctx, "duplicate")
		if len(duplicate) == 0 {
			return handler(ctx, request)
		}
		if duplicate[0] == "limited" { // by the server, so that nothing cancels first
			limited, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			defer cancel()
			ctx = limited
		}
		response, err := handler(ctx, request)
		answers <- err
		finish <- true
		return response, err
	}
	c := b.serve(func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		running <- true
		<-finish
		<-finish
		return b.charge(ctx, r)
	}, []grpc.UnaryServerInterceptor{watch, b.interceptor(idemgrpc.Config{}).Unary})
	first := make(chan answer)
	go func() { first <- c.pay("k") }()
	<-running
	for duplicate, code := range map[string]codes.Code{"limited": codes.DeadlineExceeded, "cancelled": codes.Canceled} {
		ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(c.with("k"), "duplicate", duplicate))
		if duplicate == "cancelled" {
			time.AfterFunc(50*time.Millisecond, cancel)
		}
		if a := c.send(ctx, tenEuros()); status.Code(a.err) != code {
			t.Errorf("the client got %v", a.err)
		}
		cancel()
		if err := <-answers; status.Code(err) != code {
			t.Errorf("the server has answered %v, want %v", err, code)
		}
	}
	a := <-first
	a.is(t, 10, false)
	b.ran(1)
	if n := len(b.reported); n != 1 || !errors.Is(b.reported[0], context.DeadlineExceeded) {
		t.Errorf("reported %s, want the deadline alone", b.reports())
	}
}

func TestTransactionIsTheHandlersOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemgrpc.Config{}, b.charging(func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		tx := idemgrpc.Tx(ctx)
		if tx.Commit(ctx) == nil || tx.Rollback(ctx) == nil {
			t.Error("the handler has ended its transaction")
		}
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { // a savepoint is its own
			_, err := tx.Exec(ctx, `insert into charges (account, amount) values ($1, 1)`, b.account)
			return errors.Join(err, errors.New("undone"))
		})
		if err == nil {
			t.Error("the savepoint was kept")
		}
		return &pay.ChargeResponse{Id: 1, Amount: 10}, nil
	}))
	if idemgrpc.Tx(t.Context()) != nil {
		t.Error("a transaction where there is no call")
	}
	c.pay("k").is(t, 10, false)
	b.effects(1)
}
