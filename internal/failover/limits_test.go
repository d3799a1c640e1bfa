package failover_test

import (
	"testing"
	"time"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/failover"
)

// The tests here show what is not guaranteed. When one fails, a limit is gone:
// say so in docs/guarantees.md.
//
// A COMMIT is on the primary's disk, and then waits for the standby. When that
// wait is cancelled the commit becomes visible, and PostgreSQL does not tell
// those who read it from other commits. Only a call that is itself in doubt
// makes sure that the standby has what it returns.

// A slip is a way in which a commit becomes visible that the standby does not
// have.
type slip struct {
	name   string
	happen func(d *doubt)
}

func slips() []slip {
	short := []slip{
		{"the client has lost its connection", func(d *doubt) { d.lose() }},
		{"the primary was restarted", func(d *doubt) {
			d.waits("commit")
			d.Kill(d.Primary)
			d.Start(d.Primary)
		}},
	}
	if !long {
		return short
	}
	return append(short, slip{"the call has waited for a minute", func(d *doubt) {
		time.Sleep(time.Minute)
		d.Eventually("the commit is visible on the primary", d.Primary, recorded)
	}})
}

func TestLimitDuplicateReturnsWhatTheStandbyLacksAndTheFailoverLosesIt(t *testing.T) {
	t.Parallel()
	for _, slip := range slips() {
		t.Run(slip.name, func(t *testing.T) {
			t.Parallel()
			d := setupDoubt(t, failover.Options{})
			d.Link.Hold()
			call := d.start()
			slip.happen(d)

			duplicate := d.duplicate()
			if !duplicate.replayed || duplicate.value != d.runs[0] || duplicate.err != nil {
				t.Errorf("the duplicate got %+v", duplicate)
			}
			d.failOver()

			got, after := <-call, d.duplicate()
			if after.err != nil || after.value == duplicate.value {
				t.Errorf("after the failover a duplicate got %+v", after)
			}
			if got.err == nil && got.value != after.value {
				t.Errorf("the call in doubt got %+v, and then a duplicate %+v", got, after)
			}
			d.effects(after.value)
		})
	}
}

// The server answers such a COMMIT with success, and a warning.
func TestLimitCommitWhoseWaitAnOperatorCancelsIsAnswered(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t, failover.Options{})
	d.Link.Hold()
	call := d.start()
	d.waits("commit")
	d.Exec(d.Primary, "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'")
	got := <-call
	if got != (outcome{d.runs[0], false, nil}) || d.event.InDoubt != "" {
		t.Errorf("got %+v, event %+v", got, d.event)
	}
	d.failOver()
	after := d.duplicate()
	if after.err != nil || after.replayed || after.value == got.value {
		t.Errorf("after the failover a duplicate got %+v", after)
	}
	d.effects(after.value)
}

// duplicate is a call for the same key in another process.
func (d *doubt) duplicate() outcome {
	d.Helper()
	store := idempotency.New(d.Pool(d.DSN(), 2))
	value, replayed, err := idempotency.Do(d.Context(), store, d.key, execute(d.key.ID))
	return outcome{value, replayed, err}
}

// failOver loses the primary, and with it what it has not replicated.
func (d *doubt) failOver() {
	d.Helper()
	d.Link.Cut()
	d.Kill(d.Primary)
	d.Promote()
}
