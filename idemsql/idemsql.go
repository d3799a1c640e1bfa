// Package idemsql lets a function that writes through database/sql run at most
// once per idempotency key. The same holds for what is built on database/sql:
// GORM, sqlx, bun, ent and the code of sqlc.
//
//	charge, replayed, err := idempotency.Do(ctx, store, key,
//		idemsql.Func(func(ctx context.Context, tx *sql.Tx) (Charge, error) {
//			return createCharge(ctx, tx, request)
//		}))
//
// The *sql.Tx is the transaction of Do itself: its statements go through the
// pgx.Tx, so Do's retries, its resolution of a COMMIT in doubt, its limits and its
// three round trips are those of a function that takes a pgx.Tx.
//
// The package registers no driver and opens no connection.
package idemsql

import (
	"context"
	"database/sql"

	"github.com/jackc/pgx/v5"
)

// Func makes a function for [idempotency.Do] or [idempotency.DoTx] from one that
// takes a *sql.Tx. See [Run] for what that *sql.Tx is.
func Func[T any](fn func(ctx context.Context, tx *sql.Tx) (T, error)) func(context.Context, pgx.Tx) (T, error) {
	return func(ctx context.Context, tx pgx.Tx) (T, error) {
		return Run(ctx, tx, func(sqlTx *sql.Tx) (T, error) { return fn(ctx, sqlTx) })
	}
}

// Run calls fn with tx as a *sql.Tx, and returns what fn returns. It is for code
// that has a pgx.Tx already, such as a handler of package idemhttp.
//
// The *sql.Tx ends when fn does, also by a panic or [runtime.Goexit]: its rows and
// statements are closed, and what is sent later fails with [sql.ErrTxDone]. An
// error of PostgreSQL in the unread rest of rows that fn left open is the error
// of Run, if it has broken the transaction.
//
// Only the owner of tx ends the transaction. Commit and Rollback return an error
// and have no effect, but the *sql.Tx is done after either. So "defer
// tx.Rollback()" is harmless, and "return value, tx.Commit()" fails.
//
// The end of ctx does not end the *sql.Tx, as it does not end tx. A statement
// that is sent with a context is cancelled with that one, which closes the
// connection; one that is sent without (tx.Exec, an ORM that was not told) is not
// cancelled, and has the values of ctx, for tracers.
//
// Values are those of pgx's package stdlib. What differs: a statement is prepared
// when it is first executed, without a round trip of its own, so that is when its
// error comes; and the error of a lost connection is pgx's own, and not
// [driver.ErrBadConn].
//
// database/sql runs a goroutine for each *sql.Tx and each *sql.Rows, which ends
// with it, and one for the process.
func Run[T any](ctx context.Context, tx pgx.Tx, fn func(tx *sql.Tx) (T, error)) (value T, err error) {
	c := &conn{ctx: ctx, tx: tx}
	sqlTx, err := c.begin()
	if err != nil {
		return value, err
	}
	defer func() { // also when fn panics or calls runtime.Goexit
		_ = sqlTx.Rollback() // closes rows and statements
		if err == nil {
			err = c.unreadError()
		}
	}()
	return fn(sqlTx)
}
