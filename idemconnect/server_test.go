package idemconnect_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemconnect"
	"github.com/pgidem/idempotency/idemconnect/internal/pay"
	"github.com/pgidem/idempotency/idemconnect/internal/pay/payconnect"
	"github.com/pgidem/idempotency/internal/transport"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

var discardLog = log.New(io.Discard, "", 0)

// unknown is a field that no message of the tests has.
var unknown = protowire.AppendString(protowire.AppendTag(nil, 1000, protowire.BytesType), "from a later release\xff")

func TestRetryGetsTheResponseOfTheFirst(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
		c := b.protected(idemconnect.Config{}, func(ctx context.Context, r *request) (*response, error) {
			response, err := b.charge(ctx, r)
			response.Msg.ProtoReflect().SetUnknown(unknown)
			return response, err
		}, protocol)
		first := c.pay("k")
		first.is(t, 10, false)
		for range 2 {
			again := c.pay("k")
			again.is(t, 10, true)
			if !proto.Equal(again.ChargeResponse, first.ChargeResponse) {
				t.Errorf("the replay is %v, and the first response was %v", again.ChargeResponse, first.ChargeResponse)
			}
		}
		if !strings.HasSuffix(t.Name(), "JSON") && string(first.ProtoReflect().GetUnknown()) != string(unknown) {
			t.Error("the unknown field is lost")
		}
		b.ran(1)
		b.effects(1)
		if b.reports() != "[]" {
			t.Errorf("reported %s", b.reports())
		}
	})
}

// The record has the message, and not what one protocol has made of it.
func TestRetryInAnotherProtocolIsTheSameCall(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemconnect.Config{}, func(ctx context.Context, r *request) (*response, error) {
		response, err := b.charge(ctx, r)
		response.Header().Set("X-Bin", connect.EncodeBinaryHeader([]byte("\xff\x00")))
		return response, err
	})
	first := c.pay("k")
	first.is(t, 10, false)
	for name, options := range protocols {
		again := &client{payconnect.NewPaymentsClient(c.server.Client(), c.server.URL, options...), b, c.server}
		a := again.pay("k")
		a.is(t, 10, true)
		if value, err := connect.DecodeBinaryHeader(a.header.Get("X-Bin")); string(value) != "\xff\x00" || err != nil || a.GetId() != first.GetId() {
			t.Errorf("%s: got %v, header %v", name, a.ChargeResponse, a.header)
		}
	}
	b.ran(1)
}

func TestCallsAreRefusedWithCodeReasonAndRetry(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
		c := b.protected(idemconnect.Config{}, b.charge, protocol)
		c.pay("k").is(t, 10, false)
		other := &pay.ChargeRequest{Account: "a", Amount: 11}
		c.send(t.Context(), b.request(other, "k")).isRefusal(t, connect.CodeFailedPrecondition, "KEY_REUSED")
		c.send(t.Context(), b.request(tenEuros())).isRefusal(t, connect.CodeInvalidArgument, "KEY_MISSING")
		c.pay("").isRefusal(t, connect.CodeInvalidArgument, "KEY_MISSING")
		c.send(t.Context(), b.request(tenEuros(), "k1", "k2")).isRefusal(t, connect.CodeInvalidArgument, "KEY_INVALID")
		long := c.pay(strings.Repeat("k", 256))
		long.isRefusal(t, connect.CodeInvalidArgument, "KEY_INVALID")
		if !strings.Contains(long.err.Error(), "256 bytes, more than 255") {
			t.Errorf("got %v", long.err)
		}
		c.pay(`"k"`).is(t, 10, true)
		b.account = ""
		c.pay("k").isRefusal(t, connect.CodePermissionDenied, "NO_SCOPE")
		b.account = strings.Repeat("a", 256)
		c.pay("k").isRefusal(t, connect.CodeInvalidArgument, "SCOPE_INVALID")
		b.ran(1)
		if b.reports() != "[]" {
			t.Errorf("reported %s", b.reports())
		}
	})
}

func TestDuplicateInFlightIsAbortedAfterWait(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
		b.store = b.storeOn(b.pool, idempotency.Config{Wait: -1})
		running, finish := make(chan bool), make(chan bool)
		c := b.protected(idemconnect.Config{}, func(ctx context.Context, r *request) (*response, error) {
			running <- true
			<-finish
			return b.charge(ctx, r)
		}, protocol)
		first := make(chan answer)
		go func() { first <- c.pay("k") }()
		<-running
		refused := c.pay("k")
		refused.isRefusal(t, connect.CodeAborted, "IN_PROGRESS")
		if isHTTP := strings.Contains(t.Name(), "/Connect"); isHTTP != (refused.trailer.Get("Retry-After") == "1") || isHTTP == (refused.trailer.Get("Grpc-Retry-Pushback-Ms") == "1000") {
			t.Errorf("the metadata is %v", refused.trailer)
		}
		close(finish)
		a := <-first
		a.is(t, 10, false)
		c.pay("k").is(t, 10, true)
		b.ran(1)
	})
}

func TestUnreachableStoreIsUnavailableAndTheHandlerIsNotRun(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
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
		b.protected(idemconnect.Config{}, b.charge, protocol).pay("k").isRefusal(t, connect.CodeUnavailable, "UNAVAILABLE")
		b.ran(0)
		if !strings.Contains(b.reports(), "connect") {
			t.Errorf("reported %s", b.reports())
		}
	})
}

// Where the handler has not run, nothing but the database can have failed.
func TestStoreWithoutItsTableIsUnavailableAndTheHandlerIsNotRun(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if _, err := b.pool.Exec(t.Context(), "drop table idempotency_keys"); err != nil {
		t.Fatal(err)
	}
	b.protected(idemconnect.Config{}, b.charge).pay("k").isRefusal(t, connect.CodeUnavailable, "UNAVAILABLE")
	b.ran(0)
}

func TestUnknownOutcomeIsUnavailableAndNeverASecondExecution(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
		// The end of the context does not hide that nobody knows what became of the call.
		var end context.CancelFunc
		limit := connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
			return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
				ctx, end = context.WithCancel(ctx)
				defer end()
				return next(ctx, r)
			}
		})
		c := b.serve(b.charging(func(ctx context.Context, r *request) (*response, error) {
			// The transaction is gone, and nobody can say what became of the key.
			if _, err := idemconnect.Tx(ctx).Exec(ctx, "commit"); err != nil {
				t.Error(err)
			}
			end()
			return done(ctx, r)
		}), []connect.Interceptor{limit, b.interceptor(idemconnect.Config{})}, protocol)
		c.pay("k").isRefusal(t, connect.CodeUnavailable, "OUTCOME_UNKNOWN")
		for range 2 {
			c.pay("k").isRefusal(t, connect.CodeInternal, "STUCK")
		}
		b.ran(1)
		b.effects(1)
	})
}

func TestRecordOfAnotherKindIsNeverASecondExecutionAndNotTheClientsFault(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemconnect.Config{Fingerprint: func(connect.AnyRequest) idempotency.Fingerprint { return idempotency.Fingerprint{} }}, b.charge)
	for id, result := range map[string]any{
		"a map": map[string]int{"id": 1}, "of HTTP": map[string]any{"status": 201, "header": map[string]string{}},
		"with a code and no message": map[string]any{"code": "OK", "response": []byte{0xff}},
	} {
		_, _, err := idempotency.Do(t.Context(), b.store, idempotency.Key{Scope: b.account, ID: id},
			func(context.Context, pgx.Tx) (any, error) { return result, nil })
		if err != nil {
			t.Fatal(err)
		}
		c.pay(id).isRefusal(t, connect.CodeInternal, "STUCK")
	}
	b.ran(0)
	if n := len(b.reported); n != 3 {
		t.Errorf("reported %s", b.reports())
	}
}

// A record of idemgrpc has names in lower case, and values that are bytes.
func TestRecordIsTheSameAsThatOfIdemgrpc(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
		none := idemconnect.Config{Fingerprint: func(connect.AnyRequest) idempotency.Fingerprint { return idempotency.Fingerprint{} }}
		c := b.protected(none, func(ctx context.Context, r *request) (*response, error) {
			sets(t, ctx)
			response, err := b.charge(ctx, r)
			response.Trailer().Set("T-Bin", connect.EncodeBinaryHeader([]byte("\xff\x00")))
			return response, err
		}, protocol)
		c.pay("ours").is(t, 10, false)
		ours, err := b.store.Get(t.Context(), idempotency.Key{Scope: b.account, ID: "ours"})
		if err != nil {
			t.Fatal(err)
		}
		var stored transport.Record
		if err := stored.UnmarshalJSON(ours.Result); err != nil || stored.Code != "OK" ||
			string(stored.Header["info-header"][0]) != "2" || string(stored.Trailer["info-trailer"][0]) != "3" || string(stored.Trailer["t-bin"][0]) != "\xff\x00" {
			t.Errorf("stored %s, %v", ours.Result, err)
		}
		_, _, err = idempotency.Do(t.Context(), b.store, idempotency.Key{Scope: b.account, ID: "theirs"},
			func(context.Context, pgx.Tx) (transport.Record, error) { return stored, nil })
		if err != nil {
			t.Fatal(err)
		}
		a := c.pay("theirs")
		a.is(t, 10, true)
		if value, err := connect.DecodeBinaryHeader(a.trailer.Get("T-Bin")); a.header.Get("Info-Header") != "2" || string(value) != "\xff\x00" || err != nil {
			t.Errorf("header %v, trailer %v", a.header, a.trailer)
		}
		b.ran(1)
	})
}

// withDetail is an error as handlers make it, with a detail and metadata.
func withDetail() *connect.Error {
	e := connect.NewError(connect.CodeResourceExhausted, errors.New("no more today"))
	detail, err := connect.NewErrorDetail(&errdetails.QuotaFailure{Violations: []*errdetails.QuotaFailure_Violation{{Subject: "charges"}}})
	if err != nil {
		panic(err)
	}
	e.AddDetail(detail)
	e.Meta().Set("Meta", "1")
	e.Meta().Set("Meta-Bin", connect.EncodeBinaryHeader([]byte("\xff\x00")))
	return e
}

func (a answer) hasDetailAndMetadata(t testing.TB) {
	t.Helper()
	e, _ := errors.AsType[*connect.Error](a.err)
	want := &errdetails.QuotaFailure{Violations: []*errdetails.QuotaFailure_Violation{{Subject: "charges"}}}
	if len(e.Details()) != 1 || !proto.Equal(valueOf(t, e.Details()[0]), want) {
		t.Errorf("details %v", e.Details())
	}
	binary, err := connect.DecodeBinaryHeader(a.trailer.Get("Meta-Bin"))
	if a.trailer.Get("Meta") != "1" || string(binary) != "\xff\x00" || err != nil || a.trailer.Get("Info-Header") != "2" || a.trailer.Get("Info-Trailer") != "3" {
		t.Errorf("metadata %v", a.trailer)
	}
}

// sets sets the header and the trailer of the call's CallInfo.
func sets(t testing.TB, ctx context.Context) {
	info, ok := connect.CallInfoForHandlerContext(ctx)
	if !ok {
		t.Error("no CallInfo")
		return
	}
	info.ResponseHeader().Set("Info-Header", "2")
	info.ResponseTrailer().Set("Info-Trailer", "3")
}

func TestErrorOfTheHandlerRollsBackAndComesBackWhole(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
		c := b.protected(idemconnect.Config{}, b.charging(func(ctx context.Context, r *request) (*response, error) {
			switch b.runs.Load() {
			case 1:
				sets(t, ctx)
				return nil, withDetail()
			case 2:
				return nil, errors.New("no code")
			case 3: // a mark that is not ours
				err := connect.NewError(connect.CodeUnknown, errors.New("no code"))
				err.Meta().Set("Idempotent-Replayed", "true")
				return nil, err
			}
			return done(ctx, r)
		}), protocol)
		a := c.pay("k")
		a.isError(t, connect.CodeResourceExhausted, "no more today", false)
		a.hasDetailAndMetadata(t)
		b.effects(0)
		for range 2 {
			c.pay("k").isError(t, connect.CodeUnknown, "no code", false)
			b.effects(0)
		}
		c.pay("k").is(t, 10, false)
		c.pay("k").is(t, 10, true)
		b.ran(4)
		b.effects(1)
		if b.reports() != "[]" { // the handler's own
			t.Errorf("reported %s", b.reports())
		}
	})
}

func TestFinalErrorIsRecordedAndReplayedWithItsDetails(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
		c := b.protected(idemconnect.Config{}, b.charging(func(ctx context.Context, _ *request) (*response, error) {
			sets(t, ctx)
			return nil, fmt.Errorf("charging: %w", idemconnect.Final(withDetail()))
		}), protocol)
		for i := range 3 {
			a := c.pay("k")
			a.isError(t, connect.CodeResourceExhausted, "no more today", i > 0)
			a.hasDetailAndMetadata(t)
		}
		b.ran(1)
		b.effects(1)
	})
}

func TestFinalErrorOfAnyKindIsReplayedAsItWasSent(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	var typedNil *connect.Error
	for name, test := range map[string]struct {
		err     error
		code    connect.Code
		message string
	}{
		"no code":             {errors.New("declined"), connect.CodeUnknown, "declined"},
		"a deadline":          {fmt.Errorf("asking: %w", context.DeadlineExceeded), connect.CodeDeadlineExceeded, "asking: context deadline exceeded"},
		"a cancelled context": {context.Canceled, connect.CodeCanceled, "context canceled"},
		"without a message":   {connect.NewError(connect.CodeNotFound, nil), connect.CodeNotFound, ""},
		"wrapped":             {fmt.Errorf("card: %w", connect.NewError(connect.CodeNotFound, errors.New("no card"))), connect.CodeNotFound, "no card"},
		"joined with a nil":   {errors.Join(errors.New("declined"), wrapped{typedNil}), connect.CodeUnknown, "declined\nwrapped"},
	} {
		for protocol, options := range protocols {
			t.Run(name+" in "+protocol, func(t *testing.T) {
				t.Parallel()
				b := shared.sub(t)
				c := b.protected(idemconnect.Config{}, b.charging(func(context.Context, *request) (*response, error) {
					return nil, idemconnect.Final(test.err)
				}), options...)
				c.pay("k").isError(t, test.code, test.message, false)
				c.pay("k").isError(t, test.code, test.message, true)
				b.ran(1)
			})
		}
	}
	if idemconnect.Final(nil) != nil {
		t.Error("Final(nil) is an error")
	}
}

// wrapped has an error inside that it does not print.
type wrapped struct{ err error }

func (wrapped) Error() string   { return "wrapped" }
func (w wrapped) Unwrap() error { return w.err }

// An error of another server is sent on without its metadata.
func TestFinalErrorOfAClientOfOnesOwnIsReplayedAsItWasSent(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
		behind := b.serve(func(context.Context, *request) (*response, error) { return nil, withDetail() }, nil, protocol)
		c := b.protected(idemconnect.Config{}, func(ctx context.Context, r *request) (*response, error) {
			b.runs.Add(1)
			_, err := behind.Charge(ctx, connect.NewRequest(r.Msg))
			return nil, idemconnect.Final(err)
		}, protocol)
		for i := range 2 {
			a := c.pay("k")
			e := a.isError(t, connect.CodeResourceExhausted, "no more today", i > 0)
			if len(e.Details()) != 1 || a.trailer.Get("Meta") != "" {
				t.Errorf("details %v, metadata %v", e.Details(), a.trailer)
			}
		}
		b.ran(1)
	})
}

func TestHeaderAndTrailerOfTheLastRunAreSentAfterTheCommitAndReplayed(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
		outside := connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
			return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
				info, _ := connect.CallInfoForHandlerContext(ctx)
				info.ResponseHeader().Set("Outer", "mine")
				info.ResponseHeader()["Replaced"] = []string{"mine", "too"}
				info.ResponseTrailer().Set("Both", "mine")
				info.ResponseTrailer().Set("Deleted", "mine")
				return next(ctx, r)
			}
		})
		c := b.serve(b.charging(func(ctx context.Context, r *request) (*response, error) {
			// What an earlier run has changed and set must not be seen.
			if r.Msg.Amount != 10 || len(r.Msg.Labels) > 0 || r.Header().Get("Seen") != "" || r.Header().Get("Account") == "" {
				t.Errorf("run %d has got %v, header %v", b.runs.Load(), r.Msg, r.Header())
			}
			r.Msg.Amount, r.Msg.Labels = 99, map[string]string{"seen": "yes"}
			r.Header().Set("Seen", "yes")
			r.Header().Del("Account")
			info, _ := connect.CallInfoForHandlerContext(ctx)
			run := fmt.Sprint(b.runs.Load())
			info.ResponseHeader().Add("Info", run)
			info.ResponseHeader().Set("Replaced", run)
			info.ResponseHeader().Set("Idempotent-Replayed", "true")
			info.ResponseTrailer().Add("Both", run)
			info.ResponseTrailer().Del("Deleted")
			response, err := done(ctx, r)
			response.Header().Set("Own", run)
			response.Header().Set("Idempotent-Replayed", "true")
			response.Trailer().Set("Own-Trailer", run)
			response.Trailer().Set("Idempotent-Replayed", "true")
			if b.runs.Load() == 1 {
				return nil, connect.NewError(connect.CodeInternal, raise(ctx, idemconnect.Tx(ctx), "40001"))
			}
			return response, err
		}), []connect.Interceptor{outside, b.interceptor(idemconnect.Config{})}, protocol)
		for i := range 3 {
			a := c.pay("k")
			a.is(t, 10, i > 0)
			for name, want := range map[string]string{"Outer": "mine", "Replaced": "2", "Info": "2", "Own": "2"} {
				if got := strings.Join(a.header[name], ","); got != want {
					t.Errorf("header %s is %q, want %q", name, got, want)
				}
			}
			for name, want := range map[string]string{"Both": "mine,2", "Deleted": "", "Own-Trailer": "2"} {
				if got := strings.Join(a.trailer[name], ","); got != want {
					t.Errorf("trailer %s is %q, want %q", name, got, want)
				}
			}
		}
		b.ran(2)
		b.effects(1)
	})
}

func TestWhatTheHandlerHasSetIsNotSentWithARefusal(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
		c := b.protected(idemconnect.Config{}, b.charging(func(ctx context.Context, r *request) (*response, error) {
			sets(t, ctx)
			_, _ = idemconnect.Tx(ctx).Exec(ctx, "select 1/0") // swallowed
			return done(ctx, r)
		}), protocol)
		for range 2 {
			a := c.pay("k")
			a.isRefusal(t, connect.CodeInternal, "FAILED")
			if a.trailer.Get("Info-Header") != "" || a.trailer.Get("Info-Trailer") != "" {
				t.Errorf("metadata %v", a.trailer)
			}
		}
		b.ran(2)
		b.effects(0)
		if !strings.Contains(b.reports(), "22012") {
			t.Errorf("reported %s", b.reports())
		}
	})
}

func TestInterceptorInFrontSeesTheMessageOfAReplayInItsOwnType(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var seen []string
	inFront := connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
			response, err := next(ctx, r)
			if err == nil {
				seen = append(seen, fmt.Sprint(response.Any().(*pay.ChargeResponse).GetId(), response.Header()["Own"], response.Trailer()["Idempotent-Replayed"]))
			}
			return response, err
		}
	})
	c := b.serve(func(ctx context.Context, r *request) (*response, error) {
		response, err := b.charge(ctx, r)
		response.Header().Set("Own", "1")
		return response, err
	}, []connect.Interceptor{inFront, b.interceptor(idemconnect.Config{})})
	a := c.pay("k")
	a.is(t, 10, false)
	c.pay("k").is(t, 10, true)
	if !slices.Equal(seen, []string{fmt.Sprint(a.GetId(), " [1] []"), fmt.Sprint(a.GetId(), " [1] [true]")}) {
		t.Errorf("seen %v", seen)
	}
}

func TestSchemaSaysWhichMethodsNeedAKey(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
		protected := func(ctx context.Context, r *request) (*response, error) {
			b.runs.Add(1)
			return connect.NewResponse(&pay.ChargeResponse{Id: b.runs.Load(), Amount: map[bool]int64{true: 10, false: 20}[idemconnect.Tx(ctx) != nil]}), nil
		}
		c := b.protected(idemconnect.Config{}, protected, protocol)
		call := func(method func(context.Context, *request) (*response, error), keys ...string) answer {
			return answerOf(method(t.Context(), b.request(tenEuros(), keys...)))
		}
		call(c.Get).is(t, 20, false)
		call(c.Get, "get").is(t, 20, false)
		call(c.Get, "get").is(t, 20, false)
		call(c.Cancel).is(t, 20, false)
		call(c.Cancel, "cancel").is(t, 10, false)
		call(c.Cancel, "cancel").is(t, 10, true)
		call(c.Charge).isRefusal(t, connect.CodeInvalidArgument, "KEY_MISSING")
		call(c.Charge, "charge").is(t, 10, false)
		call(c.Refund, "charge").isRefusal(t, connect.CodeFailedPrecondition, "KEY_REUSED")
		stream, err := c.Watch(t.Context(), b.request(tenEuros()))
		if err != nil || !stream.Receive() || stream.Msg().GetAmount() != 20 {
			t.Errorf("a stream has got %v, %v", stream.Msg(), err)
		}
		stream.Close()

		c = b.protected(idemconnect.Config{Methods: []string{payconnect.PaymentsRefundProcedure, payconnect.PaymentsCancelProcedure}}, protected, protocol)
		call(c.Charge).is(t, 20, false)
		call(c.Charge, "c2").is(t, 20, false)
		call(c.Cancel).isRefusal(t, connect.CodeInvalidArgument, "KEY_MISSING")
		call(c.Refund, "r2").is(t, 10, false)
		call(c.Refund, "r2").is(t, 10, true)

		c = b.protected(idemconnect.Config{Key: requestID}, protected, protocol)
		call(c.Cancel, "cancel").is(t, 20, false) // Header is not where the key is
		if n := len(b.reported); n != 0 {
			t.Errorf("reported %s", b.reports())
		}
	})
}

// requestID is where AIP-155 has the key.
func requestID(_ context.Context, r connect.AnyRequest) (string, error) {
	message, ok := r.Any().(interface{ GetRequestId() string })
	if !ok {
		return "", fmt.Errorf("%T has no request_id", r.Any())
	}
	return message.GetRequestId(), nil
}

func TestRequestIDOfTheMessageCanBeTheKey(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
		c := b.protected(idemconnect.Config{Key: requestID}, b.charge, protocol)
		send := func(id string) answer {
			return c.send(t.Context(), b.request(&pay.ChargeRequest{Amount: 10, RequestId: id}, "not asked for"))
		}
		send("r1").is(t, 10, false)
		send("r1").is(t, 10, true)
		send("r2").is(t, 10, false)
		send("").isRefusal(t, connect.CodeInvalidArgument, "KEY_MISSING")
		send("a\x00b").isRefusal(t, connect.CodeInvalidArgument, "KEY_INVALID")
		b.ran(2)
	})
}

func TestScopeCanAnswerWithAnErrorOfItsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var fail error = connect.NewError(connect.CodeUnauthenticated, errors.New("who are you?"))
	c := b.protected(idemconnect.Config{Scope: func(context.Context, connect.AnyRequest) (string, error) { return "a", fail }}, b.charge)
	c.pay("k").isError(t, connect.CodeUnauthenticated, "who are you?", false)
	if b.reports() != "[]" {
		t.Errorf("reported %s", b.reports())
	}
	fail = errors.New("the table of accounts is gone")
	a := c.pay("k")
	a.isRefusal(t, connect.CodeInternal, "FAILED")
	if !strings.Contains(b.reports(), "gone") || strings.Contains(a.err.Error(), "gone") {
		t.Errorf("reported %s, answered %v", b.reports(), a.err)
	}
	b.ran(0)
}

func TestResponseThatCannotBeRecordedIsInternalAndNothingIsKept(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	shared.store = shared.storeOn(shared.pool, idempotency.Config{MaxResult: 1000})
	for name, end := range map[string]handler{
		"too large": func(context.Context, *request) (*response, error) {
			return connect.NewResponse(&pay.ChargeResponse{Labels: map[string]string{"a": strings.Repeat("a", 1000)}}), nil
		},
		"no UTF-8": func(context.Context, *request) (*response, error) {
			return connect.NewResponse(&pay.ChargeResponse{Labels: map[string]string{"a": "\xff"}}), nil
		},
		"a binary header in the clear": func(ctx context.Context, r *request) (*response, error) {
			response, err := done(ctx, r)
			response.Header().Set("A-Bin", "no base64!")
			return response, err
		},
		"a binary trailer in the clear": func(ctx context.Context, r *request) (*response, error) {
			response, err := done(ctx, r)
			response.Trailer().Set("A-Bin", "no base64!")
			return response, err
		},
		"a final error that is no UTF-8": func(context.Context, *request) (*response, error) {
			return nil, idemconnect.Final(errors.New("\xff"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			c := b.protected(idemconnect.Config{}, b.charging(end))
			c.pay("k").isRefusal(t, connect.CodeInternal, "UNRECORDABLE")
			b.effects(0)
			if b.reports() == "[]" {
				t.Error("nothing was reported")
			}
		})
	}
}

// A handler without a schema, of a method that no generated code knows: its response
// could not be replayed.
func TestMethodThatNobodyKnowsIsRefusedBeforeItIsExecuted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	i := b.interceptor(idemconnect.Config{})
	call := func(procedure string) error {
		_, err := i.WrapUnary(func(context.Context, connect.AnyRequest) (connect.AnyResponse, error) {
			b.runs.Add(1)
			return connect.NewResponse(&pay.ChargeResponse{}), nil
		})(t.Context(), unnamed{b.request(tenEuros(), "k"), procedure})
		return err
	}
	answer{err: call("/pay.v1.Payments/Nothing")}.isRefusal(t, connect.CodeInternal, "FAILED")
	b.ran(0)
	if !strings.Contains(b.reports(), "no method of a service") {
		t.Errorf("reported %s", b.reports())
	}
	if err := call(payconnect.PaymentsChargeProcedure); err != nil {
		t.Error(err)
	}
	b.ran(1)
}

// An unnamed request is one of a handler that was made without connect.WithSchema.
type unnamed struct {
	*request
	procedure string
}

func (u unnamed) Spec() connect.Spec { return connect.Spec{Procedure: u.procedure} }

func TestNewRefusesWhatWouldNotBeProtected(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for want, methods := range map[string][]string{
		"Config.Methods is empty, and not nil":                         {},
		`Config.Methods has "/pay.v1.Payments/Charg", which is no`:     {payconnect.PaymentsChargeProcedure, "/pay.v1.Payments/Charg"},
		`Config.Methods has "/pay.v1.Payments/Watch", which streams`:   {payconnect.PaymentsWatchProcedure},
		`Config.Methods has "/pay.v1.Payments/Upload", which streams`:  {payconnect.PaymentsUploadProcedure},
		`Config.Methods has "/pay.v1.Payments/Get", which has no side`: {payconnect.PaymentsGetProcedure},
		`Config.Methods has "pay.v1.Payments/Charge", which is no`:     {"pay.v1.Payments/Charge"},
		`Config.Methods has "/pay.v1/Payments.Charge", which is no`:    {"/pay.v1/Payments.Charge"},
	} {
		if i, err := idemconnect.New(b.store, idemconnect.Config{Scope: account, Methods: methods}); i != nil || err == nil || !strings.HasPrefix(err.Error(), "idemconnect: "+want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if _, err := idemconnect.New(nil, idemconnect.Config{Scope: account}); err == nil || err.Error() != "idemconnect: store is nil" {
		t.Errorf("got %v", err)
	}
	if _, err := idemconnect.New(b.store, idemconnect.Config{}); err == nil || !strings.HasPrefix(err.Error(), "idemconnect: Config.Scope is nil") {
		t.Errorf("got %v", err)
	}
}

func TestParallelDuplicatesExecuteOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemconnect.Config{}, b.charge)
	b.store = b.storeOn(b.pool, idempotency.Config{}) // as another process has it
	c2 := b.protected(idemconnect.Config{}, b.charge, connect.WithGRPC())
	var wg sync.WaitGroup
	var mu sync.Mutex
	ids, first := map[int64]bool{}, 0
	for range 25 {
		for _, c := range []*client{c, c2} {
			wg.Go(func() {
				a := c.pay("k")
				mu.Lock()
				defer mu.Unlock()
				if a.err != nil {
					t.Error(a.err)
				}
				ids[a.GetId()] = true
				if !a.isReplay() {
					first++
				}
			})
		}
	}
	wg.Wait()
	if len(ids) != 1 || first != 1 {
		t.Errorf("answers %v, %d of them no replay", slices.Collect(maps.Keys(ids)), first)
	}
	b.ran(1)
	b.effects(1)
}

func TestPanicLeavesNothing(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
		c := b.protected(idemconnect.Config{}, b.charging(func(ctx context.Context, r *request) (*response, error) {
			if b.runs.Load() == 1 {
				panic("boom")
			}
			return done(ctx, r)
		}), protocol)
		if a := c.pay("k"); a.err == nil {
			t.Errorf("a panic was answered with %v", a.ChargeResponse)
		}
		b.effects(0)
		c.pay("k").is(t, 10, false)
		b.effects(1)
	})
}

// limited is an interceptor that gives a call the deadline in its header. It is the
// server's and not the client's, so that the answer comes when the call has ended there.
var limited = connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		limit, err := time.ParseDuration(r.Header().Get("Limit"))
		if err != nil {
			return next(ctx, r)
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return next(ctx, r)
	}
})

// beyondItsDeadline calls a handler that waits for the end of its context, with a
// deadline, until one was long enough for the handler to be run.
func (c *client) beyondItsDeadline(key string) (a answer) {
	c.Helper()
	for limit := 50 * time.Millisecond; c.runs.Load() == 0; limit *= 2 {
		r := c.request(tenEuros(), key)
		r.Header().Set("Limit", limit.String())
		a = c.send(c.Context(), r)
	}
	return a
}

func waitWhereAsked(ctx context.Context, r *request) error {
	if r.Header().Get("Limit") == "" {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func TestHandlerThatSeesItsDeadlineLeavesNothing(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
		c := b.serve(func(ctx context.Context, r *request) (*response, error) {
			response, err := b.charge(context.WithoutCancel(ctx), r)
			return response, errors.Join(err, waitWhereAsked(ctx, r))
		}, []connect.Interceptor{limited, b.interceptor(idemconnect.Config{})}, protocol)
		a := c.beyondItsDeadline("k")
		a.isError(t, connect.CodeDeadlineExceeded, "context deadline exceeded", false)
		c.pay("k").is(t, 10, false)
		b.ran(2)
		b.effects(1)
	})
}

func TestNilIsRecordedAlsoWhenTheContextHasEnded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.serve(func(ctx context.Context, r *request) (*response, error) {
		response, err := b.charge(context.WithoutCancel(ctx), r)
		_ = waitWhereAsked(ctx, r)
		return response, err
	}, []connect.Interceptor{limited, b.interceptor(idemconnect.Config{})})
	c.beyondItsDeadline("k").is(t, 10, false)
	c.pay("k").is(t, 10, true)
	b.ran(1)
	b.effects(1)
}

// The deadline of a client is that of the handler's context.
func TestDeadlineOfTheClientReachesTheHandler(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
		c := b.protected(idemconnect.Config{}, func(ctx context.Context, r *request) (*response, error) {
			if end, is := ctx.Deadline(); !is || time.Until(end) > time.Minute {
				t.Errorf("the deadline is %v, %v", end, is)
			}
			return b.charge(ctx, r)
		}, protocol)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c.send(ctx, b.request(tenEuros(), "k")).is(t, 10, false)
	})
}

func TestContextThatEndsBeforeTheHandlerIsTheClientsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	running, finish := make(chan bool), make(chan bool)
	c := b.serve(func(ctx context.Context, r *request) (*response, error) {
		running <- true
		<-finish
		return b.charge(ctx, r)
	}, []connect.Interceptor{connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
			switch end := r.Header().Get("End"); end {
			case "deadline":
				limited, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
				ctx = limited
			case "cancel":
				limited, cancel := context.WithCancel(ctx)
				time.AfterFunc(50*time.Millisecond, cancel)
				ctx = limited
			}
			return next(ctx, r)
		}
	}), b.interceptor(idemconnect.Config{})})
	first := make(chan answer)
	go func() { first <- c.pay("k") }()
	<-running
	for end, code := range map[string]connect.Code{"deadline": connect.CodeDeadlineExceeded, "cancel": connect.CodeCanceled} {
		r := b.request(tenEuros(), "k")
		r.Header().Set("End", end)
		if a := c.send(t.Context(), r); connect.CodeOf(a.err) != code {
			t.Errorf("got %v, want %v", a.err, code)
		}
	}
	close(finish)
	a := <-first
	a.is(t, 10, false)
	b.ran(1)
	if n := len(b.reported); n != 1 || !errors.Is(b.reported[0], context.DeadlineExceeded) {
		t.Errorf("reported %s, want the deadline alone", b.reports())
	}
}

func TestInterceptorInsideAnotherPassesThrough(t *testing.T) {
	t.Parallel()
	b := setup(t)
	i := b.interceptor(idemconnect.Config{})
	c := b.serve(b.charge, []connect.Interceptor{i, i})
	c.pay("k").is(t, 10, false)
	c.pay("k").is(t, 10, true)
	b.ran(1)
}

func TestTransactionIsTheHandlersOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var left atomic.Pointer[context.Context]
	c := b.protected(idemconnect.Config{}, b.charging(func(ctx context.Context, r *request) (*response, error) {
		left.Store(&ctx)
		if tx := idemconnect.Tx(ctx); tx.Commit(ctx) == nil || tx.Rollback(ctx) == nil {
			t.Error("the handler has ended its transaction")
		}
		return done(ctx, r)
	}))
	if idemconnect.Tx(t.Context()) != nil {
		t.Error("a transaction where there is no call")
	}
	c.pay("k").is(t, 10, false)
	if _, err := idemconnect.Tx(*left.Load()).Exec(t.Context(), "select 1"); !errors.Is(err, pgx.ErrTxClosed) {
		t.Errorf("the transaction that is left behind says %v", err)
	}
	b.effects(1)
}
