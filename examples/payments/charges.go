package main

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
)

// postCharge charges the account of the API key. It writes in tx alone, and
// neither commits nor looks at the idempotency key: its response is recorded
// when it is final, and everything is rolled back when it is not, as with 500.
func (a *api) postCharge(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
	order, err := readOrder(r)
	if err != nil {
		refuse(w, invalid, err.Error())
		return
	}
	receipt, refusal, err := Charge(r.Context(), tx, order)
	switch {
	case err != nil:
		a.fail(w, r, err)
	case refusal != "":
		refuse(w, declined, refusal)
	default:
		w.Header().Set("Location", fmt.Sprintf("/charges/%d", receipt.ID))
		respond(w, http.StatusCreated, receipt)
	}
}

// readOrder reads the body, and says what is wrong with it by the field's name.
func readOrder(r *http.Request) (Order, error) {
	var body struct {
		Amount    Money  `json:"amount"`
		Reference string `json:"reference"`
	}
	if err := readJSON(r, &body, `{"amount": 2500, "reference": "order-1"}`); err != nil {
		return Order{}, err
	}
	order := Order{Account: account(r.Context()), Reference: body.Reference, Amount: body.Amount}
	return order, order.validate()
}

func (o Order) validate() error {
	switch {
	case o.Amount <= 0:
		return errors.New("amount has to be 1 or more, in cents")
	case utf8.RuneCountInString(o.Reference) > 100:
		return errors.New("reference can have 100 characters")
	case strings.IndexByte(o.Reference, 0) >= 0:
		return errors.New("reference cannot have a NUL character")
	}
	return nil
}

// A charge as it stands in the table.
type charge struct {
	ID        int64     `json:"id"`
	Reference string    `json:"reference"`
	Amount    Money     `json:"amount"`
	CreatedAt time.Time `json:"created_at"`
}

// getCharge reads a charge. One of another account does not exist, as far as
// its reader is concerned.
func (a *api) getCharge(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		notFound(w, r)
		return
	}
	const sql = `select id, reference, amount, created_at from charges where id = $1 and account = $2`
	rows, _ := a.pool.Query(r.Context(), sql, id, account(r.Context())) // CollectOneRow returns its error
	found, err := pgx.CollectOneRow(rows, pgx.RowToStructByPos[charge])
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		notFound(w, r)
	case err != nil:
		a.fail(w, r, err)
	default:
		respond(w, http.StatusOK, found)
	}
}
