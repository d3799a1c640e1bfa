package main

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/examples/grpc/payv1"
	"github.com/pgidem/idempotency/idemgrpc"
	"github.com/pgidem/idempotency/idemtest"
	"github.com/pgidem/idempotency/internal/pgtest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// serve starts the service on a database, and connects to it.
func serve(t *testing.T, pool *pgxpool.Pool) payv1.PaymentsClient {
	t.Helper()
	server, err := newServer(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(l)
	t.Cleanup(server.Stop)
	return connect(t, l)
}

func connect(t *testing.T, l net.Listener) payv1.PaymentsClient {
	t.Helper()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return payv1.NewPaymentsClient(conn)
}

func with(ctx context.Context, account, key string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "account", account, idemgrpc.MetadataKey, key)
}

func left(t *testing.T, client payv1.PaymentsClient) int64 {
	t.Helper()
	r, err := client.Balance(metadata.AppendToOutgoingContext(t.Context(), "account", "alice"), &payv1.BalanceRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return r.Cents
}

func TestChargeIsMadeOnceAndItsRetriesGetItsResponse(t *testing.T) {
	t.Parallel()
	client := serve(t, pgtest.Empty(t))
	for i := range 3 {
		var trailer metadata.MD
		r, err := client.Charge(with(t.Context(), "alice", "order-1"), &payv1.ChargeRequest{Cents: 1000}, grpc.Trailer(&trailer))
		if err != nil || r.ChargeId != 1 || r.CentsLeft != 9000 || len(trailer["idempotent-replayed"]) != min(i, 1) {
			t.Errorf("got %v, %v, trailer %v", r, err, trailer)
		}
	}
	if got := left(t, client); got != 9000 {
		t.Errorf("%d cents are left", got)
	}
}

func TestDeclinedChargeIsAnAnswerThatRetriesGetToo(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	client := serve(t, pool)
	for range 2 {
		_, err := client.Charge(with(t.Context(), "alice", "order-1"), &payv1.ChargeRequest{Cents: 10_001})
		if s := status.Convert(err); s.Code() != codes.FailedPrecondition || s.Message() != "declined: 10000 cents are left" {
			t.Errorf("got %v", err)
		}
		if _, err := pool.Exec(t.Context(), "update accounts set cents = 20000"); err != nil {
			t.Fatal(err)
		}
	}
	if got := left(t, client); got != 20_000 {
		t.Errorf("%d cents are left", got)
	}
}

// The last statement fails, so what the ones before have done is undone.
func TestFailedChargeLeavesNothingAndCanBeSentAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	client := serve(t, pool)
	for _, test := range []struct {
		sql  string
		code codes.Code
		left int64
	}{
		{"alter table charges add constraint broken check (false)", codes.Internal, 10_000},
		{"alter table charges drop constraint broken", codes.OK, 9000},
	} {
		if _, err := pool.Exec(t.Context(), test.sql); err != nil {
			t.Fatal(err)
		}
		_, err := client.Charge(with(t.Context(), "alice", "order-1"), &payv1.ChargeRequest{Cents: 1000})
		if got := left(t, client); status.Code(err) != test.code || got != test.left {
			t.Errorf("got %v, and %d cents are left; want %v, %d", err, got, test.code, test.left)
		}
	}
}

func TestWrongChargesAreRefusedByName(t *testing.T) {
	t.Parallel()
	client := serve(t, pgtest.Empty(t))
	for _, test := range []struct {
		ctx  context.Context
		code codes.Code
		text string
	}{
		{t.Context(), codes.Unauthenticated, "account"},
		{with(t.Context(), "", "k"), codes.Unauthenticated, "account"},
		{metadata.AppendToOutgoingContext(t.Context(), "account", "alice"), codes.InvalidArgument, "idempotency key"},
		{with(t.Context(), "alice", "k"), codes.InvalidArgument, "cents"},
	} {
		if _, err := client.Charge(test.ctx, &payv1.ChargeRequest{}); status.Code(err) != test.code || !strings.Contains(err.Error(), test.text) {
			t.Errorf("got %v, want %v with %q", err, test.code, test.text)
		}
	}
}

func TestStormHasOneEffectForEachKey(t *testing.T) {
	t.Parallel()
	idemtest.Storm(t, pgtest.Empty(t), 10, idemtest.Program{
		Start: func(pool *pgxpool.Pool, _ *idempotency.Store) idemtest.Call {
			client := serve(t, pool)
			return func(ctx context.Context, id string) (any, bool, error) {
				var trailer metadata.MD
				r, err := client.Charge(with(ctx, id, id), &payv1.ChargeRequest{Cents: 1}, grpc.Trailer(&trailer))
				return fmt.Sprint(r.GetChargeId(), r.GetCentsLeft()), len(trailer["idempotent-replayed"]) > 0, err
			}
		},
		Effects: func(ctx context.Context, pool *pgxpool.Pool, id string) (n int, err error) {
			err = pool.QueryRow(ctx, "select count(*) from charges where account = $1", id).Scan(&n)
			return n, err
		},
	})
}

func TestServiceEndsWithItsContext(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	database, ended := pgtest.URL(pgtest.Empty(t)), make(chan error)
	go func() { ended <- run(ctx, database, l) }()
	if got := left(t, connect(t, l)); got != 10_000 { // once it serves
		t.Errorf("%d cents are left", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := run(t.Context(), "", l); err == nil || !strings.Contains(err.Error(), "DATABASE_URL") {
		t.Errorf("got %v", err)
	}
}
