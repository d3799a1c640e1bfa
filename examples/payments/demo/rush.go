package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/pgidem/idempotency/idemhttp"
)

// customers is how many pay at once in a rush.
const customers = 100

// rushProtected has a hundred customers pay at once through the bad network. In
// the middle of it one of the two processes is killed, at the worst moment: it
// has written a charge and its record, and not committed them.
func (d *demo) rushProtected(ctx context.Context, number int) error {
	d.print("\n%d. A hundred customers pay, answers get lost at random (-seed %d), and a process dies", number, d.seed)
	before, err := d.readLedger(ctx)
	if err != nil {
		return err
	}
	orders, err := d.newOrders(ctx, "with")
	if err != nil {
		return err
	}
	record, err := d.holdRecord(ctx, orders[0])
	if err != nil {
		return err
	}
	defer record.release()
	paying, cancel := context.WithCancel(ctx)
	defer cancel()
	paid, finish := d.payAll(paying, orders)
	err = d.killHanging(ctx, record, paid, before)
	if err != nil {
		cancel()
	}
	if err := errors.Join(err, finish()); err != nil {
		return err
	}
	return d.expectUndone(ctx, before)
}

// killHanging kills the process that hangs at the record. If all have paid, and
// none did, the service has not recorded what it should.
func (d *demo) killHanging(ctx context.Context, record *held, paid <-chan struct{}, before ledger) error {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-paid:
			cancel()
		case <-waiting.Done():
		}
	}()
	i, err := d.hanging(waiting, record)
	switch {
	case err == nil:
		return d.killOne(ctx, i, record, before)
	case ctx.Err() == nil && waiting.Err() != nil:
		d.fail("a process that hangs between its record and COMMIT: expected 1, found none")
		return nil
	}
	return err
}

// killOne kills a process, once others have paid, and starts it again.
func (d *demo) killOne(ctx context.Context, i int, record *held, before ledger) error {
	err := until(ctx, "a third of the customers have paid", func() (bool, error) {
		now, err := d.readLedger(ctx)
		return now.Charges-before.Charges >= customers/3, err
	})
	if err != nil {
		return err
	}
	killed := d.fleet[i]
	if err := killed.kill(); err != nil {
		return err
	}
	// Not before: COMMIT is on its way behind the record, and can still be
	// executed when the lock is free. That is as safe, but not what is shown.
	if err := d.gone(ctx, killed); err != nil {
		return err
	}
	record.release()
	if err := d.restart(ctx, i); err != nil {
		return err
	}
	d.say("kill -9 %d: it has written a charge and its record, not yet its COMMIT. It starts again as %d.", killed.pid(), d.fleet[i].pid())
	return nil
}

// expectUndone: the killed process must have left a gap in the numbers, or it
// was not killed where it was meant to be.
func (d *demo) expectUndone(ctx context.Context, before ledger) error {
	after, err := d.readLedger(ctx)
	if err != nil {
		return err
	}
	change := after.minus(before)
	undone := change.Written - change.Charges
	d.say("tables: %d charges, and %d more that were written and undone", change.Charges, undone)
	if undone < 1 {
		d.fail("charges undone by the kill: expected 1 or more, found %d", undone)
	}
	return nil
}

// rushUnprotected is the same without idempotency, and with nobody killed.
func (d *demo) rushUnprotected(ctx context.Context, number int) error {
	d.print("\n%d. The same customers and losses, without the middleware (-unsafe-no-idempotency)", number)
	if err := d.fleet.stop(); err != nil {
		return err
	}
	if err := d.start(ctx, d.unprotected); err != nil {
		return err
	}
	before, err := d.readLedger(ctx)
	if err != nil {
		return err
	}
	orders, err := d.newOrders(ctx, "without")
	if err != nil {
		return err
	}
	_, finish := d.payAll(ctx, orders)
	if err := finish(); err != nil {
		return err
	}
	after, err := d.readLedger(ctx)
	if err != nil {
		return err
	}
	d.say("tables: %d charges", after.minus(before).Charges)
	return d.fleet.stop()
}

// payAll has every customer pay at once. Paid is closed when all have got their
// answer; finish waits for that, and writes down what they were told.
func (d *demo) payAll(ctx context.Context, orders []order) (paid <-chan struct{}, finish func() error) {
	answers, errs := make([]answer, len(orders)), make([]error, len(orders))
	var wg sync.WaitGroup
	for i, o := range orders {
		wg.Go(func() { answers[i], errs[i] = d.pay(ctx, o) })
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	return done, func() error {
		<-done
		if err := errors.Join(errs...); err != nil {
			return err
		}
		return errors.Join(d.keepAnswers(ctx, answers), d.keepLosses(ctx, d.proxy.takeLost()))
	}
}

// newOrders gives every customer an account and something to pay for, and
// decides how many of the answers get lost: the same for both runs.
func (d *demo) newOrders(ctx context.Context, run string) ([]order, error) {
	random := rand.New(rand.NewPCG(d.seed, 0))
	orders := make([]order, customers)
	for i := range orders {
		account := fmt.Sprintf("customer-%03d", i+1)
		orders[i] = order{
			Account:   account,
			APIKey:    account + "-secret",
			Reference: fmt.Sprintf("%s-%03d", run, i+1),
			Amount:    10_00 + random.Int64N(90_00),
			Key:       idemhttp.NewID(),
		}
		d.proxy.lose(orders[i].Key, d.losses(random))
	}
	const open = `
with opened as (
	insert into accounts (id, opening, balance)
	select format('customer-%s', to_char(n, 'FM000')), 1000000, 1000000 from generate_series(1, $1) n
	on conflict do nothing
	returning id
)
insert into api_keys (hash, account)
select sha256(convert_to(id || '-secret', 'UTF8')), id from opened`
	if _, err := d.pool.Exec(ctx, open, customers); err != nil {
		return nil, fmt.Errorf("opening the accounts: %w", err)
	}
	return orders, d.keepOrders(ctx, run, orders)
}

// upToThree is how many answers to one order get lost: half of the customers
// have no bad luck.
func upToThree(random *rand.Rand) int {
	return max(0, random.IntN(7)-3)
}
