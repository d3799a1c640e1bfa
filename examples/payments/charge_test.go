package main

import (
	"context"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
)

// chargeIn runs Charge in a transaction of its own, without idempotency.
func (b *bundle) chargeIn(ctx context.Context, order Order) (receipt Receipt, refusal string, err error) {
	err = pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) (err error) {
		receipt, refusal, err = Charge(ctx, tx, order)
		return err
	})
	return receipt, refusal, err
}

func TestChargesThatMeetLoseNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var wg sync.WaitGroup
	for range 30 { // 20 of them can be paid
		wg.Go(func() {
			if _, _, err := b.chargeIn(t.Context(), Order{"alice", "", 5_00}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b.wantLedger(ledger{Charges: 20, Taken: 100_00, Left: 10_00, Declines: 10})
}

func TestRefusalIsAValueAndAFailureAnError(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if receipt, refusal, err := b.chargeIn(t.Context(), Order{"alice", "", 100_01}); err != nil || refusal != "insufficient funds" || receipt != (Receipt{}) {
		t.Errorf("Charge = %v, %q, %v", receipt, refusal, err)
	}
	if receipt, refusal, err := b.chargeIn(t.Context(), Order{"carol", "", 1}); err == nil || refusal != "" || receipt != (Receipt{}) {
		t.Errorf("Charge = %v, %q, %v", receipt, refusal, err)
	}
	b.wantLedger(ledger{Left: 110_00, Declines: 1})
}
