package main

import (
	"strings"
	"testing"

	"github.com/pgidem/idempotency/idemhttp"
)

const receipt25 = `{"id":1,"account":"alice","reference":"order-1","amount":2500,"balance":7500}`

func TestChargeSentAgainTakesTheMoneyOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.do(charge25("k"))
	first.is(t, 201, receipt25, false)
	again := b.do(charge25("k"))
	again.is(t, 201, receipt25, true)
	if first.Header.Get("Location") != "/charges/1" || again.Header.Get("Location") != "/charges/1" {
		t.Errorf("Location %q, then %q", first.Header.Get("Location"), again.Header.Get("Location"))
	}
	b.wantLedger(ledger{Charges: 1, Taken: 25_00, Left: 85_00, Keys: 1})
}

func TestChargeAndAccountCanBeRead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.do(charge25("k"))
	for path, want := range map[string][]string{
		"/charges/1": {`{"id":1,"reference":"order-1","amount":2500,"created_at":"`},
		"/account":   {`{"account":"alice","opening":10000,"balance":7500,"charges":[{"id":1,`},
	} {
		a := b.do(request{method: "GET", path: path})
		if a.StatusCode != 200 || !strings.HasPrefix(a.body, want[0]) {
			t.Errorf("%s: %d %s", path, a.StatusCode, a.body)
		}
	}
	b.do(request{method: "GET", path: "/account", header: []string{"Authorization", "bearer bob-secret"}}).
		is(t, 200, `{"account":"bob","opening":1000,"balance":1000,"charges":[]}`, false)
}

func TestRefusalIsRecordedAndItsWritesAreNot(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tooMuch := request{method: "POST", path: "/charges", key: "k", body: `{"amount": 10001}`}
	first := b.do(tooMuch)
	first.isProblem(t, 402, "declined")
	again := b.do(tooMuch)
	again.isProblem(t, 402, "declined")
	if again.body != first.body || again.Header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("the retry got %v %s", again.Header, again.body)
	}
	b.wantLedger(ledger{Left: 110_00, Declines: 1, Keys: 1})
}

func TestKeysOfTwoAccountsDoNotMeet(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.do(charge25("k")).is(t, 201, receipt25, false)
	b.do(request{method: "POST", path: "/charges", key: "k", body: `{"amount": 100}`, header: []string{"Authorization", "Bearer bob-secret"}}).
		is(t, 201, `{"id":2,"account":"bob","reference":"","amount":100,"balance":900}`, false)
	b.wantLedger(ledger{Charges: 2, Taken: 26_00, Left: 84_00, Keys: 2})
}

func TestWhatIsWrongWithARequestIsAProblem(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.do(charge25("k"))
	post := func(body string) request {
		return request{method: "POST", path: "/charges", key: idemhttp.NewID(), body: body}
	}
	bob := []string{"Authorization", "Bearer bob-secret"}
	for _, tt := range []struct {
		name   string
		q      request
		status int
		kind   string
		says   string
	}{
		{"no API key", request{method: "GET", path: "/account", header: []string{"Authorization", ""}}, 401, "unauthenticated", "Bearer"},
		{"an unknown API key", request{method: "GET", path: "/account", header: []string{"Authorization", "Bearer x"}}, 401, "unauthenticated", "Bearer"},
		{"another scheme", request{method: "GET", path: "/account", header: []string{"Authorization", "Basic alice-secret"}}, 401, "unauthenticated", "Bearer"},
		{"a charge of nobody", request{method: "POST", path: "/charges", key: "k", header: []string{"Authorization", ""}}, 401, "unauthenticated", "Bearer"},
		{"no idempotency key", charge25(""), 400, "key-missing", "Idempotency-Key"},
		{"a key that is none", charge25("a b"), 400, "key-invalid", "Idempotency-Key"},
		{"the key of another request", request{method: "POST", path: "/charges", key: "k", body: `{"amount": 1}`}, 422, "key-reused", "new key"},
		{"no JSON", post("amount=1"), 400, "invalid", "JSON"},
		{"an empty body", request{method: "POST", path: "/charges", key: "empty"}, 400, "invalid", "JSON"},
		{"a misspelt field", post(`{"ammount": 1}`), 400, "invalid", `unknown field \"ammount\"`},
		{"two documents", post(`{"amount": 1}{}`), 400, "invalid", "nothing after it"},
		{"no amount", post(`{}`), 400, "invalid", "amount has to be"},
		{"a negative amount", post(`{"amount": -1}`), 400, "invalid", "amount has to be"},
		{"half a cent", post(`{"amount": 0.5}`), 400, "invalid", "JSON"},
		{"a long reference", post(`{"amount": 1, "reference": "` + strings.Repeat("é", 101) + `"}`), 400, "invalid", "100 characters"},
		{"a NUL", post(`{"reference": "\u0000", "amount": 1}`), 400, "invalid", "NUL"},
		{"a large body", post(strings.Repeat(" ", maxBody+1)), 413, "body-too-large", "16384"},
		{"another's charge", request{method: "GET", path: "/charges/1", header: bob}, 404, "not-found", ""},
		{"no charge", request{method: "GET", path: "/charges/9999"}, 404, "not-found", ""},
		{"no number", request{method: "GET", path: "/charges/one"}, 404, "not-found", ""},
		{"no path", request{method: "GET", path: "/carges"}, 404, "not-found", ""},
		{"no such method", request{method: "PUT", path: "/charges", key: "k"}, 405, "wrong-method", "POST"},
		{"a charge is final", request{method: "DELETE", path: "/charges/1"}, 405, "wrong-method", "GET"},
		{"a ride of nobody", request{method: "POST", path: "/rides", key: "k", header: []string{"Authorization", ""}}, 401, "unauthenticated", "Bearer"},
		{"a ride without a key", ride20(""), 400, "key-missing", "Idempotency-Key"},
		{"a ride without an amount", request{method: "POST", path: "/rides", key: "ride", body: `{"card": "visa"}`}, 400, "invalid", "amount has to be"},
		{"a ride without a card", request{method: "POST", path: "/rides", key: "ride", body: `{"amount": 1}`}, 400, "invalid", "card has to be"},
		{"a ride with something else", request{method: "POST", path: "/rides", key: "ride", body: `{"fare": 1}`}, 400, "invalid", `unknown field \"fare\"`},
		{"a ride is ordered", request{method: "GET", path: "/rides"}, 405, "wrong-method", "POST"},
		{"an account is read", request{method: "POST", path: "/account"}, 405, "wrong-method", "GET"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := b.do(tt.q)
			a.isProblem(t, tt.status, tt.kind)
			if !strings.Contains(a.body, tt.says) {
				t.Errorf("it does not say %q: %s", tt.says, a.body)
			}
			if (a.Header.Get("WWW-Authenticate") != "") != (tt.status == 401) || (a.Header.Get("Allow") != "") != (tt.status == 405) {
				t.Errorf("%d with %v", tt.status, a.Header)
			}
		})
	}
	const charges = `select (select count(*) from charges) + (select count(*) from rides) + (select count(*) from idempotency_operations)`
	var n int
	if err := b.pool.QueryRow(t.Context(), charges).Scan(&n); err != nil || n != 1 {
		t.Errorf("%d charges, %v", n, err)
	}
}

func TestFaultOfTheServiceKeepsNothingAndTheRetryExecutes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec(`alter table charges rename column reference to ref`)
	a := b.do(charge25("k"))
	a.isProblem(t, 500, "failed")
	if strings.Contains(a.body, "reference") {
		t.Errorf("the client is told of the tables: %s", a.body)
	}
	b.wantLedger(ledger{Left: 110_00})
	b.exec(`alter table charges rename column ref to reference`)
	b.do(charge25("k")).is(t, 201, receipt25, false)
}

func TestPolicyIsPublished(t *testing.T) {
	t.Parallel()
	a := setup(t).do(request{method: "GET", path: "/.well-known/idempotency-policy"})
	if a.StatusCode != 200 || !strings.Contains(a.body, `"header": "Idempotency-Key"`) {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}

func TestWithoutTheMiddlewareARetryChargesAgain(t *testing.T) {
	t.Parallel()
	cards := spawnCards(t)
	b := setup(t, func(cfg *config) { cfg.UnsafeNoIdempotency, cfg.Provider = true, cards.url })
	b.do(ride20("k")).is(t, 201, paid20, false)
	b.do(ride20("k")).is(t, 201, strings.NewReplacer(`:1`, `:2`, "ch_1", "ch_2").Replace(paid20), false)
	b.wantRides(rideLedger{Rides: 2, Paid: 2, Keys: 2})
	b.exec(`truncate idempotency_keys`)

	b.do(charge25("k")).is(t, 201, receipt25, false)
	b.do(charge25("k")).is(t, 201, `{"id":2,"account":"alice","reference":"order-1","amount":2500,"balance":5000}`, false)
	b.wantLedger(ledger{Charges: 2, Taken: 50_00, Left: 60_00})

	// But each transaction is right: one that cannot commit is no success.
	b.exec(`create table nothing (id text primary key)`)
	b.exec(`alter table charges add foreign key (reference) references nothing deferrable initially deferred not valid`)
	if a, err := b.try(charge25("k")); err == nil {
		t.Errorf("got %d %s", a.StatusCode, a.body)
	}
	b.wantLedger(ledger{Charges: 2, Taken: 50_00, Left: 60_00})
}
