package idemhttp_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemhttp"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// A bank charges cards: once for each idempotency key, whatever becomes of its answers.
type bank struct {
	*httptest.Server
	mu      sync.Mutex
	charges map[string]int // requests by key
	lose    atomic.Int64   // so many answers
	reached chan struct{}  // a request has come, if anybody listens
	wait    func()         // before it answers
}

func newBank(t testing.TB) *bank {
	b := &bank{charges: map[string]int{}, reached: make(chan struct{}), wait: func() {}}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		b.charges[r.Header.Get("Idempotency-Key")]++
		b.mu.Unlock()
		select {
		case b.reached <- struct{}{}:
		default:
		}
		b.wait()
		if b.lose.Add(-1) >= 0 {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, "ch_1")
	}))
	b.Config.ErrorLog = discardLog
	t.Cleanup(b.Close)
	return b
}

// charged checks that so many charges were made, and how many requests were sent for them.
func (b *bank) charged(t testing.TB, charges, requests int) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	sent := 0
	for _, n := range b.charges {
		sent += n
	}
	if len(b.charges) != charges || sent != requests {
		t.Errorf("%d charges by %d requests, want %d by %d", len(b.charges), sent, charges, requests)
	}
}

type order struct{ Bank, Item string }

type receipt struct{ Item, Charge string }

// buy is a step, a call to the bank and a step.
func (b *bundle) buy() idempotency.Procedure[order, receipt] {
	// On a connection that was used before, net/http sends such a request again by itself.
	client := &http.Client{Transport: &idemhttp.Transport{MaxAttempts: 1, Base: &http.Transport{DisableKeepAlives: true}}}
	return idempotency.Procedure[order, receipt]{Name: "buy", Run: func(ctx context.Context, op *idempotency.Op, in order) (receipt, error) {
		_, err := idempotency.Step(ctx, op, "create", func(ctx context.Context, tx pgx.Tx) (bool, error) {
			b.charge(ctx, tx)
			return true, nil
		})
		if err != nil {
			return receipt{}, err
		}
		charge, err := idempotency.Call(ctx, op, "charge", func(ctx context.Context, key string) (string, error) {
			req, err := http.NewRequestWithContext(idemhttp.WithKey(ctx, key), "POST", in.Bank, nil)
			if err != nil {
				return "", err
			}
			resp, err := client.Do(req)
			if err != nil {
				return "", err
			}
			defer resp.Body.Close()
			id, err := io.ReadAll(resp.Body)
			return string(id), err
		})
		if err != nil {
			return receipt{}, err
		}
		return idempotency.Step(ctx, op, "confirm", func(ctx context.Context, tx pgx.Tx) (receipt, error) {
			return receipt{Item: in.Item, Charge: charge}, nil
		})
	}}
}

// shop serves a procedure. Its path says what is ordered.
func (b *bundle) shop(cfg idemhttp.Config, p idempotency.Procedure[order, receipt], bank *bank) *httptest.Server {
	b.Helper()
	return b.serve(idemhttp.Procedure(b.middleware(cfg), p,
		func(w http.ResponseWriter, r *http.Request) (order, bool) {
			if r.Header.Get("Authorization") == "revoked" {
				http.Error(w, "who are you?", http.StatusUnauthorized)
				return order{}, false
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				b.Error(err)
			}
			return order{Bank: bank.URL, Item: string(body)}, true
		},
		func(w http.ResponseWriter, _ *http.Request, r receipt) {
			w.Header().Set("X-Charge", r.Charge)
			w.WriteHeader(http.StatusCreated)
			fmt.Fprintf(w, "%s for %s", r.Item, r.Charge)
		}))
}

// openShop is what most tests begin with.
func openShop(t testing.TB) (*bundle, *bank, *httptest.Server) {
	b, bank := setup(t), newBank(t)
	return b, bank, b.shop(idemhttp.Config{}, b.buy(), bank)
}

func (b *bundle) order(server *httptest.Server, key string) answer {
	b.Helper()
	return b.do(server, "POST", "/orders", "tea", withKey(key))
}

func TestProcedureRunsOnceAndEveryAnswerIsRenderedFromItsResult(t *testing.T) {
	t.Parallel()
	b, bank, server := openShop(t)
	for i := range 3 {
		got := b.order(server, "k")
		got.is(t, 201, "tea for ch_1", i > 0)
		if got.Header.Get("X-Charge") != "ch_1" {
			t.Error(got.Header)
		}
	}
	b.effects(1)
	bank.charged(t, 1, 1)
	b.do(server, "POST", "/orders", "coffee", withKey("k")).isProblem(t, 422, "key-reused")
	b.do(server, "POST", "/orders", "tea", nil).isProblem(t, 400, "key-missing")
	b.do(server, "PUT", "/orders", "tea", withKey("k")).isProblem(t, 405, "not-protected")
	bank.charged(t, 1, 1)
}

func TestKeyOfAnotherRequestIsAskedForOnce(t *testing.T) {
	t.Parallel()
	b, bank := setup(t), newBank(t)
	var calls atomic.Int64
	b.store = b.storeOn(b.pool, idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) {
		if e.Operation == "Procedure" {
			calls.Add(1)
		}
	}})
	server := b.shop(idemhttp.Config{}, b.buy(), bank)
	b.order(server, "k").is(t, 201, "tea for ch_1", false)
	b.do(server, "POST", "/orders", "coffee", withKey("k")).isProblem(t, 422, "key-reused")
	if n := calls.Load(); n != 2 {
		t.Errorf("%d calls for two requests", n)
	}
}

func TestRequestWhoseProcedureStopsIsUnfinishedAndTheRetryGoesOn(t *testing.T) {
	t.Parallel()
	b, bank, server := openShop(t)
	bank.lose.Store(2)
	for range 2 {
		got := b.order(server, "k")
		got.isProblem(t, 503, "unfinished")
		if !strings.Contains(b.reports(), "EOF") {
			t.Errorf("reported: %s", b.reports())
		}
	}
	b.do(server, "POST", "/orders", "coffee", withKey("k")).isProblem(t, 422, "key-reused")
	b.order(server, "k").is(t, 201, "tea for ch_1", false)
	b.order(server, "k").is(t, 201, "tea for ch_1", true)
	b.effects(1)
	bank.charged(t, 1, 3) // with the same key
}

func TestRequestWhoseContextEndsInACallIsUnfinishedToo(t *testing.T) {
	t.Parallel()
	b, bank, protected := openShop(t)
	bank.lose.Store(1)
	ended := make(chan struct{})
	end := sync.OnceFunc(func() { close(ended) })
	t.Cleanup(end) // before the bank closes
	bank.wait = func() { <-ended }
	server := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context()) // of a server in front
		defer cancel()
		go func() {
			<-bank.reached
			cancel()
			end()
		}()
		protected.Config.Handler.ServeHTTP(w, r.WithContext(ctx))
	}))
	b.order(server, "k").isProblem(t, 503, "unfinished")
	b.order(protected, "k").is(t, 201, "tea for ch_1", false)
	b.effects(1)
	bank.charged(t, 1, 2)
}

func TestTransportGoesOnWithAProcedureUntilItEnds(t *testing.T) {
	t.Parallel()
	b, bank, server := openShop(t)
	bank.lose.Store(1)
	server.Client().Transport = &idemhttp.Transport{Base: server.Client().Transport}
	b.do(server, "POST", "/orders", "tea", nil).is(t, 201, "tea for ch_1", false)
	b.effects(1)
	bank.charged(t, 1, 2)
}

func TestCompleterNeedsNoRequest(t *testing.T) {
	t.Parallel()
	b, bank, server := openShop(t)
	bank.lose.Store(1)
	b.order(server, "k").isProblem(t, 503, "unfinished")
	if n, err := b.store.Complete(t.Context(), 0, b.buy()); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	b.order(server, "k").is(t, 201, "tea for ch_1", true)
	b.effects(1)
	bank.charged(t, 1, 2)
}

// A retry is decoded, and so its sender is checked, as the first request is.
func TestRequestThatIsNotDecodedClaimsNothingAndGetsNoReplay(t *testing.T) {
	t.Parallel()
	b, _, server := openShop(t)
	revoked := func(r *http.Request) {
		withKey("k")(r)
		r.Header.Set("Authorization", "revoked")
	}
	b.do(server, "POST", "/orders", "tea", revoked).is(t, 401, "who are you?\n", false)
	b.effects(0)
	b.order(server, "k").is(t, 201, "tea for ch_1", false)
	b.do(server, "POST", "/orders", "tea", revoked).is(t, 401, "who are you?\n", false)
}

func TestCallThatIsTooOldIsForAPersonAndTheRetryGoesOnAfterwards(t *testing.T) {
	t.Parallel()
	b, bank, server := openShop(t)
	bank.lose.Store(1)
	b.order(server, "k").isProblem(t, 503, "unfinished")
	if _, err := b.pool.Exec(t.Context(), "update idempotency_operations set progressed_at = progressed_at - interval '2 days'"); err != nil {
		t.Fatal(err)
	}
	got := b.order(server, "k")
	got.isProblem(t, 500, "stuck")
	if !strings.Contains(got.body, "before somebody has looked") || !strings.Contains(got.body, "A new key could execute it twice") {
		t.Error(got.body)
	}
	bank.charged(t, 1, 1)
	if err := b.store.Settle(t.Context(), idempotency.Key{Scope: b.account, ID: "k"}, "charge", "ch_by_hand"); err != nil {
		t.Fatal(err)
	}
	b.order(server, "k").is(t, 201, "tea for ch_by_hand", false)
	bank.charged(t, 1, 1)
}

func TestOperationOfOtherStepsIsNotGoneOnWith(t *testing.T) {
	t.Parallel()
	b, bank := setup(t), newBank(t)
	bank.lose.Store(1)
	b.order(b.shop(idemhttp.Config{}, b.buy(), bank), "k").isProblem(t, 503, "unfinished")
	changed := b.buy()
	changed.Run = func(ctx context.Context, op *idempotency.Op, in order) (receipt, error) {
		return idempotency.Step(ctx, op, "another", func(context.Context, pgx.Tx) (receipt, error) { return receipt{}, nil })
	}
	got := b.order(b.shop(idemhttp.Config{}, changed, bank), "k")
	got.isProblem(t, 500, "stuck")
	if !strings.Contains(got.body, "has changed") {
		t.Error(got.body)
	}
}

func TestProcedureThatKeepsNothingSaysSo(t *testing.T) {
	t.Parallel()
	b, bank := setup(t), newBank(t)
	for _, test := range []struct {
		err    error
		status int
		name   string
	}{
		{errors.New("no such item"), 500, "failed"},
		{fmt.Errorf("asking: %w", context.DeadlineExceeded), 503, "unavailable"},
	} {
		p := b.buy()
		p.Run = func(context.Context, *idempotency.Op, order) (receipt, error) { return receipt{}, test.err }
		b.order(b.shop(idemhttp.Config{}, p, bank), "k").isProblem(t, test.status, test.name)
		if !strings.Contains(b.reports(), test.err.Error()) {
			t.Errorf("reported: %s", b.reports())
		}
	}
	b.order(b.shop(idemhttp.Config{}, b.buy(), bank), "k").is(t, 201, "tea for ch_1", false)
}

func TestProcedureWithoutADatabaseIsNotSaidToHaveKeptNothing(t *testing.T) {
	t.Parallel()
	b, bank := setup(t), newBank(t)
	pool := pgtest.New(t)
	b.store = b.storeOn(pool, idempotency.Config{})
	server := b.shop(idemhttp.Config{}, b.buy(), bank)
	pool.Close()
	b.order(server, "k").isProblem(t, 503, "outcome-unknown")
}

func TestUnfinishedRequestIsRecognisedUnderAnotherFingerprintKey(t *testing.T) {
	t.Parallel()
	b, bank := setup(t), newBank(t)
	first, second := []byte("0123456789abcdef"), []byte("fedcba9876543210")
	for i, keys := range [][][]byte{nil, {first, nil}, {second, first}} {
		bank.lose.Store(1)
		b.order(b.shop(idemhttp.Config{FingerprintKeys: keys}, b.buy(), bank), fmt.Sprint("k", i)).isProblem(t, 503, "unfinished")
		if i > 0 {
			b.order(b.shop(idemhttp.Config{FingerprintKeys: keys}, b.buy(), bank), fmt.Sprint("k", i-1)).is(t, 201, "tea for ch_1", false)
			b.order(b.shop(idemhttp.Config{FingerprintKeys: keys}, b.buy(), bank), fmt.Sprint("k", i-1)).is(t, 201, "tea for ch_1", true)
		}
	}
	keys := [][]byte{second, first}
	b.do(b.shop(idemhttp.Config{FingerprintKeys: keys}, b.buy(), bank), "POST", "/orders", "coffee", withKey("k1")).isProblem(t, 422, "key-reused")
	bank.charged(t, 3, 5)
}

func TestClientThatGoesDoesNotStopAProcedureThatIsToFinish(t *testing.T) {
	t.Parallel()
	for finish, want := range map[bool]bool{true: true, false: false} {
		t.Run(fmt.Sprint("FinishDisconnected ", finish), func(t *testing.T) {
			t.Parallel()
			b, bank := setup(t), newBank(t)
			gone := make(chan struct{})
			bank.wait = func() { <-gone }
			server := b.shop(idemhttp.Config{FinishDisconnected: finish}, b.buy(), bank)
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				<-bank.reached
				cancel()
				time.Sleep(50 * time.Millisecond) // for the server to notice
				close(gone)
			}()
			_, err := b.try(server, "POST", "/orders", "tea", func(r *http.Request) {
				withKey("k")(r)
				*r = *r.WithContext(ctx)
			})
			if err == nil {
				t.Fatal("the client did not go")
			}
			server.Close() // waits for the request
			b.order(b.shop(idemhttp.Config{}, b.buy(), bank), "k").is(t, 201, "tea for ch_1", want)
			b.effects(1)
			bank.charged(t, 1, 1) // the call was recorded all the same
		})
	}
}

func TestParallelRequestOfAProcedureWaitsOrIsTurnedAway(t *testing.T) {
	t.Parallel()
	b, bank := setup(t), newBank(t)
	answer := make(chan struct{})
	bank.wait = func() { <-answer }
	waiting := b.shop(idemhttp.Config{}, b.buy(), bank)
	impatient := b.sub(t)
	impatient.account = b.account
	impatient.store = b.storeOn(b.pool, idempotency.Config{Wait: -1})
	hasty := impatient.shop(idemhttp.Config{}, b.buy(), bank)
	var calls sync.WaitGroup
	calls.Go(func() { b.order(waiting, "k").is(t, 201, "tea for ch_1", false) })
	<-bank.reached
	b.order(hasty, "k").isProblem(t, 409, "in-progress")
	close(answer)
	b.order(waiting, "k").is(t, 201, "tea for ch_1", true)
	calls.Wait()
	bank.charged(t, 1, 1)
}

func TestKeyOfAnUnfinishedProcedureIsUnfinishedForAHandlerToo(t *testing.T) {
	t.Parallel()
	b, bank := setup(t), newBank(t)
	bank.lose.Store(1)
	b.order(b.shop(idemhttp.Config{}, b.buy(), bank), "k").isProblem(t, 503, "unfinished")
	server := b.protected(idemhttp.Config{}, func(w http.ResponseWriter, _ *http.Request) { t.Error("executed") })
	b.order(server, "k").isProblem(t, 503, "unfinished")
}

func TestProcedureInsideOfAnotherMiddlewareIsRefused(t *testing.T) {
	t.Parallel()
	b, bank := setup(t), newBank(t)
	m := b.middleware(idemhttp.Config{})
	inner := idemhttp.Procedure(m, b.buy(),
		func(http.ResponseWriter, *http.Request) (order, bool) { return order{Bank: bank.URL}, true },
		func(http.ResponseWriter, *http.Request, receipt) {})
	b.order(b.serve(m.Handler(inner)), "k").isProblem(t, 500, "failed")
	if !strings.Contains(b.reports(), "inside of another Middleware") {
		t.Error(b.reports())
	}
	bank.charged(t, 0, 0)
}

func TestPanicOfAProcedureGoesOnToTheServerAndTheRetryGoesOn(t *testing.T) {
	t.Parallel()
	b, bank := setup(t), newBank(t)
	p, run := b.buy(), b.buy().Run
	broken := true
	p.Run = func(ctx context.Context, op *idempotency.Op, in order) (receipt, error) {
		out, err := run(ctx, op, in)
		if broken {
			panic(http.ErrAbortHandler)
		}
		return out, err
	}
	server := b.shop(idemhttp.Config{}, p, bank)
	if _, err := b.try(server, "POST", "/orders", "tea", withKey("k")); err == nil {
		t.Error("an answer")
	}
	broken = false
	b.order(server, "k").is(t, 201, "tea for ch_1", false)
	bank.charged(t, 1, 1)
}
