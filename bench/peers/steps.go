package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// The parts of an operation that also asks somebody else: a step that makes the business
// write, a call that charges a card at a provider, and a step that notes the charge. Each
// is the same for all peers with Peer.Steps; Call.Written is called within the call.

// A charge is what the first two parts leave to the third one.
type charge struct {
	Row      int64
	Provider string // its number of the charge
}

// create is the first step.
func (c *Call) create(ctx context.Context, tx queryRower) (row int64, err error) {
	err = tx.QueryRow(ctx, BusinessSQL, c.ID, c.Amount).Scan(&row)
	return row, err
}

// charge is the call. The provider charges a key once.
func (c *Call) charge(ctx context.Context, provider, key string) (number string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, provider, strings.NewReader(c.ID))
	if err != nil {
		return "", err
	}
	request.Header.Set("Idempotency-Key", key)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("the provider says %s: %s", response.Status, text)
	}
	if err != nil {
		return "", err
	}
	c.Written(ctx)
	return string(text), nil
}

const confirmSQL = `update charges set amount = $2 where id = $1 returning id`

// confirm is the last step.
func (c *Call) confirm(ctx context.Context, tx queryRower, made charge) (answer string, err error) {
	if made.Provider == "" {
		return "", errors.New("nothing was charged")
	}
	var row int64
	if err := tx.QueryRow(ctx, confirmSQL, made.Row, c.Amount).Scan(&row); err != nil {
		return "", err
	}
	return c.Answer(row), nil
}
