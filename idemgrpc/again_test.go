package idemgrpc_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/idemgrpc"
	"github.com/pgidem/idempotency/idemgrpc/internal/pay"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func TestConflictRunsTheHandlerAgainWhateverItMakesOfIt(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	conflict := func(ctx context.Context) error { return raise(ctx, idemgrpc.Tx(ctx), "40001") }
	for name, fail := range map[string]func(ctx context.Context) error{
		"hidden in INTERNAL": func(ctx context.Context) error {
			return status.Error(codes.Internal, conflict(ctx).Error()) // the cause is lost
		},
		"hidden in a Final": func(ctx context.Context) error {
			return idemgrpc.Final(status.Error(codes.Aborted, conflict(ctx).Error()))
		},
		"swallowed":  func(ctx context.Context) error { _ = conflict(ctx); return nil },
		"as it is":   conflict,
		"a deadlock": func(ctx context.Context) error { _ = raise(ctx, idemgrpc.Tx(ctx), "40P01"); return errors.New("x") },
		"not watched": func(ctx context.Context) error {
			_, err := idemgrpc.Tx(ctx).Conn().Exec(ctx, `do $$ begin raise exception 'x' using errcode = '40001'; end $$`)
			return err
		},
		"a lost connection": func(ctx context.Context) error {
			var pid int
			if err := idemgrpc.Tx(ctx).QueryRow(ctx, "select pg_backend_pid()").Scan(&pid); err != nil {
				t.Error(err)
			}
			if _, err := shared.pool.Exec(ctx, "select pg_terminate_backend($1, 10000)", pid); err != nil {
				t.Error(err)
			}
			_, err := idemgrpc.Tx(ctx).Exec(ctx, "select 1")
			return status.Error(codes.Internal, err.Error())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			c := b.protected(idemgrpc.Config{}, b.charging(func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
				// What an earlier run has changed and set must not be seen.
				if r.Amount != 10 || r.Labels["seen"] != "" {
					t.Errorf("run %d has got %v", b.runs.Load(), r)
				}
				r.Amount, r.Labels = 99, map[string]string{"seen": "yes"}
				run := fmt.Sprint(b.runs.Load())
				_ = grpc.SetHeader(ctx, metadata.Pairs("run", run))
				_ = grpc.SetTrailer(ctx, metadata.Pairs("ran", run))
				if b.runs.Load() == 1 {
					return &pay.ChargeResponse{}, fail(ctx)
				}
				return &pay.ChargeResponse{Id: 2, Amount: 10}, nil
			}))
			for i := range 2 {
				a := c.pay("k")
				a.is(t, 10, i > 0)
				if !slices.Equal(a.header["run"], []string{"2"}) || !slices.Equal(a.trailer["ran"], []string{"2"}) {
					t.Errorf("header %v, trailer %v; want those of the second run", a.header, a.trailer)
				}
			}
			b.ran(2)
			b.effects(1)
		})
	}
}

func TestConflictThatNeverEndsIsTheHandlersOwnError(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemgrpc.Config{}, b.charging(func(ctx context.Context, _ *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		_ = raise(ctx, idemgrpc.Tx(ctx), "40001")
		return nil, status.Error(codes.Internal, "no luck")
	}))
	c.pay("k").isStatus(t, codes.Internal, "no luck", false)
	b.ran(10)
	b.effects(0)
}

func TestErrorOfTheHandlersOwnIsNotRunAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemgrpc.Config{}, b.charging(func(ctx context.Context, _ *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		_ = raise(ctx, idemgrpc.Tx(ctx), "23505")
		return nil, status.Error(codes.AlreadyExists, "taken")
	}))
	c.pay("k").isStatus(t, codes.AlreadyExists, "taken", false)
	b.ran(1)
}

func TestSwallowedSQLErrorIsInternalAndKeptNowhere(t *testing.T) {
	t.Parallel()
	shared := setup(t)
	for name, end := range map[string]error{"nil": nil, "Final": idemgrpc.Final(status.Error(codes.NotFound, "x"))} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := shared.sub(t)
			c := b.protected(idemgrpc.Config{}, b.charging(func(ctx context.Context, _ *pay.ChargeRequest) (*pay.ChargeResponse, error) {
				_ = grpc.SetHeader(ctx, metadata.Pairs("h", "1"))
				_, _ = idemgrpc.Tx(ctx).Exec(ctx, "select 1/0")
				return &pay.ChargeResponse{Id: 1}, end
			}))
			for range 2 {
				a := c.pay("k")
				a.isRefusal(t, codes.Internal, "FAILED")
				if a.header.Get("h") != nil {
					t.Errorf("header %v", a.header)
				}
			}
			if !strings.Contains(b.reports(), "22012") || !strings.Contains(b.reports(), "handler has ended with ") {
				t.Errorf("reported %s", b.reports())
			}
			b.ran(2)
			b.effects(0)
		})
	}
}

func TestCommitThatFailsIsNeverASuccess(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if _, err := b.pool.Exec(t.Context(), `alter table charges add unique (amount) deferrable initially deferred`); err != nil {
		t.Fatal(err)
	}
	c := b.protected(idemgrpc.Config{}, func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		_ = grpc.SetHeader(ctx, metadata.Pairs("h", "1"))
		return b.charge(ctx, r)
	})
	c.pay("k1").is(t, 10, false)
	a := c.pay("k2")
	a.isRefusal(t, codes.Internal, "FAILED")
	if a.header.Get("h") != nil {
		t.Errorf("header %v", a.header)
	}
	b.effects(1)
	if !strings.Contains(b.reports(), "23505") {
		t.Errorf("reported %s", b.reports())
	}
}

func TestLostCommitAnswerIsFoundOutByTheSameCall(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		at       func(pgproxy.Message) bool
		replayed bool
		runs     int64
	}{
		"COMMIT was executed":    {func(m pgproxy.Message) bool { return m.FromServer && m.Tag == "COMMIT" }, true, 1},
		"COMMIT has not arrived": {func(m pgproxy.Message) bool { return m.Type == 'B' && m.SQL == "commit" }, false, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			proxy := b.proxy()
			var once atomic.Bool
			proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
				if test.at(m) && once.CompareAndSwap(false, true) {
					return pgproxy.Drop
				}
				return pgproxy.Pass
			})
			b.store = b.storeThrough(proxy)
			c := b.protected(idemgrpc.Config{}, b.charge)
			c.pay("k").is(t, 10, test.replayed)
			c.pay("k").is(t, 10, true)
			if !once.Load() {
				t.Error("nothing was lost")
			}
			b.ran(test.runs)
			b.effects(1)
		})
	}
}

// A recorder is the stream of a call, with a note of what the interceptor has sent.
type recorder struct {
	grpc.ServerTransportStream
	sent atomic.Int64
}

func (r *recorder) SetHeader(md metadata.MD) error {
	r.sent.Add(1)
	return r.ServerTransportStream.SetHeader(md)
}

func (r *recorder) SendHeader(md metadata.MD) error {
	r.sent.Add(1)
	return r.ServerTransportStream.SendHeader(md)
}

func (r *recorder) SetTrailer(md metadata.MD) error {
	r.sent.Add(1)
	return r.ServerTransportStream.SetTrailer(md)
}

func TestHeaderAndTrailerAreHeldBackUntilTheCommitAndReplayed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.proxy()
	stream := &recorder{}
	early := atomic.Int64{}
	early.Store(-1)
	proxy.SetRule(func(m pgproxy.Message) pgproxy.Verdict {
		if m.FromServer && m.Tag == "COMMIT" {
			early.Store(stream.sent.Load())
		}
		return pgproxy.Pass
	})
	b.store = b.storeThrough(proxy)
	record := func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		stream.ServerTransportStream = grpc.ServerTransportStreamFromContext(ctx)
		_ = stream.ServerTransportStream.SetHeader(metadata.Pairs("outer", "mine"))
		return handler(grpc.NewContextWithServerTransportStream(ctx, stream), request)
	}
	c := b.serve(func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		if method, ok := grpc.Method(ctx); method != pay.Payments_Charge_FullMethodName || !ok {
			t.Errorf("the method is %q", method)
		}
		err := errors.Join(
			grpc.SetHeader(ctx, metadata.Pairs("h", "1", "b-bin", "\xff\x00")), grpc.SetHeader(ctx, metadata.Pairs("h", "2")),
			grpc.SetTrailer(ctx, metadata.Pairs("t", "1", "idempotent-replayed", "true")),
			grpc.SendHeader(ctx, metadata.Pairs("h", "3", "idempotent-replayed", "true")), grpc.SetTrailer(ctx, metadata.Pairs("t", "2")))
		if err != nil {
			t.Error(err)
		}
		if grpc.SetHeader(ctx, metadata.Pairs("h", "4")) == nil || grpc.SendHeader(ctx, nil) == nil {
			t.Error("after SendHeader, the header can be set")
		}
		return b.charge(ctx, r)
	}, []grpc.UnaryServerInterceptor{record, b.interceptor(idemgrpc.Config{}).Unary})
	for i := range 2 {
		a := c.pay("k")
		a.is(t, 10, i > 0)
		delete(a.header, "content-type")
		delete(a.trailer, "idempotent-replayed")
		if got, want := fmt.Sprint(a.header, a.trailer), fmt.Sprint(metadata.MD{"b-bin": {"\xff\x00"}, "h": {"1", "2", "3"}, "outer": {"mine"}}, metadata.MD{"t": {"1", "2"}}); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if early.Load() != 0 {
		t.Errorf("%d were sent before COMMIT was answered", early.Load())
	}
}

func TestWhatAHandlerLeavesBehindHasNoTransactionAndNoHeader(t *testing.T) {
	t.Parallel()
	b := setup(t)
	left := make(chan context.Context, 1)
	c := b.protected(idemgrpc.Config{}, func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		left <- ctx
		return b.charge(ctx, r)
	})
	a := c.pay("k")
	a.is(t, 10, false)
	ctx := <-left
	if _, err := idemgrpc.Tx(ctx).Exec(t.Context(), "select 1"); !errors.Is(err, pgx.ErrTxClosed) {
		t.Errorf("the transaction says %v", err)
	}
	if grpc.SetHeader(ctx, metadata.Pairs("a", "b")) == nil || grpc.SetTrailer(ctx, metadata.Pairs("a", "b")) == nil {
		t.Error("the header or the trailer can be set")
	}
}

func TestMetadataThatNoClientCouldReadIsAnErrorAndNotRecorded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.protected(idemgrpc.Config{}, func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		for _, md := range []metadata.MD{{"a\xff": {"1"}}, {"a b": {"1"}}, {"": {"1"}}, {"a": {"1", "1\n2"}}, {"a": {"\x7f"}}} {
			if grpc.SetHeader(ctx, md) == nil || grpc.SetTrailer(ctx, md) == nil || grpc.SendHeader(ctx, md) == nil {
				t.Errorf("%q can be set", md)
			}
		}
		if err := grpc.SetHeader(ctx, metadata.MD{"a_b-c.9": {"größe \xff"}, "a-bin": {"\n\x00"}}); err != nil {
			t.Error(err)
		}
		return b.charge(ctx, r)
	})
	for i := range 2 {
		a := c.pay("k")
		a.is(t, 10, i > 0)
		if len(a.header.Get("a_b-c.9")) != 1 || a.header.Get("a-bin")[0] != "\n\x00" {
			t.Errorf("header %v", a.header)
		}
	}
}

func TestHandlerThatWaitsForThePoolItHasUsedUpIsReported(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.pool = pgtest.Pool(t, b.pool, pgtest.MaxConns(1), func(*pgxpool.Config) {})
	b.store = b.storeThrough(b.proxy(), pgtest.MaxConns(1))
	c := b.protected(idemgrpc.Config{}, b.charging(func(ctx context.Context, _ *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		held, err := b.pool.Acquire(ctx)
		if err != nil {
			return nil, err
		}
		defer held.Release()
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		_, err = b.pool.Exec(ctx, "select 1")
		return nil, err
	}))
	c.pay("k").isStatus(t, codes.DeadlineExceeded, "context deadline exceeded", false)
	if !strings.Contains(b.reports(), "all connections of the pool are in use (MaxConns is 1)") {
		t.Errorf("reported %s", b.reports())
	}
}

// A statement that is under way when the handler returns is waited for.
func TestStatementThatAHandlerLeavesBehindIsWaitedFor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	holder, err := b.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Release()
	if _, err := holder.Exec(t.Context(), `select pg_advisory_lock(42)`); err != nil {
		t.Fatal(err)
	}
	left, unlocked := make(chan error, 1), make(chan error, 1)
	c := b.protected(idemgrpc.Config{}, b.charging(func(ctx context.Context, _ *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		tx := idemgrpc.Tx(ctx)
		go func() {
			_, err := tx.Exec(context.WithoutCancel(ctx), `select pg_advisory_xact_lock(42)`)
			left <- err
		}()
		for waits := false; !waits; {
			err := b.pool.QueryRow(ctx, `select count(*) > 0 from pg_locks join pg_database on pg_database.oid = database
				where datname = current_database() and locktype = 'advisory' and objid = 42 and not granted`).Scan(&waits)
			if err != nil {
				return nil, err
			}
		}
		time.AfterFunc(100*time.Millisecond, func() { // when the handler has returned
			_, err := holder.Exec(context.Background(), `select pg_advisory_unlock(42)`)
			unlocked <- err
		})
		return &pay.ChargeResponse{Id: 1, Amount: 10}, nil
	}))
	c.pay("k").is(t, 10, false)
	if err := errors.Join(<-unlocked, <-left); err != nil {
		t.Errorf("the statement has failed: %v", err)
	}
	b.effects(1)
}
