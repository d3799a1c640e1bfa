package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
)

// A scene is one thing that happens to payments. It has to change the tables by
// exactly what it says.
type scene struct {
	title  string
	change ledger
	play   func(*demo, context.Context) error
}

var scenes = []scene{
	{"A charge, and its retry", ledger{Written: 1, Charges: 1, Taken: 25_00, Keys: 1}, (*demo).retry},
	{"The same key with another amount is a mistake", ledger{}, (*demo).keyReused},
	{"A refusal is an answer: recorded, and its partial writes undone by a savepoint", ledger{Written: 1, Declines: 1, Keys: 1}, (*demo).refusal},
	{"Duplicates in flight, in both processes, while the first still runs", ledger{Written: 1, Charges: 1, Taken: 12_50, Keys: 1}, (*demo).duplicates},
	{"Two rides by card, and a process that dies inside the call to the card provider", ledger{Rides: 2, Fares: 50_00, Keys: 2}, (*demo).rides},
}

var (
	order1 = order{"alice", "alice-secret", "order-1", 25_00, "key-1", ""}
	wrong  = order{"alice", "alice-secret", "order-1", 99_00, "key-1", ""}
	order2 = order{"bob", "bob-secret", "order-2", 50_00, "key-2", ""} // more than he has
	order3 = order{"alice", "alice-secret", "order-3", 12_50, "key-3", ""}
)

// perform plays a scene and says what has changed in the tables.
func (d *demo) perform(ctx context.Context, number int, s scene) error {
	d.print("\n%d. %s", number, s.title)
	before, err := d.readLedger(ctx)
	if err != nil {
		return err
	}
	if err := s.play(d, ctx); err != nil {
		return err
	}
	after, err := d.readLedger(ctx)
	if err != nil {
		return err
	}
	change := after.minus(before)
	d.say("tables: %v", change)
	expect(d, fmt.Sprintf("scene %d, change of the tables", number), s.change, change)
	return nil
}

// post sends an order, prints the answer and checks it.
func (d *demo) post(ctx context.Context, o order, status int, replayed bool) (body string, err error) {
	a, err := d.pay(ctx, o)
	if err != nil {
		return "", err
	}
	d.say("%v → %v", o, a)
	expect(d, o.Reference+", status", status, a.Status)
	expect(d, o.Reference+", replayed", replayed, a.Replayed)
	return a.Body, nil
}

// String is the answer on a line: of a problem, the type and the detail.
func (a answer) String() string {
	text := a.Body
	var problem struct{ Type, Title, Detail string }
	if a.Status >= 400 && json.Unmarshal([]byte(a.Body), &problem) == nil {
		_, name, _ := strings.Cut(problem.Type, "#")
		text = name + ": " + problem.Detail
	}
	if a.Replayed {
		text = "the same, replayed"
	}
	return fmt.Sprintf("%d %s", a.Status, text)
}

// again sends an order twice: the second answer has to be the first, to the byte.
func (d *demo) again(ctx context.Context, o order, status int) error {
	first, err := d.post(ctx, o, status, false)
	if err != nil {
		return err
	}
	second, err := d.post(ctx, o, status, true)
	expect(d, o.Reference+", body of the replay", first, second)
	return err
}

func (d *demo) retry(ctx context.Context) error {
	return d.again(ctx, order1, 201)
}

func (d *demo) keyReused(ctx context.Context) error {
	_, err := d.post(ctx, wrong, 422, false)
	return err
}

func (d *demo) refusal(ctx context.Context) error {
	return d.again(ctx, order2, 402)
}

// duplicates holds the account's row, so that the first request hangs in the
// middle of its transaction, with its charge written, until all the others have
// come.
func (d *demo) duplicates(ctx context.Context) error {
	const copies = 50
	account, err := d.holdAccount(ctx, order3.Account)
	if err != nil {
		return err
	}
	defer account.release()
	before := d.proxy.seen()
	answers, errs := make([]answer, copies), make([]error, copies)
	var wg sync.WaitGroup
	for i := range copies {
		wg.Go(func() { answers[i], errs[i] = d.pay(ctx, order3) })
	}
	err = until(ctx, "all duplicates have come", func() (bool, error) { return d.proxy.seen()-before >= copies, ctx.Err() })
	if err == nil {
		_, err = d.hanging(ctx, account)
	}
	account.release()
	wg.Wait()
	if err := errors.Join(append(errs, err)...); err != nil {
		return err
	}
	if err := d.keepAnswers(ctx, answers); err != nil {
		return err
	}
	return d.reportDuplicates(ctx, copies)
}

func (d *demo) reportDuplicates(ctx context.Context, copies int) error {
	var total, same, executed int
	const sql = `
select count(*), count(*) filter (where status = 201 and body = (select min(body) from demo.answers)), count(*) filter (where not replayed)
from demo.answers`
	if err := d.pool.QueryRow(ctx, sql).Scan(&total, &same, &executed); err != nil {
		return err
	}
	d.say("%v → %d requests, %d of them get the same 201; %d executed", order3, total, same, executed)
	expect(d, "answers to the duplicates", copies, total)
	expect(d, "equal answers to the duplicates", copies, same)
	expect(d, "duplicates that executed", 1, executed)
	return nil
}
