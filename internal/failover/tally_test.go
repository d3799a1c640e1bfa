package failover_test

import (
	"fmt"
	"time"
)

// A tally is what a round has shown.
type tally struct {
	answers, before, replayed, inDoubt, unknown, failed int
	away                                                time.Duration // from the loss to the next answer
	longest                                             time.Duration // that a client has waited for an answer
}

func count(answers []answer, lost time.Time) (n tally) {
	n.away = patience
	for _, a := range answers {
		n.answers++
		n.inDoubt += a.InDoubt
		n.unknown += a.Unknown
		n.failed += a.Failed
		n.longest = max(n.longest, a.Took)
		if a.Replayed {
			n.replayed++
		}
		if a.At.Before(lost) {
			n.before++
		} else {
			n.away = min(n.away, a.At.Sub(lost))
		}
	}
	return n
}

func (n *tally) add(m tally) {
	n.answers += m.answers
	n.before += m.before
	n.replayed += m.replayed
	n.inDoubt += m.inDoubt
	n.unknown += m.unknown
	n.failed += m.failed
	n.away = max(n.away, m.away)
	n.longest = max(n.longest, m.longest)
}

func (n tally) String() string {
	return fmt.Sprintf("%d answers, %d before the loss; %d replays; %d commits in doubt, %d of them unknown at first; %d calls failed and were made again; next answer after %v, longest wait for one %v",
		n.answers, n.before, n.replayed, n.inDoubt, n.unknown, n.failed,
		n.away.Round(time.Millisecond), n.longest.Round(time.Millisecond))
}
