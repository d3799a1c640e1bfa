package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// An Order is what a customer asks for.
type Order struct {
	Account   string
	Reference string // the customer's own name for it; can be empty
	Amount    Money
}

// A Receipt is what a customer is told about a charge.
type Receipt struct {
	ID        int64  `json:"id"`
	Account   string `json:"account"`
	Reference string `json:"reference"`
	Amount    Money  `json:"amount"`
	Balance   Money  `json:"balance"` // of the account, at that time
}

// Charge executes an order in tx. It knows nothing of idempotency: whoever
// owns the transaction decides how often it takes effect.
//
//   - Commit: the charge and the new balance are there, both.
//   - Rollback, a crash, a lost connection: neither is.
//
// There are two ways to fail, and the difference is the caller's next step. An
// error means that the outcome is open: nothing is kept, and the same order can
// be tried again. A refusal is an outcome, and comes with a nil error: it is
// kept, and the same order gets the same refusal.
func Charge(ctx context.Context, tx pgx.Tx, order Order) (receipt Receipt, refusal string, err error) {
	receipt = Receipt{Account: order.Account, Reference: order.Reference, Amount: order.Amount}

	// A savepoint, because the charge is written before the balance is known
	// to suffice. When debit fails, BeginFunc rolls back to the savepoint: the
	// charge is undone, and tx, which the failed statement has broken, can be
	// used again to write down the refusal.
	err = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) (err error) {
		if receipt.ID, err = insertCharge(ctx, tx, order); err != nil {
			return err
		}
		receipt.Balance, err = debit(ctx, tx, order)
		return err
	})
	switch {
	case err == nil:
		return receipt, "", nil
	case insufficientFunds(err):
		return Receipt{}, "insufficient funds", insertDecline(ctx, tx, order, "insufficient funds")
	default:
		return Receipt{}, "", fmt.Errorf("charging %s: %w", order.Account, err)
	}
}

func insertCharge(ctx context.Context, tx pgx.Tx, order Order) (id int64, err error) {
	const sql = `insert into charges (account, reference, amount) values ($1, $2, $3) returning id`
	err = tx.QueryRow(ctx, sql, order.Account, order.Reference, order.Amount).Scan(&id)
	return id, err
}

// debit computes the new balance in the database. To read it, subtract here,
// and write it back would lose one of two charges that meet.
func debit(ctx context.Context, tx pgx.Tx, order Order) (balance Money, err error) {
	const sql = `update accounts set balance = balance - $2 where id = $1 returning balance`
	err = tx.QueryRow(ctx, sql, order.Account, order.Amount).Scan(&balance)
	return balance, err
}

func insufficientFunds(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.ConstraintName == "balance_not_negative"
}

// insertDecline writes down a refusal. It is outside the savepoint, so it stays.
func insertDecline(ctx context.Context, tx pgx.Tx, order Order, reason string) error {
	const sql = `insert into declines (account, reference, amount, reason) values ($1, $2, $3, $4)`
	if _, err := tx.Exec(ctx, sql, order.Account, order.Reference, order.Amount, reason); err != nil {
		return fmt.Errorf("declining an order of %s: %w", order.Account, err)
	}
	return nil
}
