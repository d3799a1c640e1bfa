package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// reconcile asks the two questions that matter in the end: is all the money
// there, and is what the clients were told what has happened? It holds the
// receipts in the clients' hands against the tables.
func (d *demo) reconcile(ctx context.Context) error {
	l, err := readLedger(ctx, d.pool)
	if err != nil {
		return err
	}
	accounts, err := d.readAccounts(ctx)
	if err != nil {
		return err
	}
	booked, err := d.countBooked(ctx)
	if err != nil {
		return err
	}
	recorded, err := d.countRecorded(ctx, accounts)
	if err != nil {
		return err
	}
	charges, refusals := d.tally()
	operations := int64(len(d.receipts))

	fmt.Fprintf(d.out, "\n  %-40s %8s %8s\n", fmt.Sprintf("%d answers against the tables", d.answers), "expected", "found")
	for _, a := range accounts {
		balance(d, a.ID+": opening = balance + charges", a.Opening, a.Balance+a.Taken)
	}
	balance(d, "successful operations = charges", charges, l.Charges)
	balance(d, "refused operations = declines", refusals, l.Declines)
	balance(d, "operations = keys", operations, l.Keys)
	balance(d, "receipts that name their charge", charges, booked)
	balance(d, "receipts recorded under their key", operations, recorded)
	return nil
}

// balance checks and prints a line of the reconciliation.
func balance[T comparable](d *demo, what string, want, got T) {
	fmt.Fprintf(d.out, "%s %-40s %8v %8v\n", mark(want == got), what, want, got)
	if want != got {
		note(d, what, want, got)
	}
}

// tally counts the operations by what the clients were told.
func (d *demo) tally() (charges, refusals int64) {
	for _, r := range d.receipts {
		if r.Refusal == "" {
			charges++
		} else {
			refusals++
		}
	}
	return charges, refusals
}

// An account, with the sum of its charges.
type account struct {
	ID                      string
	Opening, Balance, Taken Money
}

func (d *demo) readAccounts(ctx context.Context) ([]account, error) {
	const sql = `
select a.id, a.opening, a.balance, coalesce(sum(c.amount), 0)::bigint
from accounts a left join charges c on c.account = a.id
group by a.id
order by a.id`
	rows, _ := d.pool.Query(ctx, sql) // CollectRows returns its error
	accounts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[account])
	if err != nil {
		return nil, fmt.Errorf("reading the accounts: %w", err)
	}
	return accounts, nil
}

// countBooked counts the receipts whose charge is in the table as they say.
func (d *demo) countBooked(ctx context.Context) (n int64, err error) {
	const sql = `select count(*) from charges where id = $1 and account = $2 and amount = $3`
	for _, r := range d.receipts {
		var found int64
		if err := d.pool.QueryRow(ctx, sql, r.Charge, r.Account, r.Amount).Scan(&found); err != nil {
			return 0, fmt.Errorf("looking up charge %d: %w", r.Charge, err)
		}
		n += found
	}
	return n, nil
}

// countRecorded counts the receipts that any retry, from now on, would get.
func (d *demo) countRecorded(ctx context.Context, accounts []account) (n int64, err error) {
	for _, a := range accounts {
		recorded, err := d.service.Receipts(ctx, a.ID)
		if err != nil {
			return 0, err
		}
		for key, receipt := range recorded {
			if receipt == d.receipts[key] {
				n++
			}
		}
	}
	return n, nil
}
