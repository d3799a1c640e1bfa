package recipes

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
)

// A browser without JavaScript, which does not follow redirects.
type browser struct {
	*testing.T
	server   *httptest.Server
	customer string
}

func setupForm(t *testing.T, pool *pgxpool.Pool, store *idempotency.Store) *browser {
	t.Helper()
	server := httptest.NewServer(&payPage{store: store, customer: func(r *http.Request) string { return r.Header.Get("Customer") }})
	t.Cleanup(server.Close)
	return &browser{T: t, server: server, customer: "ann"}
}

func (b *browser) send(method string, form url.Values) (*http.Response, string) {
	b.Helper()
	r, err := http.NewRequestWithContext(b.Context(), method, b.server.URL, strings.NewReader(form.Encode()))
	if err != nil {
		b.Fatal(err)
	}
	r.Header.Set("Customer", b.customer)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		b.Fatal(err)
	}
	return resp, string(page)
}

// keyIn is the hidden field's value.
func keyIn(t *testing.T, page string) string {
	t.Helper()
	m := regexp.MustCompile(`<input type="hidden" name="key" value="([A-Z2-7]{26})">`).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("no key in %s", page)
	}
	return m[1]
}

// open loads the page and returns its form, filled in.
func (b *browser) open(orderID, cents string) url.Values {
	b.Helper()
	resp, page := b.send("GET", nil)
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Cache-Control") != "no-store" {
		b.Errorf("%s, %v", resp.Status, resp.Header)
	}
	return url.Values{"key": {keyIn(b.T, page)}, "order": {orderID}, "cents": {cents}}
}

func TestFormClickedTwicePaysOnceAndBothGoToTheSamePage(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupForm(t, pool, idempotency.New(pool))
	form := b.open("order-1", "1000")
	clicks := make(chan string, 2)
	for range 2 {
		go func() {
			resp, _ := b.send("POST", form)
			clicks <- resp.Status + " " + resp.Header.Get("Location")
		}()
	}
	for range 2 {
		if got := receive(t, clicks, "an answer"); got != "303 See Other /charges/1" {
			t.Error(got)
		}
	}
	wantCharges(t, pool, 1)
}

func TestFormOfANewPageIsANewPayment(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupForm(t, pool, idempotency.New(pool))
	for i := range 2 {
		if resp, _ := b.send("POST", b.open("order-1", "1000")); resp.StatusCode != http.StatusSeeOther {
			t.Errorf("%d: %s", i, resp.Status)
		}
	}
	if n := one[int](t, pool, "select count(*) from charges"); n != 2 {
		t.Errorf("%d charges", n)
	}
}

func TestFormChangedAndSentAgainIsAskedForWithANewKey(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupForm(t, pool, idempotency.New(pool))
	form := b.open("order-1", "1000")
	b.send("POST", form)
	for field, value := range map[string]string{"cents": "2000", "order": "order-2"} {
		changed := url.Values{"key": form["key"], "order": form["order"], "cents": form["cents"]}
		changed.Set(field, value)
		resp, page := b.send("POST", changed)
		if resp.StatusCode != http.StatusConflict || !strings.Contains(page, "paid from this page already") || !strings.Contains(page, `value="`+value+`"`) {
			t.Errorf("%s: %s %s", field, resp.Status, page)
		}
		if keyIn(t, page) == form.Get("key") {
			t.Errorf("%s: the key is the old one", field)
		}
	}
	wantCharges(t, pool, 1)
}

func TestFormOfAnotherCustomerIsAnotherPayment(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupForm(t, pool, idempotency.New(pool))
	form := b.open("order-1", "1000")
	for i, customer := range []string{"ann", "bob"} {
		b.customer = customer
		if resp, _ := b.send("POST", form); resp.Header.Get("Location") != []string{"/charges/1", "/charges/2"}[i] {
			t.Errorf("%s: %s %s", customer, resp.Status, resp.Header.Get("Location"))
		}
	}
}

func TestFormThatCannotBePaidIsShownAgain(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupForm(t, pool, idempotency.New(pool))
	for _, cents := range []string{"", "ten", "-1", "0"} {
		form := b.open(`"><script>`, cents)
		resp, page := b.send("POST", form)
		if resp.StatusCode != http.StatusUnprocessableEntity || keyIn(t, page) == "" || strings.Contains(page, "<script>") {
			t.Errorf("%q: %s %s", cents, resp.Status, page)
		}
	}
	form := b.open("order-1", "1000")
	form.Del("key")
	if resp, page := b.send("POST", form); resp.StatusCode != http.StatusUnprocessableEntity || keyIn(t, page) == "" {
		t.Errorf("without a key: %s %s", resp.Status, page)
	}
	wantCharges(t, pool, 0)
}

func TestFormCanBeSentAgainWhenTheDatabaseWasAway(t *testing.T) {
	t.Parallel()
	pool := database(t)
	config := pool.Config()
	config.ConnConfig.Host, config.ConnConfig.Port, config.ConnConfig.Fallbacks = "127.0.0.1", 1, nil
	away := setupForm(t, pool, idempotency.New(newPool(t, config)))
	form := away.open("order-1", "1000")
	if resp, _ := away.send("POST", form); resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "1" {
		t.Errorf("%s %v", resp.Status, resp.Header)
	}
	b := setupForm(t, pool, idempotency.New(pool))
	if resp, _ := b.send("POST", form); resp.StatusCode != http.StatusSeeOther {
		t.Error(resp.Status)
	}
	wantCharges(t, pool, 1)
}
