package idemgrpc_test

import (
	"context"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemgrpc"
	"github.com/pgidem/idempotency/idemgrpc/internal/pay"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// retryPolicy is a service config as docs/grpc.md shows it, with a backoff for tests.
const retryPolicy = `{"methodConfig": [{
	"name": [{"service": "pay.v1.Payments", "method": "Charge"}],
	"retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.001s", "maxBackoff": "0.001s", "backoffMultiplier": 1,
		"retryableStatusCodes": ["UNAVAILABLE", "ABORTED"]}}]}`

// attempts notes the metadata of each attempt, and loses the answers of the first ones.
type attempts struct {
	mu   sync.Mutex
	seen []metadata.MD
	lose int
}

func (a *attempts) note(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	response, err := handler(ctx, request)
	a.mu.Lock()
	defer a.mu.Unlock()
	md, _ := metadata.FromIncomingContext(ctx)
	a.seen = append(a.seen, md)
	if len(a.seen) <= a.lose {
		return nil, status.Error(codes.Unavailable, "lost")
	}
	return response, err
}

func (a *attempts) keys() (keys []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, md := range a.seen {
		keys = append(keys, md.Get(idemgrpc.MetadataKey)...)
	}
	return keys
}

var uuidv7 = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

// The mark of a replay is in the trailer: in a header it would stop the client here.
func TestAllAttemptsOfACallHaveOneKeyAndANewCallANewOne(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := &attempts{lose: 3}
	c := b.serve(b.charge, []grpc.UnaryServerInterceptor{server.note, b.interceptor(idemgrpc.Config{}).Unary},
		grpc.WithDefaultServiceConfig(retryPolicy), grpc.WithChainUnaryInterceptor(idemgrpc.Key))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "account", b.account)
	a := c.send(ctx, tenEuros())
	a.is(t, 10, true)
	keys := server.keys()
	if len(keys) != 4 || len(slices.Compact(slices.Clone(keys))) != 1 || !uuidv7.MatchString(keys[0]) {
		t.Errorf("the attempts had the keys %q", keys)
	}
	if got := server.seen[3].Get("grpc-previous-rpc-attempts"); !slices.Equal(got, []string{"3"}) {
		t.Errorf("the last attempt says that %q were before it: gRPC has not made it", got)
	}
	b.effects(1)
	a = c.send(ctx, tenEuros())
	a.is(t, 10, false)
	if now := server.keys(); len(now) != 5 || now[4] == keys[0] {
		t.Errorf("a new call has the key %q", now)
	}
	b.effects(2)
}

func TestKeyOfTheCallerIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := &attempts{}
	c := b.serve(b.charge, []grpc.UnaryServerInterceptor{server.note, b.interceptor(idemgrpc.Config{}).Unary},
		grpc.WithChainUnaryInterceptor(idemgrpc.Key))
	for _, name := range []string{"idempotency-key", "Idempotency-Key"} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "account", b.account, name, "mine")
		if a := c.send(ctx, tenEuros()); a.err != nil {
			t.Error(a.err)
		}
	}
	if keys := server.keys(); !slices.Equal(keys, []string{"mine", "mine"}) {
		t.Errorf("sent %q", keys)
	}
	b.effects(1)
}

// The client's own backoff is a millisecond: it comes back after the second that the
// server asks for.
func TestClientObeysThePushback(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.store = b.storeOn(b.pool, idempotency.Config{Wait: -1})
	server := &attempts{}
	running, finish := make(chan bool), make(chan bool)
	c := b.serve(func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		running <- true
		<-finish
		return b.charge(ctx, r)
	}, []grpc.UnaryServerInterceptor{server.note, b.interceptor(idemgrpc.Config{}).Unary},
		grpc.WithDefaultServiceConfig(retryPolicy))
	first, second := make(chan answer), make(chan answer)
	go func() { first <- c.pay("k") }()
	<-running
	began := time.Now()
	go func() { second <- c.pay("k") }()
	for len(server.keys()) == 0 { // the second has been refused
		time.Sleep(time.Millisecond)
	}
	close(finish)
	a := <-first
	a.is(t, 10, false)
	a = <-second
	a.is(t, 10, true)
	if took := time.Since(began); took < time.Second || len(server.keys()) != 3 {
		t.Errorf("after %v, %d attempts; want a second, and 1 for the first and 2 for the duplicate", took, len(server.keys()))
	}
	b.ran(1)
}
