// Package sqltx is what package idempotency knows of a transaction that is not
// pgx's but database/sql's, in which package idemsql runs DoTx.
package sqltx

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// A Tx has of pgx.Tx what DoTx uses: Exec, QueryRow and SendBatch. Its Conn cannot be
// asked for the state of the transaction; a statement finds that out.
type Tx interface {
	pgx.Tx

	// Abort sees to it that nothing of the transaction can be committed.
	Abort(context.Context)
}
