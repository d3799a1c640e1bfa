package idemconnect_test

import (
	"context"
	"regexp"
	"slices"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/pgidem/idempotency/idemconnect"
)

// attempts notes the key of each attempt, and loses the answers of the first ones.
type attempts struct {
	mu   sync.Mutex
	keys []string
	lose int
}

func (a *attempts) note(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		response, err := next(ctx, r)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.keys = append(a.keys, r.Header().Get("Idempotency-Key"))
		if len(a.keys) <= a.lose {
			return nil, connect.NewError(connect.CodeUnavailable, nil)
		}
		return response, err
	}
}

// repeat is an interceptor as clients have it, for connect-go repeats nothing.
func repeat(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		for {
			response, err := next(ctx, r)
			if connect.CodeOf(err) != connect.CodeUnavailable {
				return response, err
			}
		}
	}
}

var uuidv7 = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

func TestAllAttemptsOfACallHaveOneKeyAndANewCallANewOne(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
		server := &attempts{lose: 3}
		c := b.serve(b.charge, []connect.Interceptor{connect.UnaryInterceptorFunc(server.note), b.interceptor(idemconnect.Config{})},
			protocol, connect.WithInterceptors(connect.UnaryInterceptorFunc(idemconnect.Key), connect.UnaryInterceptorFunc(repeat)))
		r := b.request(tenEuros())
		c.send(t.Context(), r).is(t, 10, true)
		if len(server.keys) != 4 || len(slices.Compact(slices.Clone(server.keys))) != 1 || !uuidv7.MatchString(server.keys[0]) {
			t.Errorf("the attempts had the keys %q", server.keys)
		}
		b.effects(1)
		c.send(t.Context(), r).is(t, 10, false) // of the same Request
		if len(server.keys) != 5 || server.keys[4] == server.keys[0] {
			t.Errorf("a new call has the keys %q", server.keys)
		}
		b.effects(2)
	})
}

func TestKeyOfTheCallerIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := &attempts{}
	c := b.serve(b.charge, []connect.Interceptor{connect.UnaryInterceptorFunc(server.note), b.interceptor(idemconnect.Config{})},
		connect.WithInterceptors(connect.UnaryInterceptorFunc(idemconnect.Key)))
	r := b.request(tenEuros(), "mine")
	c.send(t.Context(), r).is(t, 10, false)
	c.send(t.Context(), r).is(t, 10, true)
	if !slices.Equal(server.keys, []string{"mine", "mine"}) {
		t.Errorf("sent %q", server.keys)
	}
}

func TestInterceptorOfAServerLetsTheCallsOfAClientPass(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.serve(done, nil, connect.WithInterceptors(b.interceptor(idemconnect.Config{})))
	for range 2 { // without a key, and with one
		c.send(t.Context(), b.request(tenEuros())).is(t, 10, false)
		c.send(t.Context(), b.request(tenEuros(), "k")).is(t, 10, false)
	}
}

func TestCallWithoutSideEffectsGetsNoKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := &attempts{}
	c := b.serve(done, []connect.Interceptor{connect.UnaryInterceptorFunc(idemconnect.Key), connect.UnaryInterceptorFunc(server.note)},
		connect.WithInterceptors(connect.UnaryInterceptorFunc(idemconnect.Key)))
	answerOf(c.Get(t.Context(), b.request(tenEuros()))).is(t, 10, false)
	answerOf(c.Cancel(t.Context(), b.request(tenEuros()))).is(t, 10, false)
	if len(server.keys) != 2 || server.keys[0] != "" || server.keys[1] == "" {
		t.Errorf("sent %q", server.keys)
	}
	// On a server, Key does nothing.
	c = b.serve(done, []connect.Interceptor{connect.UnaryInterceptorFunc(idemconnect.Key), connect.UnaryInterceptorFunc(server.note)})
	c.send(t.Context(), b.request(tenEuros())).is(t, 10, false)
	if server.keys[2] != "" {
		t.Errorf("the server has made the key %q", server.keys[2])
	}
}
