package idemconnect_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemconnect"
	"github.com/pgidem/idempotency/idemconnect/internal/pay"
	"github.com/pgidem/idempotency/idemconnect/internal/pay/payconnect"
	"github.com/pgidem/idempotency/internal/pgproxy"
	"github.com/pgidem/idempotency/internal/pgtest"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
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
	return &bundle{TB: t, pool: b.pool, store: b.store, account: t.Name()}
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

// account is the Scope of the tests: who sends a call is in its header.
func account(_ context.Context, r connect.AnyRequest) (string, error) {
	return r.Header().Get("Account"), nil
}

// interceptor is New with the Scope and the Report of the tests.
func (b *bundle) interceptor(cfg idemconnect.Config) *idemconnect.Interceptor {
	b.Helper()
	if cfg.Scope == nil {
		cfg.Scope = account
	}
	cfg.Report = func(_ context.Context, _ connect.AnyRequest, err error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.reported = append(b.reported, err)
	}
	i, err := idemconnect.New(b.store, cfg)
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

type (
	request  = connect.Request[pay.ChargeRequest]
	response = connect.Response[pay.ChargeResponse]

	// A handler is what a method of the service does.
	handler = func(context.Context, *request) (*response, error)
)

// A service does the same in all its methods.
type service struct {
	payconnect.UnimplementedPaymentsHandler
	charge handler
}

func (s service) Charge(ctx context.Context, r *request) (*response, error) { return s.charge(ctx, r) }
func (s service) Get(ctx context.Context, r *request) (*response, error)    { return s.charge(ctx, r) }
func (s service) Cancel(ctx context.Context, r *request) (*response, error) { return s.charge(ctx, r) }
func (s service) Refund(ctx context.Context, r *request) (*response, error) { return s.charge(ctx, r) }
func (s service) Watch(ctx context.Context, r *request, stream *connect.ServerStream[pay.ChargeResponse]) error {
	response, err := s.charge(ctx, r)
	if err != nil {
		return err
	}
	return stream.Send(response.Msg)
}

// charge is the business of the tests: one row for each run.
func (b *bundle) charge(ctx context.Context, r *request) (*response, error) {
	b.runs.Add(1)
	m := &pay.ChargeResponse{Amount: r.Msg.Amount, Labels: r.Msg.Labels}
	err := idemconnect.Tx(ctx).QueryRow(ctx, `insert into charges (account, amount) values ($1, $2) returning id`, b.account, r.Msg.Amount).Scan(&m.Id)
	return connect.NewResponse(m), err
}

// charging charges and then does what end does. So its error comes after an effect.
func (b *bundle) charging(end handler) handler {
	return func(ctx context.Context, r *request) (*response, error) {
		if _, err := b.charge(ctx, r); err != nil {
			return nil, err
		}
		return end(ctx, r)
	}
}

func done(context.Context, *request) (*response, error) {
	return connect.NewResponse(&pay.ChargeResponse{Id: 1, Amount: 10}), nil
}

// protocols are all that a handler speaks.
var protocols = map[string][]connect.ClientOption{
	"Connect":      nil,
	"Connect JSON": {connect.WithProtoJSON()},
	"gRPC":         {connect.WithGRPC()},
	"gRPC-Web":     {connect.WithGRPCWeb()},
}

// inEachProtocol runs a test for clients of each protocol, on one database.
func inEachProtocol(t *testing.T, test func(t *testing.T, b *bundle, protocol connect.ClientOption)) {
	t.Parallel()
	shared := setup(t)
	for name, options := range protocols {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, shared.sub(t), connect.WithClientOptions(options...))
		})
	}
}

// A client is a client of a server on a TCP port.
type client struct {
	payconnect.PaymentsClient
	*bundle
	server *httptest.Server
}

// serve starts a server, with HTTP/2 as gRPC needs it, and connects to it.
func (b *bundle) serve(charge handler, interceptors []connect.Interceptor, options ...connect.ClientOption) *client {
	b.Helper()
	mux := http.NewServeMux()
	mux.Handle(payconnect.NewPaymentsHandler(service{charge: charge}, connect.WithInterceptors(interceptors...)))
	server := httptest.NewUnstartedServer(mux)
	server.Config.ErrorLog = discardLog
	server.EnableHTTP2 = true
	server.StartTLS()
	b.Cleanup(server.Close)
	return &client{payconnect.NewPaymentsClient(server.Client(), server.URL, options...), b, server}
}

// protected serves methods behind an Interceptor.
func (b *bundle) protected(cfg idemconnect.Config, charge handler, options ...connect.ClientOption) *client {
	b.Helper()
	return b.serve(charge, []connect.Interceptor{b.interceptor(cfg)}, options...)
}

// An answer is what a client gets.
type answer struct {
	*pay.ChargeResponse
	err             error
	header, trailer http.Header // of an error, both in the trailer
}

func (b *bundle) request(r *pay.ChargeRequest, keys ...string) *request {
	out := connect.NewRequest(r)
	out.Header().Set("Account", b.account)
	for _, key := range keys {
		out.Header().Add("Idempotency-Key", key)
	}
	return out
}

// send calls Charge.
func (c *client) send(ctx context.Context, r *request) (a answer) {
	c.Helper()
	return answerOf(c.Charge(ctx, r))
}

func answerOf(got *response, err error) (a answer) {
	if a.err = err; err == nil {
		a.ChargeResponse, a.header, a.trailer = got.Msg, got.Header(), got.Trailer()
		return a
	}
	if e, ok := errors.AsType[*connect.Error](err); ok {
		a.trailer = e.Meta()
	}
	return a
}

// pay sends the call of most tests under a key.
func (c *client) pay(key string) answer {
	c.Helper()
	return c.send(c.Context(), c.request(tenEuros(), key))
}

func tenEuros() *pay.ChargeRequest {
	return &pay.ChargeRequest{Account: "a", Amount: 10}
}

// isReplay reports the mark of a replay, which is in the trailer alone.
func (a answer) isReplay() bool {
	return strings.Join(a.trailer["Idempotent-Replayed"], ",") == "true" && a.header.Get("Idempotent-Replayed") == ""
}

// is checks that the answer is a success, and whether it is a replay.
func (a answer) is(t testing.TB, amount int64, replayed bool) {
	t.Helper()
	if a.err != nil || a.GetAmount() != amount || a.GetId() == 0 || a.isReplay() != replayed {
		t.Errorf("got %v, %v, trailer %v; want %d, replayed %v", a.ChargeResponse, a.err, a.trailer, amount, replayed)
	}
}

// isError checks an error, and whether it is a replay.
func (a answer) isError(t testing.TB, code connect.Code, message string, replayed bool) *connect.Error {
	t.Helper()
	e, _ := errors.AsType[*connect.Error](a.err)
	if e.Code() != code || e.Message() != message || a.isReplay() != replayed {
		t.Errorf("got %v, metadata %v; want %v %q, replayed %v", a.err, a.trailer, code, message, replayed)
	}
	return e
}

// isRefusal checks a refusal of the Interceptor's: its code, its reason, and whether it
// tells how to retry if and only if a retry helps.
func (a answer) isRefusal(t testing.TB, code connect.Code, reason string) {
	t.Helper()
	e, ok := errors.AsType[*connect.Error](a.err)
	if !ok {
		t.Errorf("got %v, %v; want %v %s", a.ChargeResponse, a.err, code, reason)
		return
	}
	var info *errdetails.ErrorInfo
	var retry *errdetails.RetryInfo
	for _, d := range e.Details() {
		switch d := valueOf(t, d).(type) {
		case *errdetails.ErrorInfo:
			info = d
		case *errdetails.RetryInfo:
			retry = d
		}
	}
	if e.Code() != code || info.GetReason() != reason || info.GetDomain() != "github.com/pgidem/idempotency" || e.Message() == "" || a.isReplay() {
		t.Errorf("got %v with %v; want %v %s", a.err, info, code, reason)
	}
	after := strings.Join(e.Meta()["Retry-After"], ",") + strings.Join(e.Meta()["Grpc-Retry-Pushback-Ms"], ",")
	if helps := code == connect.CodeAborted || code == connect.CodeUnavailable; helps {
		if retry.GetRetryDelay().AsDuration().Seconds() != 1 || after != "1" && after != "1000" {
			t.Errorf("%v with %v, and %q in the metadata", a.err, retry, after)
		}
	} else if retry != nil || after != "" {
		t.Errorf("%v with %v, and %q in the metadata", a.err, retry, after)
	}
}

func valueOf(t testing.TB, d *connect.ErrorDetail) proto.Message {
	t.Helper()
	m, err := d.Value()
	if err != nil {
		t.Error(err)
	}
	return m
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
