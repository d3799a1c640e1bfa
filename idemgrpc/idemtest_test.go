package idemgrpc_test

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemgrpc"
	"github.com/pgidem/idempotency/idemgrpc/internal/pay"
	"github.com/pgidem/idempotency/idemsql"
	"github.com/pgidem/idempotency/idemtest"
	"github.com/pgidem/idempotency/internal/transport"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func TestStormOfCallsHasOneEffectForEachKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	idemtest.Storm(t, b.pool, 20, idemtest.Program{
		Start: func(_ *pgxpool.Pool, store *idempotency.Store) idemtest.Call {
			b.store = store
			c := b.protected(idemgrpc.Config{}, func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
				response := &pay.ChargeResponse{Amount: r.Amount}
				err := idemgrpc.Tx(ctx).QueryRow(ctx, `insert into charges (account, amount) values ($1, $2) returning id`, r.Account, r.Amount).Scan(&response.Id)
				return response, err
			})
			return func(ctx context.Context, id string) (any, bool, error) {
				ctx = metadata.AppendToOutgoingContext(ctx, "account", "a", idemgrpc.MetadataKey, id)
				a := c.send(ctx, &pay.ChargeRequest{Account: id, Amount: 10})
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
	c := b.protected(idemgrpc.Config{}, func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		_, err := b.pool.Exec(ctx, `insert into charges (account, amount) values ($1, 1)`, b.account)
		return nil, err
	})
	if a := c.pay("k"); a.err == nil || !strings.Contains(a.err.Error(), "refused by Guard") {
		t.Errorf("got %v", a.err)
	}
	nested := b.protected(idemgrpc.Config{}, func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		_, _, err := idempotency.Do(ctx, b.store, idempotency.Key{Scope: "s", ID: "other"}, idemsql.Func(func(context.Context, *sql.Tx) (int, error) { return 1, nil }))
		return nil, err
	})
	nested.pay("n")
	b.effects(0)
	if len(found.failed) != 2 || !strings.Contains(found.failed[0], "idemtest_test.go:") || !strings.Contains(found.failed[0], `key "k"`) || !strings.Contains(found.failed[1], "idemtest_test.go:") || !strings.Contains(found.failed[1], "a Do inside") {
		t.Errorf("found %q", found.failed)
	}
}

func TestHandlerOfDatabaseSQLRunsAgainWhenPostgreSQLAsks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemgrpc.Config{}, func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		id, err := idemsql.Run(ctx, idemgrpc.Tx(ctx), func(tx *sql.Tx) (id int64, err error) {
			err = tx.QueryRowContext(ctx, `insert into charges (account, amount) values ($1, $2) returning id`, b.account, r.Amount).Scan(&id)
			if err == nil && b.runs.Add(1) == 1 {
				_, err = tx.ExecContext(ctx, `do $$ begin raise exception 'x' using errcode = '40001'; end $$`)
			}
			return id, err
		})
		if err != nil {
			return nil, status.Error(codes.Internal, "failed")
		}
		return &pay.ChargeResponse{Id: id, Amount: r.Amount}, nil
	})
	c.pay("k").is(t, 10, false)
	c.pay("k").is(t, 10, true)
	b.ran(2)
	b.effects(1)
}

func TestTransactionAndKeyAreWhereCodeUnderOtherTransportsLooks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemgrpc.Config{}, func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		run := transport.RunOf(ctx) // of which idemhttp.Tx and Key read
		if transport.Tx(ctx) != idemgrpc.Tx(ctx) || run.Key.Scope != b.account || run.Key.ID != "k" || run.Key.Fingerprint == (idempotency.Fingerprint{}) {
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
			events = append(events, fmt.Sprintf("%v %s %s %s %d %q %v%s", ctx.Value(traced{}), e.Operation, e.Outcome, e.Key.ID, e.Runs, e.Origin, e.Err, telemetry))
		},
		Trace: func(ctx context.Context, operation string) (context.Context, string) {
			// The span of the server, which an interceptor or a stats handler has made, is here.
			if _, ok := grpc.Method(ctx); !ok {
				t.Error("not the context of a call")
			}
			return context.WithValue(ctx, traced{}, "span"), "origin of " + strings.Join(metadata.ValueFromIncomingContext(ctx, "n"), "")
		},
	})
	c := b.protected(idemgrpc.Config{}, b.charging(func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		if ctx.Value(traced{}) != "span" {
			t.Error("the handler has not the context of the trace")
		}
		if b.runs.Load() == 1 {
			return nil, raise(ctx, idemgrpc.Tx(ctx), "40001")
		}
		if r.Amount == 0 {
			return nil, status.Error(codes.InvalidArgument, "no amount")
		}
		return &pay.ChargeResponse{Id: 1, Amount: 10}, nil
	}))
	n := func(key, n string) context.Context { return metadata.AppendToOutgoingContext(c.with(key), "n", n) }
	c.send(n("k", "1"), tenEuros())
	c.send(n("k", "2"), tenEuros())
	c.send(n("k", "3"), &pay.ChargeRequest{Amount: 11})
	c.send(n("f", "4"), &pay.ChargeRequest{})
	want := []string{
		`span Do executed k 2 "origin of 1" <nil>`,
		`span Do replayed k 0 "origin of 1" <nil>`,
		`span Do key_reused k 0 "origin of 3" ` + idempotency.ErrKeyReused.Error(),
		`span Do failed f 1 "origin of 4" rpc error: code = InvalidArgument desc = no amount as INVALID_ARGUMENT`,
	}
	if got := strings.Join(events, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}
