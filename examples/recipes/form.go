package recipes

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

// orderForm works without JavaScript. The server makes the key when it renders the page, so
// that a double click, a reload of the answer and the back button send the same one.
var orderForm = template.Must(template.New("form").Parse(`<!doctype html>
{{with .Problem}}<p role="alert">{{.}}</p>{{end}}
<form method="post">
<input type="hidden" name="key" value="{{.Key}}">
<label>Order <input name="order" value="{{.Order}}"></label>
<label>Cents <input name="cents" value="{{.Cents}}"></label>
<button>Pay</button>
</form>`))

// A payPage shows the form and takes it.
type payPage struct {
	store    *idempotency.Store
	customer func(*http.Request) string // of the session
}

func (p *payPage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		p.show(w, http.StatusOK, r, "")
		return
	}
	o := order{ID: r.PostFormValue("order")}
	var err error
	if o.Cents, err = strconv.ParseInt(r.PostFormValue("cents"), 10, 64); err != nil || o.Cents <= 0 {
		p.show(w, http.StatusUnprocessableEntity, r, "Cents have to be a number.")
		return
	}
	got, err := p.pay(r.Context(), p.customer(r), r.PostFormValue("key"), o)
	switch what, _ := settle(err, 1); {
	case what == acknowledge: // the second click gets there too
		http.Redirect(w, r, fmt.Sprintf("/charges/%d", got.Charge), http.StatusSeeOther)
	case errors.Is(err, idempotency.ErrKeyReused): // back, changed, and sent again
		p.show(w, http.StatusConflict, r, "You have paid from this page already. Send it again to pay this as well.")
	case what == retry:
		w.Header().Set("Retry-After", "1")
		http.Error(w, "Please reload this page: it will not be paid twice.", http.StatusServiceUnavailable)
	default: // no key that we have made, for example
		p.show(w, http.StatusUnprocessableEntity, r, "Please send it again.")
	}
}

// pay has the customer in the scope: a key that somebody else has seen finds nothing.
func (p *payPage) pay(ctx context.Context, customer, id string, o order) (receipt, error) {
	body, err := json.Marshal(o)
	if err != nil {
		return receipt{}, err
	}
	key := idempotency.Key{Scope: "pay " + customer, ID: id, Fingerprint: idempotency.FingerprintOf(body)}
	r, _, err := idempotency.Do(ctx, p.store, key, func(ctx context.Context, tx pgx.Tx) (receipt, error) {
		return charge(ctx, tx, body)
	})
	return r, err
}

// show renders a new key each time. No-store, because a page from the browser's cache would
// have the key of a payment that was made, and the second one that a customer wants would
// be answered with the first.
func (p *payPage) show(w http.ResponseWriter, status int, r *http.Request, problem string) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	orderForm.Execute(w, struct{ Problem, Key, Order, Cents string }{
		problem, rand.Text(), r.PostFormValue("order"), r.PostFormValue("cents"),
	})
}
