package idemconnect_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemconnect"
	"github.com/pgidem/idempotency/idemconnect/internal/pay"
	"github.com/pgidem/idempotency/idemtest"
	"github.com/pgidem/idempotency/internal/transport"
)

func TestStormOfCallsHasOneEffectForEachKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	idemtest.Storm(t, b.pool, 20, idemtest.Program{
		Start: func(_ *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
			b.store = store
			c := b.protected(idemconnect.Config{}, func(ctx context.Context, r *request) (*response, error) {
				m := &pay.ChargeResponse{Amount: r.Msg.Amount}
				err := idemconnect.Tx(ctx).QueryRow(ctx, `insert into charges (account, amount) values ($1, $2) returning id`, r.Msg.Account, r.Msg.Amount).Scan(&m.Id)
				return connect.NewResponse(m), err
			})
			return func(ctx context.Context, id string) (any, bool, error) {
				a := c.send(ctx, b.request(&pay.ChargeRequest{Account: id, Amount: 10}, id))
				return a.GetId(), a.isReplay(), a.err
			}
		},
		Effects: func(ctx context.Context, pool *pgxpool.Pool, id string) (n int, err error) {
			err = pool.QueryRow(ctx, `select count(*) from charges where account = $1`, id).Scan(&n)
			return n, err
		},
	})
}

// A spy is a test that can fail without harm.
type spy struct {
	testing.TB
	mu     sync.Mutex
	failed []string
}

func (s *spy) Helper() {}
func (s *spy) Error(args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = append(s.failed, fmt.Sprint(args...))
}

func TestGuardFindsAStatementThroughThePoolInAHandlerAndNamesItsLine(t *testing.T) {
	t.Parallel()
	found := &spy{TB: t}
	b := setup(t, func(cfg *pgxpool.Config) { idemtest.Guard(found, cfg) })
	c := b.protected(idemconnect.Config{}, func(ctx context.Context, r *request) (*response, error) {
		_, err := b.pool.Exec(ctx, `insert into charges (account, amount) values ($1, 1)`, b.account)
		return nil, err
	})
	if a := c.pay("k"); a.err == nil || !strings.Contains(a.err.Error(), "refused by Guard") {
		t.Errorf("got %v", a.err)
	}
	b.effects(0)
	if len(found.failed) != 1 || !strings.Contains(found.failed[0], "idemtest_test.go:") || !strings.Contains(found.failed[0], `key "k"`) {
		t.Errorf("found %q", found.failed)
	}
}

func TestTransactionAndKeyAreWhereCodeUnderOtherTransportsLooks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemconnect.Config{}, func(ctx context.Context, r *request) (*response, error) {
		run := transport.RunOf(ctx) // of which idemhttp.Tx and Key read
		if transport.Tx(ctx) != idemconnect.Tx(ctx) || run.Key.Scope != b.account || run.Key.ID != "k" || run.Key.Fingerprint == (idempotency.Fingerprint{}) {
			t.Errorf("run %v", run)
		}
		return b.charge(ctx, r)
	})
	c.pay("k").is(t, 10, false)
}

type traced struct{}

func TestEventsAndTracesAreThoseOfTheStore(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var mu sync.Mutex
	var events []string
	b.store = b.storeOn(b.pool, idempotency.Config{
		ObserveKeys: true,
		Observe: func(ctx context.Context, e idempotency.Event) {
			mu.Lock()
			defer mu.Unlock()
			telemetry := ""
			if err, ok := e.Err.(interface{ ErrorType() string }); ok {
				telemetry = " as " + err.ErrorType()
			}
			events = append(events, fmt.Sprintf("%v %s %s %s %d %q%s", ctx.Value(traced{}), e.Operation, e.Outcome, e.Key.ID, e.Runs, e.Origin, telemetry))
		},
		Trace: func(ctx context.Context, operation string) (context.Context, string) {
			if _, ok := connect.CallInfoForHandlerContext(ctx); !ok {
				t.Error("not the context of a call")
			}
			return context.WithValue(ctx, traced{}, "span"), "the origin"
		},
	})
	c := b.protected(idemconnect.Config{}, b.charging(func(ctx context.Context, r *request) (*response, error) {
		if ctx.Value(traced{}) != "span" {
			t.Error("the handler has not the context of the trace")
		}
		if b.runs.Load() == 1 {
			return nil, raise(ctx, idemconnect.Tx(ctx), "40001")
		}
		if r.Msg.Amount == 0 {
			return nil, connect.NewError(connect.CodeInvalidArgument, nil)
		}
		return done(ctx, r)
	}))
	c.pay("k").is(t, 10, false)
	c.pay("k").is(t, 10, true)
	c.send(t.Context(), b.request(&pay.ChargeRequest{}, "f"))
	want := "span Do executed k 2 \"the origin\"\nspan Do replayed k 0 \"the origin\"\nspan Do failed f 1 \"the origin\" as INVALID_ARGUMENT"
	if got := strings.Join(events, "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// The Tx of one package is that of the others.
var _ func(context.Context) pgx.Tx = idemconnect.Tx
