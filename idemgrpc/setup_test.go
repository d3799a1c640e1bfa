package idemgrpc_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemgrpc"
	"github.com/pgidem/idempotency/idemgrpc/internal/pay"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) {
	if os.Getenv(serverEnv) != "" {
		os.Exit(serveAsProcess())
	}
	pgtest.Main(m)
}

// A bundle is what a test starts with: a database of its own with one business table, a
// Store on it, and a count of what the handlers have done.
type bundle struct {
	testing.TB
	pool    *pgxpool.Pool
	store   *idempotency.Store
	account string // whose charges and keys the bundle's are
	runs    atomic.Int64

	mu       sync.Mutex
	reported []error
}

func setup(t testing.TB, opts ...pgtest.Option) *bundle {
	t.Helper()
	b := &bundle{TB: t, pool: pgtest.New(t, opts...), account: "account-1"}
	if _, err := b.pool.Exec(t.Context(), `create table charges (id serial, account text not null, amount int not null)`); err != nil {
		t.Fatal(err)
	}
	b.store = b.storeOn(b.pool, idempotency.Config{})
	return b
}

// sub is a bundle for a subtest: another account in the same database.
func (b *bundle) sub(t testing.TB) *bundle {
	return &bundle{TB: t, pool: b.pool, store: b.store, account: strings.ReplaceAll(t.Name(), " ", "_")}
}

func (b *bundle) storeOn(pool *pgxpool.Pool, cfg idempotency.Config) *idempotency.Store {
	b.Helper()
	store, err := idempotency.NewWithConfig(pool, cfg)
	if err != nil {
		b.Fatal(err)
	}
	return store
}

// proxy stands between a pool and the test's PostgreSQL.
func (b *bundle) proxy() *pgproxy.Proxy {
	b.Helper()
	server := b.pool.Config().ConnConfig
	network, at := "tcp", fmt.Sprintf("%s:%d", server.Host, server.Port)
	if strings.HasPrefix(server.Host, "/") {
		network, at = "unix", fmt.Sprintf("%s/.s.PGSQL.%d", server.Host, server.Port)
	}
	return pgproxy.New(b, network, at)
}

// storeThrough is a Store whose connections pass a proxy.
func (b *bundle) storeThrough(proxy *pgproxy.Proxy, opts ...pgtest.Option) *idempotency.Store {
	b.Helper()
	return b.storeOn(pgtest.Pool(b, b.pool, append(opts, func(cfg *pgxpool.Config) {
		cfg.ConnConfig.Host, cfg.ConnConfig.Port = "127.0.0.1", proxy.Port()
		cfg.ConnConfig.TLSConfig, cfg.ConnConfig.Fallbacks = nil, nil
	})...), idempotency.Config{})
}

// account is the Scope of the tests: who sends a call is in its metadata.
func account(ctx context.Context, _ string) (string, error) {
	return strings.Join(metadata.ValueFromIncomingContext(ctx, "account"), ","), nil
}

// interceptor is New with the Methods, the Scope and the Report of the tests.
func (b *bundle) interceptor(cfg idemgrpc.Config) *idemgrpc.Interceptor {
	b.Helper()
	if cfg.Methods == nil {
		cfg.Methods = []string{pay.Payments_Charge_FullMethodName}
	}
	if cfg.Scope == nil {
		cfg.Scope = account
	}
	cfg.Report = func(_ context.Context, method string, err error) {
		if method != pay.Payments_Charge_FullMethodName {
			b.Errorf("a report of %q", method)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.reported = append(b.reported, err)
	}
	i, err := idemgrpc.New(b.store, cfg)
	if err != nil {
		b.Fatal(err)
	}
	return i
}

// reports returns what was reported, as one text.
func (b *bundle) reports() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return fmt.Sprint(b.reported)
}

// A handler is what a method of the service does.
type handler = func(context.Context, *pay.ChargeRequest) (*pay.ChargeResponse, error)

type service struct {
	pay.UnimplementedPaymentsServer
	charge handler
}

func (s service) Charge(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
	return s.charge(ctx, r)
}

func (s service) Refund(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
	return s.charge(ctx, r)
}

// charge is the business of the tests: one row for each run.
func (b *bundle) charge(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
	b.runs.Add(1)
	response := &pay.ChargeResponse{Amount: r.Amount, Labels: r.Labels}
	err := idemgrpc.Tx(ctx).QueryRow(ctx, `insert into charges (account, amount) values ($1, $2) returning id`, b.account, r.Amount).Scan(&response.Id)
	return response, err
}

// charging charges and then does what end does. So its error comes after an effect.
func (b *bundle) charging(end handler) handler {
	return func(ctx context.Context, r *pay.ChargeRequest) (*pay.ChargeResponse, error) {
		if _, err := b.charge(ctx, r); err != nil {
			return nil, err
		}
		return end(ctx, r)
	}
}

// A client is a client of a server on a TCP port, with that port.
type client struct {
	pay.PaymentsClient
	*bundle
	address string
}

// serve starts a server with the interceptors, and connects to it.
func (b *bundle) serve(charge handler, interceptors []grpc.UnaryServerInterceptor, dial ...grpc.DialOption) *client {
	b.Helper()
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(interceptors...))
	pay.RegisterPaymentsServer(server, service{charge: charge})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go server.Serve(l)
	b.Cleanup(server.Stop)
	return b.dial(l.Addr().String(), dial...)
}

func (b *bundle) dial(address string, opts ...grpc.DialOption) *client {
	b.Helper()
	conn, err := grpc.NewClient(address, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	return &client{pay.NewPaymentsClient(conn), b, address}
}

// protected serves one method behind an Interceptor.
func (b *bundle) protected(cfg idemgrpc.Config, charge handler, dial ...grpc.DialOption) *client {
	b.Helper()
	return b.serve(charge, []grpc.UnaryServerInterceptor{b.interceptor(cfg).Unary}, dial...)
}

// with is the context of a call under a key of the bundle's account.
func (b *bundle) with(key string) context.Context {
	return metadata.AppendToOutgoingContext(b.Context(), "account", b.account, idemgrpc.MetadataKey, key)
}

// An answer is what a client gets.
type answer struct {
	*pay.ChargeResponse
	err             error
	header, trailer metadata.MD
}

// send calls Charge.
func (c *client) send(ctx context.Context, r *pay.ChargeRequest, opts ...grpc.CallOption) (a answer) {
	c.Helper()
	a.ChargeResponse, a.err = c.Charge(ctx, r, append(opts, grpc.Header(&a.header), grpc.Trailer(&a.trailer))...)
	return a
}

// pay sends the call of most tests under a key.
func (c *client) pay(key string) answer {
	c.Helper()
	return c.send(c.with(key), tenEuros())
}

func tenEuros() *pay.ChargeRequest {
	return &pay.ChargeRequest{Account: "a", Amount: 10}
}

// isReplay reports the mark of a replay.
func (a answer) isReplay() bool { return strings.Join(a.trailer["idempotent-replayed"], ",") == "true" }

// is checks that the answer is a success, and whether it is a replay.
func (a answer) is(t testing.TB, amount int64, replayed bool) {
	t.Helper()
	if a.err != nil || a.GetAmount() != amount || a.GetId() == 0 || a.isReplay() != replayed {
		t.Errorf("got %v, %v, trailer %v; want %d, replayed %v", a.ChargeResponse, a.err, a.trailer, amount, replayed)
	}
}

// isStatus checks the status of an error, and whether it is a replay.
func (a answer) isStatus(t testing.TB, code codes.Code, message string, replayed bool) {
	t.Helper()
	if s := status.Convert(a.err); s.Code() != code || s.Message() != message || a.isReplay() != replayed {
		t.Errorf("got %v, trailer %v; want %v %q, replayed %v", a.err, a.trailer, code, message, replayed)
	}
}

// isRefusal checks a refusal of the Interceptor's: its code, its reason, and whether it
// tells how to retry if and only if a retry helps.
func (a answer) isRefusal(t testing.TB, code codes.Code, reason string) {
	t.Helper()
	s := status.Convert(a.err)
	var info *errdetails.ErrorInfo
	var retry *errdetails.RetryInfo
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			info = d
		case *errdetails.RetryInfo:
			retry = d
		}
	}
	if s.Code() != code || info.GetReason() != reason || info.GetDomain() != "github.com/pgidem/idempotency" || s.Message() == "" || a.isReplay() {
		t.Errorf("got %v with %v, trailer %v; want %v %s", a.err, s.Details(), a.trailer, code, reason)
	}
	pushback := strings.Join(a.trailer["grpc-retry-pushback-ms"], ",")
	if helps := code == codes.Aborted || code == codes.Unavailable; helps {
		if retry.GetRetryDelay().AsDuration().Seconds() != 1 || pushback != "1000" {
			t.Errorf("%v with %v and pushback %q", a.err, retry, pushback)
		}
	} else if retry != nil || pushback != "" {
		t.Errorf("%v with %v and pushback %q", a.err, retry, pushback)
	}
}

// effects checks how many charges are in the table.
func (b *bundle) effects(want int) {
	b.Helper()
	var got int
	if err := b.pool.QueryRow(context.Background(), `select count(*) from charges where account = $1`, b.account).Scan(&got); err != nil {
		b.Fatal(err)
	}
	if got != want {
		b.Errorf("%d charges, want %d", got, want)
	}
}

// ran checks how often handlers have run.
func (b *bundle) ran(want int64) {
	b.Helper()
	if got := b.runs.Load(); got != want {
		b.Errorf("the handler has run %d times, want %d", got, want)
	}
}

// raise makes PostgreSQL fail a statement of tx.
func raise(ctx context.Context, tx pgx.Tx, code string) error {
	_, err := tx.Exec(ctx, fmt.Sprintf(`do $$ begin raise exception 'x' using errcode = '%s'; end $$`, code))
	if err == nil {
		return errors.New("nothing was raised")
	}
	return err
}

func same(t testing.TB, what string, got, want proto.Message) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}
