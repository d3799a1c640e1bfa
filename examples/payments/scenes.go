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
	{"A charge", ledger{Written: 1, Charges: 1, Taken: 25_00, Left: -25_00, Keys: 1}, (*demo).firstCall},
	{"Its retry", ledger{}, (*demo).retry},
	{"200 duplicates at once", ledger{Written: 1, Charges: 1, Taken: 12_50, Left: -12_50, Keys: 1}, (*demo).duplicates},
	{"The same key, another amount", ledger{}, (*demo).keyReused},
	{"A declined card", ledger{Written: 1, Declines: 1, Keys: 1}, (*demo).declined},
	{"A worker killed before COMMIT", ledger{Written: 2, Charges: 1, Taken: 40_00, Left: -40_00, Keys: 1}, (*demo).workerKilled},
	{"A duplicate in another process", ledger{Written: 1, Charges: 1, Taken: 7_50, Left: -7_50, Keys: 1}, (*demo).otherProcess},
}

var (
	order1 = Order{"alice", 25_00}
	order2 = Order{"alice", 12_50}
	order3 = Order{"bob", 50_00} // more than he has
	order4 = Order{"alice", 40_00}
	order5 = Order{"alice", 7_50}
)

func (d *demo) firstCall(ctx context.Context) error {
	d.say("alice pays %v, with the key order-1.", order1.Amount)
	return d.executes(ctx, d.service, "order-1", order1)
}

func (d *demo) retry(ctx context.Context) error {
	d.say("The answer was lost on its way, so the client sends order-1 again.")
	return d.replays(ctx, d.service, "order-1", order1)
}

func (d *demo) duplicates(ctx context.Context) error {
	const callers, services = 200, 4
	d.say("%d clients send order-2 at once, through %d services with a Store each.", callers, services)
	start := time.Now()
	answers, err := d.atOnce(ctx, callers, services, "order-2", order2)
	took := time.Since(start)
	if err != nil {
		return err
	}
	first := answers[0].Receipt
	executed, equal := 0, 0
	for _, a := range answers {
		if !a.Replayed {
			executed++
		}
		if a.Receipt == first {
			equal++
		}
	}
	d.say("→ %d times %v", equal, first)
	d.say("  %d executed, %d replayed, in %s", executed, callers-executed, milliseconds(took))
	expect(d, "calls that executed", 1, executed)
	expect(d, "equal receipts", callers, equal)
	d.keep("order-2", first)
	d.answers += callers - 1
	return nil
}

// atOnce makes n calls that start together, spread over some services.
func (d *demo) atOnce(ctx context.Context, n, services int, key string, order Order) ([]answer, error) {
	answers, errs := make([]answer, n), make([]error, n)
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for first := range services {
		s, err := NewService(d.pool, idempotency.Config{})
		if err != nil {
			return nil, err
		}
		for i := first; i < n; i += services {
			wg.Go(func() {
				<-begin
				answers[i], errs[i] = call(ctx, s, key, order)
			})
		}
	}
	close(begin)
	wg.Wait()
	return answers, errors.Join(errs...)
}

func (d *demo) keyReused(ctx context.Context) error {
	wrong := Order{"alice", 99_00}
	d.say("By mistake a client sends order-2 over %v: ErrKeyReused, by its fingerprint.", wrong.Amount)
	if err := d.fails(ctx, d.service, "order-2", wrong, idempotency.ErrKeyReused); err != nil {
		return err
	}
	d.say("The true request still gets its receipt.")
	return d.replays(ctx, d.service, "order-2", order2)
}

func (d *demo) declined(ctx context.Context) error {
	d.say("bob's charge is written, but not covered. A savepoint undoes it; the refusal stays.")
	if err := d.executes(ctx, d.service, "order-3", order3); err != nil {
		return err
	}
	return d.replays(ctx, d.service, "order-3", order3)
}

func (d *demo) workerKilled(ctx context.Context) error {
	before, err := readLedger(ctx, d.pool)
	if err != nil {
		return err
	}
	w, err := d.startWorker(ctx, "order-4", order4, "-freeze")
	if err != nil {
		return err
	}
	defer w.stop()
	written, err := w.answer()
	if err != nil {
		return err
	}
	d.say("A worker, process %d, has written order-4 and hangs before its COMMIT.", w.pid())
	d.say("→ not committed: %v", written.Receipt)
	if _, err := d.expectChange(ctx, before, ledger{Written: 1}); err != nil {
		return err
	}

	d.say("The key is taken. A duplicate that does not wait gets ErrInProgress.")
	impatient, err := NewService(d.pool, idempotency.Config{Wait: -1})
	if err != nil {
		return err
	}
	if err := d.fails(ctx, impatient, "order-4", order4, idempotency.ErrInProgress); err != nil {
		return err
	}

	d.say("kill -9 %d ends the transaction with the process. The client retries.", w.pid())
	killed := time.Now()
	if err := w.kill(); err != nil {
		return err
	}
	waited, err := d.executesAfterWaiting(ctx, "order-4", order4)
	if err != nil {
		return err
	}
	d.say("The retry waited %s for the key, and was done %s after the kill.",
		milliseconds(waited), milliseconds(time.Since(killed)))
	return w.wasKilled()
}

// executesAfterWaiting is executes, and says how long the call waited for
// another one. The store tells that to an observer.
func (d *demo) executesAfterWaiting(ctx context.Context, key string, order Order) (waited time.Duration, err error) {
	observed, err := NewService(d.pool, idempotency.Config{
		Observe: func(_ context.Context, event idempotency.Event) { waited = event.Waited },
	})
	if err != nil {
		return 0, err
	}
	err = d.executes(ctx, observed, key, order)
	return waited, err
}

func (d *demo) otherProcess(ctx context.Context) error {
	d.say("This process, %d, executes order-5.", os.Getpid())
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
	d.say("A worker, process %d, is sent order-5 too.", w.pid())
	d.take("order-5", a, true)
	return nil
}
