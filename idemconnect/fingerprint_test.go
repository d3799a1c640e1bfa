package idemconnect_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/pgidem/idempotency/idemconnect"
	"github.com/pgidem/idempotency/idemconnect/internal/pay"
)

// Its tests are those of idemgrpc.
func TestFingerprintIsTheSameCodeInIdemgrpc(t *testing.T) {
	t.Parallel()
	const file = "fingerprint.go"
	other, err := os.ReadFile("../idemgrpc/" + file)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Replace(string(other), "package idemgrpc\n", "package idemconnect\n", 1); string(ours) != want {
		t.Errorf("%s differs", file)
	}
}

func TestMapInAnotherOrderIsTheSameRequest(t *testing.T) {
	inEachProtocol(t, func(t *testing.T, b *bundle, protocol connect.ClientOption) {
		c := b.protected(idemconnect.Config{}, b.charge, protocol)
		for i := range 50 {
			r := &pay.ChargeRequest{Amount: 10, Labels: map[string]string{}, Item: &pay.Item{Parts: map[string]*pay.Item{}}}
			for n := range 10 {
				r.Labels[fmt.Sprint(n)], r.Item.Parts[fmt.Sprint(n)] = "x", &pay.Item{}
			}
			c.send(t.Context(), b.request(r, "k")).is(t, 10, i > 0)
		}
		b.ran(1)
	})
}
