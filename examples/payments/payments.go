package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// An Order is what a client asks for.
type Order struct {
	Account string
	Amount  Money
}

// A Receipt is the answer to an order. The idempotency package stores it as
// JSON and gives it to every retry.
type Receipt struct {
	Charge  int64  `json:"charge,omitempty"` // 0 when the order was refused
	Account string `json:"account"`
	Amount  Money  `json:"amount"`
	Balance Money  `json:"balance"` // of the account, at that time
	Refusal string `json:"refusal,omitempty"`
}

func (r Receipt) String() string {
	if r.Refusal != "" {
		return fmt.Sprintf("%v from %s declined, %s, %v left", r.Amount, r.Account, r.Refusal, r.Balance)
	}
	return fmt.Sprintf("charge %d, %v from %s, %v left", r.Charge, r.Amount, r.Account, r.Balance)
}

// Charge executes an order in tx. It knows nothing of idempotency: whoever
// owns the transaction decides how often it takes effect.
//
//   - Commit: the charge and the new balance are there, both.
//   - Rollback, a crash, a lost connection: neither is.
//
// There are two ways to fail, and the difference is the caller's next step. An
// error means that the outcome is open: nothing is kept, and the same order can
// be tried again. A refusal is an outcome, and so a Receipt with a nil error:
// it is kept, and the same order gets the same refusal.
func Charge(ctx context.Context, tx pgx.Tx, order Order) (Receipt, error) {
	receipt := Receipt{Account: order.Account, Amount: order.Amount}

	// A savepoint, because the charge is written before the balance is known
	// to suffice. When debit fails, BeginFunc rolls back to the savepoint: the
	// charge is undone, and tx, which the failed statement has broken, can be
	// used again to write down the refusal.
	err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) (err error) {
		if receipt.Charge, err = insertCharge(ctx, tx, order); err != nil {
			return err
		}
		receipt.Balance, err = debit(ctx, tx, order)
		return err
	})
	switch {
	case err == nil:
		return receipt, nil
	case insufficientFunds(err):
		return decline(ctx, tx, order, "insufficient funds")
	default:
		return Receipt{}, fmt.Errorf("charging %s: %w", order.Account, err)
	}
}

func insertCharge(ctx context.Context, tx pgx.Tx, order Order) (id int64, err error) {
	const sql = `insert into charges (account, amount) values ($1, $2) returning id`
	err = tx.QueryRow(ctx, sql, order.Account, order.Amount).Scan(&id)
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

// decline writes down a refusal. It is outside the savepoint, so it stays.
func decline(ctx context.Context, tx pgx.Tx, order Order, reason string) (Receipt, error) {
	const insert = `insert into declines (account, amount, reason) values ($1, $2, $3)`
	if _, err := tx.Exec(ctx, insert, order.Account, order.Amount, reason); err != nil {
		return Receipt{}, fmt.Errorf("declining: %w", err)
	}
	receipt := Receipt{Account: order.Account, Amount: order.Amount, Refusal: reason}
	const balance = `select balance from accounts where id = $1`
	if err := tx.QueryRow(ctx, balance, order.Account).Scan(&receipt.Balance); err != nil {
		return Receipt{}, fmt.Errorf("declining: %w", err)
	}
	return receipt, nil
}
