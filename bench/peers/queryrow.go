package peers

import (
	"context"

	"github.com/pgidem/idempotency"
)

// QueryRow is the name of this package where the operation is one statement.
const QueryRow = "idempotency.QueryRow"

func init() {
	register(Peer{
		Name:    QueryRow,
		About:   "This package with the business write as one statement: idempotency.QueryRow. The statement returns the answer, which the others make in the client.",
		Whole:   true,
		Prepare: prepareOurs,
		Open: func(ctx context.Context, env Env) (Client, error) {
			return open(ctx, env, queryRow)
		},
	})
}

// answerSQL is BusinessSQL with Call.Answer.
const answerSQL = `insert into charges (key, amount) values ($1, $2) returning rpad('charge ' || id || ' of ' || key || ' ', $3, 'x')`

func queryRow(ctx context.Context, store *idempotency.Store, call *Call) (string, error) {
	answer, replayed, err := idempotency.QueryRow[string](ctx, store, call.key(), answerSQL, call.ID, call.Amount, answerBytes)
	if err == nil && !replayed {
		call.Written(ctx)
	}
	return answer, inProgress(err)
}
