package idempotency_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

// Callers of one Store share answers in the process, whatever role each has: row-level
// security is a wall between Stores.
func TestStoreForEachRoleGivesNoAnswerThatItsPolicyHides(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("alter table idempotency_keys enable row level security")
	b.exec("create policy own on idempotency_keys using (scope like 'x%') with check (scope like 'x%')")
	restricted := b.asRole(idempotency.Config{}).store
	keys := []idempotency.Key{{Scope: "a", ID: "x"}, {Scope: "x", ID: "a"}, {Scope: "ax", ID: "x"}, {Scope: "xa", ID: ""}, {Scope: "X", ID: "x"}}
	var wg sync.WaitGroup
	for i := range 8 {
		store := []*idempotency.Store{b.store, restricted}[i%2]
		wg.Go(func() {
			for n := range 60 {
				key := keys[n%len(keys)]
				key.ID += fmt.Sprint("-", n)
				want := fmt.Sprintf("%q", key)
				got, _, err := idempotency.Do(t.Context(), store, key, func(context.Context, pgx.Tx) (string, error) { return want, nil })
				if hidden := store == restricted && key.Scope[0] != 'x'; hidden != (err != nil) || err == nil && got != want {
					t.Errorf("%s (hidden: %v): got %s, %v", want, hidden, got, err)
				}
			}
		})
	}
	wg.Wait()
}
