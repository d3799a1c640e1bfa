package demo

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemhttp"
)

var (
	ride1 = order{"alice", "alice-secret", "ride-1", 20_00, "key-4", "visa"}
	ride2 = order{"bob", "bob-secret", "ride-2", 30_00, "key-5", "visa"}
)

// rides has one process of the service ask the card provider for two charges, and kills
// it when both cards are charged and no answer has come. One client tries again, and
// comes to the other process. The other client never comes back.
func (d *demo) rides(ctx context.Context) error {
	sending, cancel := context.WithCancel(ctx)
	defer cancel() // of a client that still waits after an error
	d.proxy.send(d.fleet[0].address)
	stays := later(func() (answer, error) { return d.pay(sending, ride1) })
	if err := d.charged(ctx, 1); err != nil {
		return err
	}
	leaves := later(func() (answer, error) { return d.payOnce(sending, ride2) })
	if err := d.charged(ctx, 2); err != nil {
		return err
	}
	d.proxy.send(d.fleet[1].address)
	if err := d.fleet[0].kill(); err != nil {
		return err
	}
	d.say("%v → %d asks the card provider, which charges the card, and does not answer", ride1, d.fleet[0].pid())
	d.say("%v → the same", ride2)
	d.say("kill -9 %d", d.fleet[0].pid())
	if err := d.goesOn(ctx, <-stays); err != nil {
		return err
	}
	if err := d.isFinished(ctx, <-leaves); err != nil {
		return err
	}
	return d.countCharges()
}

// goesOn is the client that tries again.
func (d *demo) goesOn(ctx context.Context, got outcome) error {
	if got.err != nil {
		return got.err
	}
	d.say("%v → %v", ride1, got.answer)
	expect(d, ride1.Reference+", status", http.StatusCreated, got.answer.Status)
	const first = `{"id":1,"account":"alice","amount":2000,"state":"paid","charge":"ch_1"}`
	if expect(d, ride1.Reference+", body", first, got.answer.Body) {
		d.say("          the retry, at %d: it goes on behind the first step, and has the first charge", d.fleet[1].pid())
	}
	expect(d, ride1.Reference+", replayed", false, got.answer.Replayed)
	body, err := d.post(ctx, ride1, http.StatusCreated, true)
	expect(d, ride1.Reference+", body of the replay", got.answer.Body, body)
	return err
}

// isFinished is the client that never comes back. The killed process starts again as one
// that takes a ride for abandoned after a moment; the other one waits for five minutes.
func (d *demo) isFinished(ctx context.Context, got outcome) error {
	if got.err != nil {
		return got.err
	}
	d.say("%v → %d, and the client never comes back", ride2, got.answer.Status)
	before, err := d.standing(ctx)
	if err != nil {
		return err
	}
	d.say("          what stands still: %s", before)
	expect(d, "rides that stand still", "key-5 of bob, step create is done, call charge has begun", before)
	if err := d.restart(ctx, 0, "-abandoned", "100ms"); err != nil {
		return err
	}
	err = until(ctx, "no ride stands still", func() (bool, error) {
		now, err := d.standing(ctx)
		return now == "", err
	})
	if err != nil {
		return err
	}
	d.say("          Store.Complete has finished it, in the process that has started again as %d", d.fleet[0].pid())
	return nil
}

// standing lists the rides that have begun and not ended.
func (d *demo) standing(ctx context.Context) (string, error) {
	var list []string
	for u, err := range idempotency.New(d.pool).Pending(ctx, 0) {
		if err != nil {
			return "", err
		}
		list = append(list, fmt.Sprintf("%s of %s, %s is done, %s has begun", u.Key.ID, u.Key.Scope, strings.Join(u.Done, ", "), u.Begun))
	}
	return strings.Join(list, "; "), nil
}

// countCharges shows what the card provider has printed. When it has ended, that is all.
func (d *demo) countCharges() error {
	if err := d.cards.stop(); err != nil {
		return err
	}
	d.say("the card provider has printed:")
	for line := range strings.Lines(d.cards.printed.String()) {
		d.say("          %s", strings.TrimSpace(line))
	}
	expect(d, "charges at the card provider", 2, d.cards.charges())
	return nil
}

// charged waits until the card provider has charged that often.
func (d *demo) charged(ctx context.Context, times int) error {
	return until(ctx, "a card is charged", func() (bool, error) { return d.cards.charges() >= times, nil })
}

// payOnce is a client that takes the first answer, whatever it is.
func (d *demo) payOnce(ctx context.Context, o order) (answer, error) {
	client := &http.Client{Transport: &idemhttp.Transport{Base: &http.Transport{}, MaxAttempts: 1}}
	defer client.CloseIdleConnections()
	return d.send(idemhttp.WithKey(ctx, o.Key), client, o)
}

// An outcome is what comes of a request later.
type outcome struct {
	answer answer
	err    error
}

func later(send func() (answer, error)) <-chan outcome {
	got := make(chan outcome, 1)
	go func() {
		a, err := send()
		got <- outcome{a, err}
	}()
	return got
}
