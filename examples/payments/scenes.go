package main

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/pgidem/idempotency"
)

// The scenes, in order, with what each has to change in the tables.
var scenes = []scene{
	{"A charge", ledger{Attempts: 1, Charges: 1, Taken: 25_00, Balances: -25_00, Keys: 1}, firstCall},
	{"Its retry", ledger{}, retry},
	{"200 duplicates at once", ledger{Attempts: 1, Charges: 1, Taken: 12_50, Balances: -12_50, Keys: 1}, duplicates},
	{"The same key, another amount", ledger{}, keyReused},
	{"A declined card", ledger{Attempts: 1, Declines: 1, Keys: 1}, declined},
	{"A worker killed before its commit", ledger{Attempts: 2, Charges: 1, Taken: 40_00, Balances: -40_00, Keys: 1}, workerKilled},
	{"A duplicate in another process", ledger{Attempts: 1, Charges: 1, Taken: 7_50, Balances: -7_50, Keys: 1}, otherProcess},
}

var (
	order1 = Order{"alice", 25_00}
	order2 = Order{"alice", 12_50}
	order3 = Order{"bob", 50_00} // more than he has
	order4 = Order{"alice", 40_00}
	order5 = Order{"alice", 7_50}
)

func firstCall(d *demo, ctx context.Context) error {
	d.say("alice pays %v, with the key order-1.", order1.Amount)
	return d.executes(ctx, d.service, "order-1", order1)
}

func retry(d *demo, ctx context.Context) error {
	d.say("The answer was lost on its way, so the client sends order-1 again.")
	return d.replays(ctx, d.service, "order-1", order1)
}

func duplicates(d *demo, ctx context.Context) error {
	const callers = 200
	d.say("%d clients send order-2 over %v, all at the same time.", callers, order2.Amount)
	start := time.Now()
	answers, err := d.atOnce(ctx, callers, "order-2", order2)
	took := time.Since(start)
	if err != nil {
		return err
	}
	executed := 0
	receipts := make(map[Receipt]int)
	for _, a := range answers {
		d.keep("order-2", a)
		receipts[a.Receipt]++
		if !a.Replayed {
			executed++
		}
	}
	for receipt, n := range receipts {
		d.say("→ %d × %v", n, receipt)
	}
	d.say("%d executed, %d replayed, in %s.", executed, len(answers)-executed, milliseconds(took))
	expect(d, "calls that executed", 1, executed)
	expect(d, "equal receipts", callers, receipts[answers[0].Receipt])
	return nil
}

// atOnce makes n calls that start together.
func (d *demo) atOnce(ctx context.Context, n int, key string, order Order) ([]answer, error) {
	answers, errs := make([]answer, n), make([]error, n)
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-begin
			answers[i], errs[i] = call(ctx, d.service, key, order)
		})
	}
	close(begin)
	wg.Wait()
	return answers, errors.Join(errs...)
}

func keyReused(d *demo, ctx context.Context) error {
	wrong := Order{"alice", 99_00}
	d.say("By mistake a client sends order-2 over %v: the fingerprint differs.", wrong.Amount)
	if err := d.fails(ctx, d.service, "order-2", wrong, idempotency.ErrKeyReused); err != nil {
		return err
	}
	d.say("The true request still gets its receipt.")
	return d.replays(ctx, d.service, "order-2", order2)
}

func declined(d *demo, ctx context.Context) error {
	d.say("bob's charge is written before his balance refuses it. A savepoint undoes the")
	d.say("charge, the refusal is recorded, and the retry gets the same one.")
	if err := d.executes(ctx, d.service, "order-3", order3); err != nil {
		return err
	}
	return d.replays(ctx, d.service, "order-3", order3)
}

func workerKilled(d *demo, ctx context.Context) error {
	w, err := d.startWorker(ctx, "order-4", order4, "-freeze")
	if err != nil {
		return err
	}
	defer w.stop()
	written, err := w.answer()
	if err != nil {
		return err
	}
	d.say("Worker process %d hangs before its COMMIT. It has written", w.pid())
	d.say("  %v", written.Receipt)
	d.say("which nobody else sees. A duplicate that does not wait:")
	impatient, err := NewService(d.pool, idempotency.Config{Wait: -1})
	if err != nil {
		return err
	}
	if err := d.fails(ctx, impatient, "order-4", order4, idempotency.ErrInProgress); err != nil {
		return err
	}

	if err := w.kill(); err != nil {
		return err
	}
	d.say("kill -9 %d: the transaction ends with its process. The client retries.", w.pid())
	var event idempotency.Event
	observed, err := NewService(d.pool, idempotency.Config{
		Observe: func(_ context.Context, e idempotency.Event) { event = e },
	})
	if err != nil {
		return err
	}
	if err := d.executes(ctx, observed, "order-4", order4); err != nil {
		return err
	}
	d.say("It took %s, of which it waited %s for the key.", milliseconds(event.Duration), milliseconds(event.Waited))
	return nil
}

func otherProcess(d *demo, ctx context.Context) error {
	d.say("Process %d, this one, executes order-5.", os.Getpid())
	if err := d.executes(ctx, d.service, "order-5", order5); err != nil {
		return err
	}
	w, err := d.startWorker(ctx, "order-5", order5)
	if err != nil {
		return err
	}
	defer w.stop()
	a, err := w.answer()
	if err != nil {
		return err
	}
	d.say("Process %d is sent order-5, too.", w.pid())
	d.say("→ %v", a)
	d.keep("order-5", a)
	expect(d, "replayed", true, a.Replayed)
	return nil
}
