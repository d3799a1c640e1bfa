package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/examples/grpc/payv1"
	"github.com/pgidem/idempotency/idemgrpc"
	"github.com/pgidem/idempotency/migrations"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
)

// newServer makes the tables and the service.
func newServer(ctx context.Context, pool *pgxpool.Pool) (*grpc.Server, error) {
	if err := migrations.Up(ctx, pool, ""); err != nil {
		return nil, err
	}
	if _, err := pool.Exec(ctx, schema); err != nil {
		return nil, fmt.Errorf("making the tables: %w", err)
	}
	idem, err := idemgrpc.New(idempotency.New(pool), idemgrpc.Config{
		Methods: []string{payv1.Payments_Charge_FullMethodName}, // Balance has nothing to protect
		Scope:   func(ctx context.Context, _ string) (string, error) { return accountOf(ctx), nil },
	})
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(authenticate, idem.Unary))
	payv1.RegisterPaymentsServer(server, &service{pool: pool})
	reflection.Register(server) // for grpcurl
	return server, nil
}

type accountKey struct{}

// authenticate stands in front of the idempotency keys: a replay asks no handler. A real
// service verifies a token here.
func authenticate(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	account := metadata.ValueFromIncomingContext(ctx, "account")
	if len(account) != 1 || account[0] == "" {
		return nil, status.Error(codes.Unauthenticated, "send your account")
	}
	return handler(context.WithValue(ctx, accountKey{}, account[0]), request)
}

func accountOf(ctx context.Context) string {
	account, _ := ctx.Value(accountKey{}).(string)
	return account
}

type service struct {
	payv1.UnimplementedPaymentsServer
	pool *pgxpool.Pool
}

// Charge writes in the transaction of its key alone. Its response is recorded in the
// commit of its writes; with an error that is not final everything is rolled back, and
// the same key can be sent again.
func (s *service) Charge(ctx context.Context, r *payv1.ChargeRequest) (*payv1.ChargeResponse, error) {
	if r.Cents <= 0 {
		return nil, status.Error(codes.InvalidArgument, "cents has to be more than 0")
	}
	id, left, err := charge(ctx, idemgrpc.Tx(ctx), accountOf(ctx), r.Cents, r.Purpose)
	if err != nil {
		return nil, status.Error(codes.Internal, "the charge was not made: send it again, with the same key")
	}
	if id == 0 { // the bank has decided, and a retry is to hear the same
		return nil, idemgrpc.Final(status.Errorf(codes.FailedPrecondition, "declined: %d cents are left", left))
	}
	return &payv1.ChargeResponse{ChargeId: id, CentsLeft: left}, nil
}

// Balance is executed without a key, and has no transaction.
func (s *service) Balance(ctx context.Context, _ *payv1.BalanceRequest) (*payv1.BalanceResponse, error) {
	cents, err := balance(ctx, s.pool, accountOf(ctx))
	if err != nil {
		return nil, status.Error(codes.Internal, "the balance cannot be read now")
	}
	return &payv1.BalanceResponse{Cents: cents}, nil
}
