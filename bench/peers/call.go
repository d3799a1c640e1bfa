package peers

import (
	"context"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// BusinessTable is made by the harness. Its key is not unique: two effects of one
// key are to be counted, not prevented.
const BusinessTable = `
create table charges (
	id     bigint generated always as identity primary key,
	key    text not null,
	amount bigint not null
)`

// BusinessSQL is the business write, the same for all; its arguments are
// Call.ID and Call.Amount. Use Call.Write where the driver is pgx.
const BusinessSQL = `insert into charges (key, amount) values ($1, $2) returning id`

// A Call is one request of a client.
type Call struct {
	Scope  string // who sends it: a tenant
	ID     string // its idempotency key
	Amount int64
	Body   []byte // the request, for a fingerprint where the library has one

	// Hook, where it is set, is what Written calls.
	Hook func(ctx context.Context)
}

// NewCall is a request with a new key, time-ordered as a client makes it.
func NewCall() *Call {
	return CallOf(uuid.Must(uuid.NewV7()).String())
}

// CallOf is the request of a key.
func CallOf(id string) *Call {
	return &Call{
		Scope:  "customer-1",
		ID:     id,
		Amount: 1000,
		Body:   []byte(`{"amount":1000,"currency":"EUR","key":"` + id + `"}`),
	}
}

// Write executes the business write and returns the answer to the request.
func (c *Call) Write(ctx context.Context, tx queryRower) (answer string, err error) {
	row, err := c.create(ctx, tx)
	if err != nil {
		return "", err
	}
	return c.Answer(row), nil
}

type queryRower interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// answerBytes is the size of every answer: as JSON, with its quotes, 320 bytes.
const answerBytes = 318

// Answer is the answer to the request whose business write got this id. It tells
// one execution from another.
func (c *Call) Answer(id int64) string {
	answer := "charge " + strconv.FormatInt(id, 10) + " of " + c.ID + " "
	return answer + strings.Repeat("x", answerBytes-len(answer))
}

// Written marks the moment between the business write and the record of its
// answer.
func (c *Call) Written(ctx context.Context) {
	if c.Hook != nil {
		c.Hook(ctx)
	}
}
