package failover_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/failover"
)

// The primary is lost while the other side is at work.
func TestCallUnderWayDuringAFailoverIsKnownToTheStandby(t *testing.T) {
	t.Parallel()
	errDied := errors.New("the process has died")
	for name, died := range map[string]error{"the same call goes on": nil, "another process goes on": errDied} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := failover.New(t, failover.Options{})
			key := idempotency.Key{Scope: "test", ID: "key-1"}
			var asked []string
			ride := idempotency.Procedure[string, string]{Name: "ride", Run: func(ctx context.Context, op *idempotency.Op, in string) (string, error) {
				id, err := idempotency.Step(ctx, op, "create", execute(in))
				if err != nil {
					return "", err
				}
				_, err = idempotency.Call(ctx, op, "charge", func(_ context.Context, key string) (int, error) {
					if asked = append(asked, key); len(asked) > 1 {
						return 1, nil
					}
					p.Kill(p.Primary)
					p.Promote()
					return 1, died
				})
				if err != nil {
					return "", err
				}
				return idempotency.Step(ctx, op, "confirm", func(context.Context, pgx.Tx) (string, error) { return id, nil })
			}}
			do := func() (string, bool, error) {
				return ride.Do(t.Context(), idempotency.New(p.Pool(p.DSN(), 4)), key, key.ID)
			}
			got, replayed, err := do()
			if !errors.Is(err, died) {
				t.Fatal(err)
			}
			want := 1
			if died != nil {
				want = 2
				got, replayed, err = do()
			}
			if err != nil || replayed || len(asked) != want || asked[0] != asked[want-1] {
				t.Fatalf("%q, %v, %v; asked with %v", got, replayed, err, asked)
			}
			if again, replayed, err := do(); again != got || !replayed || err != nil {
				t.Errorf("%q, %v, %v; want %q", again, replayed, err, got)
			}
			for _, v := range readLedger(t, p.Pool(p.DSN(), 2)).violations([]answer{{Key: key.ID, Value: got}}) {
				t.Error(v)
			}
		})
	}
}
