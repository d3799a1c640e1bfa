package demo

import (
	"fmt"
	"io"
	"strings"
)

// An example is a request for the reader to try. The accounts are those of
// "serve -examples".
type example struct {
	why    string
	curl   string // its arguments; %s is the address
	status int
	replay bool
}

const pay25 = `-i %s/charges -H 'Authorization: Bearer alice-secret' -H 'Idempotency-Key: key-1' --json '{"amount": 2500}'`

var examples = []example{
	{"charge alice 25.00", pay25, 201, false},
	{"send it again: the same receipt, Idempotent-Replayed: true", pay25, 201, true},
	{"another amount with the same key", strings.Replace(pay25, "2500", "9900", 1), 422, false},
	{"more than bob has", strings.NewReplacer("2500", "5000", "alice", "bob").Replace(pay25), 402, false},
	{"alice's account: one charge", `-i %s/account -H 'Authorization: Bearer alice-secret'`, 200, false},
}

func (e example) command(address string) string {
	return "curl " + fmt.Sprintf(e.curl, address)
}

// invite says where to go from here.
func (d *demo) invite() {
	d.print("\nTry it: make serve, and in another terminal:")
	PrintExamples(d.out, "localhost:8080")
}

// PrintExamples prints requests for a service with the example accounts.
func PrintExamples(out io.Writer, address string) {
	for _, e := range examples {
		fmt.Fprintf(out, "\n   # %s\n   %s\n", e.why, e.command(address))
	}
}
