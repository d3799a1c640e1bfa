package failover_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/pgidem/idempotency/internal/failover"
)

// rounds is how many primaries are lost; IDEMPOTENCY_TEST_LONG asks for more.
func rounds() int {
	if os.Getenv("IDEMPOTENCY_TEST_LONG") != "" {
		return 20
	}
	return 2
}

// losses are the ways in which the primary goes.
var losses = []struct {
	name string
	lose func(p *failover.Pair)
}{
	{"its network and then the primary", func(p *failover.Pair) {
		p.Link.Cut() // every commit waits now, and will never have been
		time.Sleep(rand.N(50 * time.Millisecond))
		p.Kill(p.Primary)
	}},
	{"the primary", func(p *failover.Pair) { p.Kill(p.Primary) }},
}

// The primary is lost under load, and the standby takes over. Nothing that a
// client was told is lost with it, and nothing is done twice.
func TestPrimaryKilledUnderLoadLosesNoAnswerAndDoublesNoEffect(t *testing.T) {
	t.Parallel()
	var all tally
	for i := range rounds() {
		loss := losses[i%len(losses)]
		commit := []string{"on", "remote_apply"}[i/len(losses)%2]
		t.Run(fmt.Sprintf("%d %s %s", i+1, loss.name, commit), func(t *testing.T) {
			p := failover.New(t, failover.Options{SynchronousCommit: commit})
			all.add(failOverUnderLoad(p, loss.lose))
		})
	}
	t.Log("all: ", all)
	if all.inDoubt == 0 {
		t.Error("no commit was in doubt: this has shown nothing")
	}
}

// A primary that hangs keeps its connections. Clients get away from it at their
// own deadlines, and at connect_timeout.
func TestPrimaryFrozenUnderLoadLosesNoAnswerAndDoublesNoEffect(t *testing.T) {
	t.Parallel()
	p := failover.New(t, failover.Options{})
	failOverUnderLoad(p, func(p *failover.Pair) { p.Freeze(p.Primary) })
}

// failOverUnderLoad lets the standby take over after a loss at a random moment,
// and checks what the clients were told before and afterwards.
func failOverUnderLoad(p *failover.Pair, lose func(*failover.Pair)) tally {
	p.Helper()
	f := launch(p)
	f.progress(200)
	time.Sleep(rand.N(500 * time.Millisecond))
	lose(p)
	lost := time.Now()
	time.Sleep(rand.N(300 * time.Millisecond)) // until somebody notices
	p.Promote()
	f.progress(200)
	answers := f.end()
	for _, v := range readLedger(p, p.Pool(p.DSNOf(p.Standby), 2)).violations(answers) {
		p.Error(v)
	}
	n := count(answers, lost)
	p.Log(n)
	return n
}

// A standby that is not synchronous loses answers. The check has to find that.
func TestAnswersLostByAnAsynchronousStandbyAreFound(t *testing.T) {
	t.Parallel()
	p := failover.New(t, failover.Options{Asynchronous: true})
	f := launch(p)
	f.progress(50)
	p.Link.Hold()
	f.progress(50)
	p.Link.Cut()
	p.Kill(p.Primary)
	p.Promote()
	f.progress(50)
	answers := f.end()
	found := readLedger(t, p.Pool(p.DSN(), 2)).violations(answers)
	if len(found) == 0 {
		t.Fatal("no violation was found")
	}
	t.Logf("%d answers are lost, among them: %s", len(found), found[0])
}
