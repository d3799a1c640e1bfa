package failover_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/pgidem/idempotency/internal/failover"
)

// long asks for more rounds, and for what takes minutes.
var long = os.Getenv("IDEMPOTENCY_TEST_LONG") != ""

// A loss is a way in which the primary goes.
type loss struct {
	name string
	lose func(p *failover.Pair)
	end  func(p *failover.Pair) // when the standby has taken over
}

var (
	killed = loss{name: "killed", lose: func(p *failover.Pair) { p.Kill(p.Primary) }}

	// Every commit waits for the standby, which will never have it.
	cutOffAndKilled = loss{name: "cut off, then killed", lose: func(p *failover.Pair) {
		p.Link.Cut()
		time.Sleep(rand.N(50 * time.Millisecond))
		p.Kill(p.Primary)
	}}

	// A primary that hangs keeps its connections.
	hangingAndKilled = loss{name: "hanging, killed after the failover",
		lose: func(p *failover.Pair) { p.Freeze(p.Primary) },
		end:  func(p *failover.Pair) { p.Kill(p.Primary) },
	}

	// The clients get away from it at their deadlines: of connect_timeout, of
	// their contexts, and of Do for a COMMIT and for the search for its outcome.
	hanging = loss{name: "hanging for ever", lose: func(p *failover.Pair) { p.Freeze(p.Primary) }}
)

// losses are those of a run, one for each round.
func losses() []loss {
	short := []loss{cutOffAndKilled, killed, hangingAndKilled}
	if !long {
		return short
	}
	return append(slices.Repeat(short, 7), hanging)
}

// The primary is lost under load, and the standby takes over. Nothing that a
// client was told is lost with it, and nothing is done twice.
func TestPrimaryLostUnderLoadLosesNoAnswerAndDoublesNoEffect(t *testing.T) {
	t.Parallel()
	var all tally
	for i, l := range losses() {
		commit := []string{"on", "remote_apply"}[i%2]
		t.Run(fmt.Sprintf("%d %s %s", i+1, l.name, commit), func(t *testing.T) {
			p := failover.New(t, failover.Options{SynchronousCommit: commit})
			n := failOverUnderLoad(p, l)
			t.Log(n)
			all.add(n)
		})
	}
	t.Log("all: ", all)
	if all.inDoubt == 0 {
		t.Error("no commit was in doubt: this has shown nothing")
	}
}

// failOverUnderLoad lets the standby take over after a loss at a random moment,
// and checks what the clients were told before and afterwards.
func failOverUnderLoad(p *failover.Pair, l loss) tally {
	p.Helper()
	f := launch(p)
	f.progress(200)
	time.Sleep(rand.N(500 * time.Millisecond))
	l.lose(p)
	lost := time.Now()
	time.Sleep(rand.N(300 * time.Millisecond)) // until somebody notices
	p.Promote()
	if l.end != nil {
		l.end(p)
	}
	f.progress(200)
	answers := f.end()
	for _, v := range readLedger(p, p.Pool(p.DSNOf(p.Standby), 2)).violations(answers) {
		p.Error(v)
	}
	return count(answers, lost)
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
