package main

import (
	"context"
	"errors"
	"fmt"
)

// An answer is what a call returned. A worker sends its own as JSON.
type answer struct {
	Receipt  Receipt
	Replayed bool
}

func (a answer) String() string {
	if a.Replayed {
		return "replayed: " + a.Receipt.String()
	}
	return "executed: " + a.Receipt.String()
}

// call is a client's call of the service.
func call(ctx context.Context, s *Service, key string, order Order) (answer, error) {
	receipt, replayed, err := s.Charge(ctx, key, order)
	return answer{receipt, replayed}, err
}

// executes makes a call that has to be the first with its key.
func (d *demo) executes(ctx context.Context, s *Service, key string, order Order) error {
	a, err := call(ctx, s, key, order)
	if err == nil {
		d.take(key, a, false)
	}
	return err
}

// replays makes a call that has to get the receipt of an earlier one.
func (d *demo) replays(ctx context.Context, s *Service, key string, order Order) error {
	a, err := call(ctx, s, key, order)
	if err == nil {
		d.take(key, a, true)
	}
	return err
}

// fails makes a call that has to end with want. Any other error has nothing to
// do with the key, and there is no point in going on.
func (d *demo) fails(ctx context.Context, s *Service, key string, order Order, want error) error {
	a, err := call(ctx, s, key, order)
	if err != nil && !errors.Is(err, want) {
		return err
	}
	if err == nil {
		d.take(key, a, true)
	} else {
		d.say("→ %v", err)
	}
	expect(d, "error", fmt.Sprint(want), fmt.Sprint(err))
	return nil
}

// take prints and keeps an answer.
func (d *demo) take(key string, a answer, replayed bool) {
	d.say("→ %v", a)
	d.keep(key, a.Receipt)
	expect(d, "replayed", replayed, a.Replayed)
}

// keep remembers what a client was told. Whatever is said about a key later has
// to be the same.
func (d *demo) keep(key string, r Receipt) {
	d.answers++
	told, ok := d.receipts[key]
	if !ok {
		d.receipts[key] = r
		return
	}
	expect(d, "receipt of "+key, told, r)
}
