package idempotency_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

type fare struct {
	Rider    string
	Amount   int
	Provider string // its URL
}

type receipt struct {
	Ride    int
	Charge  string
	Refused bool
}

// takeRide is a step, a call and a step.
var takeRide = idempotency.Procedure[fare, receipt]{
	Name: "take ride",
	Run: func(ctx context.Context, op *idempotency.Op, in fare) (receipt, error) {
		ride, err := idempotency.Step(ctx, op, "create", func(ctx context.Context, tx pgx.Tx) (id int, err error) {
			err = tx.QueryRow(ctx, "insert into rides (rider, amount) values ($1, $2) returning id", in.Rider, in.Amount).Scan(&id)
			return id, err
		})
		if err != nil {
			return receipt{}, err
		}
		charge, err := idempotency.Call(ctx, op, "charge", func(ctx context.Context, key string) (payment, error) {
			return pay(ctx, in.Provider, key, payment{Rider: in.Rider, Amount: in.Amount})
		})
		if err != nil {
			return receipt{}, err
		}
		return idempotency.Step(ctx, op, "confirm", func(ctx context.Context, tx pgx.Tx) (receipt, error) {
			if charge.Declined {
				_, err := tx.Exec(ctx, "update rides set state = 'refused' where id = $1", ride)
				return receipt{Ride: ride, Refused: true}, err
			}
			_, err := tx.Exec(ctx, "update rides set state = 'paid', charge = $2 where id = $1", ride, charge.ID)
			return receipt{Ride: ride, Charge: charge.ID}, err
		})
	},
}

// A provider is somebody else's service, which keeps idempotency keys.
type provider struct {
	*httptest.Server
	mu       sync.Mutex
	charges  map[string]int // by rider: how many took effect
	answers  map[string]payment
	inFlight map[string]int
	requests atomic.Int64
	overlaps atomic.Int64                  // requests with a key that was in progress
	delay    atomic.Int64                  // a time.Duration
	lose     atomic.Int64                  // how many answers of a hundred are lost
	hooks    map[string]func(stage string) // by rider: "received", "charged"
}

type payment struct {
	ID       string
	Rider    string
	Amount   int
	Declined bool
}

func newProvider(t testing.TB) *provider {
	p := &provider{charges: map[string]int{}, answers: map[string]payment{}, inFlight: map[string]int{}, hooks: map[string]func(string){}}
	p.Server = httptest.NewServer(p)
	t.Cleanup(func() { p.CloseClientConnections(); p.Close() })
	return p
}

func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Idempotency-Key")
	var asked payment
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || len(key) != 36 {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	hook, ok := p.arrives(key, asked.Rider)
	defer p.leaves(key)
	if !ok {
		http.Error(w, "in progress", http.StatusConflict)
		return
	}
	hook("received")
	time.Sleep(time.Duration(p.delay.Load()))
	answer, ok := p.charge(key, asked)
	if !ok {
		http.Error(w, "another request", http.StatusUnprocessableEntity)
		return
	}
	hook("charged")
	if rand.Int64N(100) < p.lose.Load() {
		panic(http.ErrAbortHandler)
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// onStage has hook called at the stages of a rider's requests.
func (p *provider) onStage(rider string, hook func(stage string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hooks[rider] = hook
}

func (p *provider) arrives(key, rider string) (hook func(string), ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests.Add(1)
	p.inFlight[key]++
	if hook = p.hooks[rider]; hook == nil {
		hook = func(string) {}
	}
	if p.inFlight[key] > 1 {
		p.overlaps.Add(1)
		return hook, false
	}
	return hook, true
}

func (p *provider) leaves(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inFlight[key]--
}

func (p *provider) charge(key string, asked payment) (answer payment, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	answer, known := p.answers[key]
	if known {
		return answer, answer.Rider == asked.Rider && answer.Amount == asked.Amount
	}
	asked.ID = fmt.Sprintf("ch_%d", p.requests.Load())
	if asked.Declined = asked.Amount > 1000; !asked.Declined {
		p.charges[asked.Rider]++
	}
	p.answers[key] = asked
	return asked, true
}

// pay asks the provider.
func pay(ctx context.Context, url, key string, asked payment) (answer payment, err error) {
	body, _ := json.Marshal(asked)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return answer, err
	}
	req.Header.Set("Idempotency-Key", key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		return answer, errors.New("provider: " + resp.Status + ": " + strings.TrimSpace(string(text)))
	}
	return answer, json.NewDecoder(resp.Body).Decode(&answer)
}

// A journey is a bundle with rides and their provider.
type journey struct {
	*bundle
	p *provider
}

const ridesSQL = `create table rides (id int generated always as identity primary key, rider text not null, amount int not null, state text not null default 'new', charge text)`

func setupRides(t testing.TB, cfg idempotency.Config, opts ...pgtest.Option) *journey {
	t.Helper()
	j := &journey{setup(t, cfg, opts...), newProvider(t)}
	j.exec(ridesSQL)
	return j
}

// in is j in a subtest.
func (j *journey) in(t testing.TB) *journey {
	b := *j.bundle
	b.TB = t
	return &journey{&b, j.p}
}

func rideKey(id string) idempotency.Key {
	return idempotency.Key{Scope: "rides", ID: id, Fingerprint: idempotency.FingerprintOf([]byte(id))}
}

func (j *journey) ride(id string) (receipt, bool, error) { return j.rideOn(j.store, id, 20) }

func (j *journey) rideOn(store *idempotency.Store, id string, amount int) (receipt, bool, error) {
	return takeRide.Do(context.Background(), store, rideKey(id), fare{Rider: id, Amount: amount, Provider: j.p.URL})
}

// once checks that each ride was made, charged and confirmed once.
func (j *journey) once(rides int) {
	j.Helper()
	for what, sql := range map[string]string{
		"rides":   "select count(*) from rides",
		"paid":    "select count(*) from rides where state = 'paid' and charge is not null",
		"results": "select count(*) from idempotency_keys where result is not null and expires_at is not null",
		"keys":    "select count(*) from idempotency_keys",
	} {
		if n := query[int](j.bundle, sql); n != rides {
			j.Errorf("%d %s, want %d", n, what, rides)
		}
	}
	if n := query[int](j.bundle, "select count(*) from idempotency_operations"); n != 0 {
		j.Errorf("%d operations have not ended", n)
	}
	j.p.mu.Lock()
	defer j.p.mu.Unlock()
	if len(j.p.charges) != rides {
		j.Errorf("%d riders were charged, want %d", len(j.p.charges), rides)
	}
	for rider, n := range j.p.charges {
		if n != 1 {
			j.Errorf("rider %s was charged %d times", rider, n)
		}
	}
}

// next calls again until there is an answer.
func (j *journey) next(id string) receipt {
	j.Helper()
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		got, _, err := j.ride(id)
		if err == nil {
			return got
		}
		if time.Since(start) > 30*time.Second {
			j.Fatal("no answer: ", err)
		}
	}
}

func TestProcedureRunsOnceAndReplays(t *testing.T) {
	t.Parallel()
	j := setupRides(t, idempotency.Config{})
	first, replayed, err := j.ride("a")
	if err != nil || replayed || first.Charge == "" {
		t.Fatal(first, replayed, err)
	}
	for range 2 {
		j.store.Forget(rideKey("a"))
		for range 2 {
			again, replayed, err := j.ride("a")
			if err != nil || !replayed || again != first {
				t.Error(again, replayed, err)
			}
		}
	}
	j.once(1)
	if j.p.requests.Load() != 1 {
		t.Errorf("%d requests", j.p.requests.Load())
	}
}

func TestRefusalIsAValueOfACall(t *testing.T) {
	t.Parallel()
	j := setupRides(t, idempotency.Config{})
	for i := range 3 {
		got, replayed, err := j.rideOn(j.store, "a", 5000)
		if err != nil || !got.Refused || replayed != (i > 0) {
			t.Error(got, replayed, err)
		}
	}
	if n := query[int](j.bundle, "select count(*) from rides where state = 'refused'"); n != 1 || len(j.p.charges) != 0 || j.p.requests.Load() != 1 {
		t.Error(n, j.p.charges, j.p.requests.Load())
	}
}

func TestProcedureGoesOnAfterTheLastRecordedStep(t *testing.T) {
	t.Parallel()
	j := setupRides(t, idempotency.Config{})
	j.p.lose.Store(100)
	for range 2 {
		if _, _, err := j.ride("a"); err == nil {
			t.Fatal("no error")
		}
	}
	j.p.lose.Store(0)
	if _, replayed, err := j.ride("a"); replayed || err != nil {
		t.Error(replayed, err)
	}
	j.once(1)
	if j.p.requests.Load() != 3 {
		t.Errorf("%d requests", j.p.requests.Load())
	}
}
