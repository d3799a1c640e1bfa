package demo

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// A result is what one of the two runs has come to.
type result struct {
	Orders    int64
	Lost      int64 // answers that the proxy has lost
	Charges   int64
	Never     int64 // orders without a charge
	Once      int64 // with one
	Twice     int64 // with more
	TooMuch   int64 // cents taken beyond what was ordered
	Keys      int64 // orders whose key is in idempotency_keys
	Receipts  int64 // customers who hold the receipt of a charge of their order
	Imbalance int64 // accounts, of all, whose balance is not opening less charges
}

// resultSQL counts by joins, over what customers wanted and were told (schema
// demo), and what the service has in its tables. A charge belongs to an order by
// account and reference.
const resultSQL = `
with orders as (
	select o.key, o.account, o.reference, o.amount,
		count(c.id) as charges, coalesce(sum(c.amount), 0) as taken
	from demo.orders o
	left join charges c on c.account = o.account and c.reference = o.reference
	where o.run = $1
	group by o.key
)
select
	count(*),
	(select count(*) from demo.losses join orders using (key)),
	sum(charges)::bigint,
	count(*) filter (where charges = 0),
	count(*) filter (where charges = 1),
	count(*) filter (where charges > 1),
	coalesce(sum(taken - amount) filter (where charges > 0), 0)::bigint,
	(select count(*) from idempotency_keys k join orders o on o.account = k.scope and o.key = k.id),
	(select count(*)
		from demo.answers a
		join orders o using (key)
		join charges c on c.account = o.account and c.reference = o.reference and c.amount = o.amount
		where a.status = 201 and (a.body::jsonb ->> 'id')::bigint = c.id),
	(select count(*) from accounts a
		where opening <> balance + (select coalesce(sum(amount), 0) from charges where account = a.id))
from orders`

func (d *demo) result(ctx context.Context, run string) (result, error) {
	rows, _ := d.pool.Query(ctx, resultSQL, run) // CollectOneRow returns its error
	r, err := pgx.CollectOneRow(rows, pgx.RowToStructByPos[result])
	if err != nil {
		return result{}, fmt.Errorf("reading the result of the run %s: %w", run, err)
	}
	return r, nil
}

// report prints the two runs side by side, and holds them against what has to
// be: with the middleware, one charge for each order; without it, a run that has
// no double charge shows nothing, and is as wrong.
func (d *demo) report(ctx context.Context) error {
	with, err := d.result(ctx, "with")
	if err != nil {
		return err
	}
	without, err := d.result(ctx, "without")
	if err != nil {
		return err
	}
	d.print("\n   %-44s %19s %11s", "what the tables say", "with the middleware", "without it")
	d.print("   (✓ is as expected: one charge for each order with the middleware, double charges without it)")
	all := int64(customers)
	d.row("orders", with.Orders, without.Orders, with.Orders == all && without.Orders == all)
	d.row("answers lost after the service had executed", with.Lost, without.Lost, with.Lost > 0 && without.Lost > 0)
	d.row("charges", with.Charges, without.Charges, with.Charges == all && without.Charges > all)
	d.row("orders charged exactly once", with.Once, without.Once, with.Once == all)
	d.row("orders charged twice or more", with.Twice, without.Twice, with.Twice == 0 && without.Twice > 0)
	d.row("orders never charged", with.Never, without.Never, with.Never == 0 && without.Never == 0)
	d.row("money taken too much", money(with.TooMuch), money(without.TooMuch), with.TooMuch == 0 && without.TooMuch > 0)
	d.row("keys recorded", with.Keys, without.Keys, with.Keys == all && without.Keys == 0)
	d.row("customers with the receipt of their charge", with.Receipts, without.Receipts, with.Receipts == all && without.Receipts == all)
	d.row("accounts that do not add up", with.Imbalance, without.Imbalance, with.Imbalance == 0 && without.Imbalance == 0)
	if len(d.failed) == 0 {
		d.print("\n   With the middleware every order was charged once. Without it %d customers paid %s too much.", without.Twice, money(without.TooMuch))
	}
	return nil
}

func (d *demo) row(what string, with, without any, ok bool) {
	mark := "✓"
	if !ok {
		mark = "✗"
		d.failed = append(d.failed, fmt.Sprintf("%s: %v with the middleware, %v without", what, with, without))
	}
	d.print(" %s %-44s %19v %11v", mark, what, with, without)
}
