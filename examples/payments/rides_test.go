package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/pgtest"
)

const (
	paid20   = `{"id":1,"account":"alice","amount":2000,"state":"paid","charge":"ch_1"}`
	charged  = "ch_1: charged 20.00 on the card visa\n"
	charged2 = "ch_2: charged 20.00 on the card visa\n"
	again    = "ch_1: the same key again, the same answer\n"

	// nowhere is where no provider listens.
	nowhere = "http://127.0.0.1:1"
)

func ride20(key string) request {
	return request{method: "POST", path: "/rides", key: key, body: `{"amount": 2000, "card": "visa"}`}
}

// Cards are a card provider, as a process.
type cards struct {
	testing.TB
	url string
	out string // the file in which is what it has printed
}

func spawnCards(t testing.TB, flags ...string) *cards {
	t.Helper()
	c := &cards{TB: t, out: filepath.Join(t.TempDir(), "out")}
	out, err := os.Create(c.out)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(os.Args[0], append([]string{"provider", "-addr", "127.0.0.1:0"}, flags...)...)
	cmd.Stdout = out
	c.url = startProcess(t, cmd)
	return c
}

func (c *cards) printed() string {
	text, err := os.ReadFile(c.out)
	if err != nil {
		c.Error(err)
	}
	return string(text)
}

func (c *cards) want(printed string) {
	c.Helper()
	if got := c.printed(); got != printed {
		c.Errorf("the card provider has printed\n%swant\n%s", got, printed)
	}
}

// A rideLedger is what the tables say of rides.
type rideLedger struct{ Rides, Paid, Declined, Unfinished, Keys int64 }

func (b *bundle) wantRides(want rideLedger) {
	b.Helper()
	const sql = `
select (select count(*) from rides), (select count(*) from rides where state = 'paid'),
	(select count(*) from rides where state = 'declined'), (select count(*) from idempotency_operations),
	(select count(*) from idempotency_keys)`
	rows, _ := b.pool.Query(b.Context(), sql)
	got, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[rideLedger])
	if err != nil {
		b.Fatal(err)
	}
	if got != want {
		b.Errorf("the tables say %+v, want %+v", got, want)
	}
}

func TestRideWhoseProcessIsKilledInsideTheProvidersCallIsChargedOnce(t *testing.T) {
	t.Parallel()
	cards, pool := spawnCards(t, "-silent", "1"), pgtest.Empty(t)
	killed, cmd := spawnOn(t, pool, cards.url)
	other, _ := spawnOn(t, pool, cards.url)
	var sent sync.WaitGroup
	sent.Go(func() {
		if a, err := killed.try(ride20("k")); err == nil {
			t.Errorf("the killed process has answered %d %s", a.StatusCode, a.body)
		}
	})
	eventually(t, "the card is charged", func() bool { return cards.printed() == charged })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	sent.Wait()
	other.wantRides(rideLedger{Rides: 1, Unfinished: 1, Keys: 1})

	other.untilServed(ride20("k"), "unfinished").is(t, 201, paid20, false)
	other.do(ride20("k")).is(t, 201, paid20, true)
	cards.want(charged + again)
	other.wantRides(rideLedger{Rides: 1, Paid: 1, Keys: 1})
}

func TestRideThatNoClientComesBackForIsFinishedByAnotherProcess(t *testing.T) {
	t.Parallel()
	cards, pool := spawnCards(t), pgtest.Empty(t)
	alone, _ := spawnOn(t, pool, nowhere)
	other, _ := spawnOn(t, pool, cards.url, "-abandoned", "200ms")
	for _, key := range []string{"k", "l"} { // the second is not there when the process first looks
		// It is "unfinished", or "outcome-unknown" if the other process is that fast.
		if a := alone.do(ride20(key)); a.StatusCode != 503 || a.Header.Get("Retry-After") == "" {
			t.Errorf("got %d %v", a.StatusCode, a.Header)
		}
		eventually(t, "nothing is unfinished", func() bool {
			var n int
			if err := pool.QueryRow(t.Context(), `select count(*) from idempotency_operations`).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n == 0
		})
	}
	cards.want(charged + charged2)
	other.wantRides(rideLedger{Rides: 2, Paid: 2, Keys: 2})
	alone.do(ride20("k")).is(t, 201, paid20, true)
}

func TestRideWhoseProviderIsDownGoesOnWithTheRetryWhenItIsUp(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	down, _ := spawnOn(t, pool, nowhere)
	for range 2 {
		down.do(ride20("k")).isProblem(t, 503, "unfinished")
		down.wantRides(rideLedger{Rides: 1, Unfinished: 1, Keys: 1})
	}
	cards := spawnCards(t)
	up, _ := spawnOn(t, pool, cards.url)
	up.do(ride20("k")).is(t, 201, paid20, false)
	cards.want(charged)
	up.wantRides(rideLedger{Rides: 1, Paid: 1, Keys: 1})
}

func TestCardThatTheProviderDeclinesIsTheRecordedAnswer(t *testing.T) {
	t.Parallel()
	cards := spawnCards(t)
	b := setup(t, func(cfg *config) { cfg.Provider = cards.url })
	ride := request{method: "POST", path: "/rides", key: "k", body: `{"amount": 2000, "card": "declined"}`}
	for i := range 2 {
		a := b.do(ride)
		a.isProblem(t, 402, "declined")
		if replayed := a.Header.Get("Idempotent-Replayed") == "true"; replayed != (i > 0) || !strings.Contains(a.body, "the card was declined") {
			t.Errorf("replayed %v: %s", replayed, a.body)
		}
	}
	cards.want("declined: 20.00 on the card declined\n")
	b.wantRides(rideLedger{Rides: 1, Declined: 1, Keys: 1})
}

// ask sends a request for a charge to the provider itself.
func (c *cards) ask(ctx context.Context, key, body string) (status int, id string, err error) {
	req, err := http.NewRequestWithContext(ctx, "POST", c.url+"/charges", strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Idempotency-Key", key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	var made struct{ ID string }
	_ = json.Unmarshal(text, &made) // an error can be plain text
	return resp.StatusCode, made.ID, err
}

const visa20 = `{"card": "visa", "amount": 2000}`

func TestProviderKeepsIdempotencyKeysAsStripeDoes(t *testing.T) {
	t.Parallel()
	c := spawnCards(t)
	for _, tt := range []struct {
		what, key, body string
		status          int
		id              string
	}{
		{"a new key", "a", visa20, 200, "ch_1"},
		{"the same key", "a", visa20, 200, "ch_1"},
		{"another amount", "a", `{"card": "visa", "amount": 1}`, 400, ""},
		{"another card", "a", `{"card": "amex", "amount": 2000}`, 400, ""},
		{"another key", "b", visa20, 200, "ch_2"},
		{"a refusal", "c", `{"card": "declined", "amount": 2000}`, 402, ""},
		{"the same refusal", "c", `{"card": "declined", "amount": 2000}`, 402, ""},
		{"no key", "", visa20, 400, ""},
		{"no JSON", "d", `card`, 400, ""},
	} {
		if status, id, err := c.ask(t.Context(), tt.key, tt.body); err != nil || status != tt.status || id != tt.id {
			t.Errorf("%s: got %d %q, %v; want %d %q", tt.what, status, id, err, tt.status, tt.id)
		}
	}
	c.want(charged + again + charged2 +
		"declined: 20.00 on the card declined\ndeclined: the same key again, the same answer\n")
}

func TestProviderRefusesAKeyWhileItsFirstRequestIsUnderWay(t *testing.T) {
	t.Parallel()
	c := spawnCards(t, "-silent", "1")
	ctx, goAway := context.WithCancel(t.Context())
	defer goAway()
	var first sync.WaitGroup
	first.Go(func() {
		if status, _, err := c.ask(ctx, "a", visa20); err == nil {
			t.Errorf("the first request got %d", status)
		}
	})
	eventually(t, "the card is charged", func() bool { return c.printed() == charged })
	if status, _, err := c.ask(t.Context(), "a", visa20); status != 409 || err != nil {
		t.Errorf("the second request got %d, %v", status, err)
	}
	if status, id, err := c.ask(t.Context(), "b", visa20); status != 200 || id != "ch_2" || err != nil {
		t.Errorf("another key got %d %q, %v", status, id, err)
	}
	goAway()
	first.Wait()
	eventually(t, "the provider sees that the first client has gone", func() bool {
		status, id, err := c.ask(t.Context(), "a", visa20)
		if err != nil || status != 409 && (status != 200 || id != "ch_1") {
			t.Fatalf("got %d %q, %v", status, id, err)
		}
		return status == 200
	})
	c.want(charged + charged2 + again)
}
