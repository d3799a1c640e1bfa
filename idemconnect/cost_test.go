package idemconnect_test

import (
	"fmt"
	"testing"

	"github.com/pgidem/idempotency/idemconnect"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestFirstCallCostsThreeRoundTripsAndAReplayOne(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.proxy()
	b.store = b.storeThrough(proxy, pgtest.MaxConns(1))
	c := b.protected(idemconnect.Config{}, b.charge)
	c.pay("warm").is(t, 10, false) // connects, and prepares the statements
	c.pay("warm").is(t, 10, true)
	for i := range 3 {
		for _, test := range []struct {
			want     int64
			replayed bool
		}{{3, false}, {1, true}} {
			before := proxy.RoundTrips()
			c.pay(fmt.Sprint("k", i)).is(t, 10, test.replayed)
			if got := proxy.RoundTrips() - before; got != test.want {
				t.Errorf("%d round trips, replayed %v; want %d", got, test.replayed, test.want)
			}
		}
	}
}
