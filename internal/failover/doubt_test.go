package failover_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/failover"
	"github.com/pgidem/idempotency/internal/pgproxy"
)

// A doubt is a call whose COMMIT waits for the standby, which does not answer.
type doubt struct {
	*failover.Pair
	proxy *pgproxy.Proxy // between the client and the primary
	store *idempotency.Store
	key   idempotency.Key
	runs  []string // what each run of the function has returned
	event idempotency.Event
}

type outcome struct {
	value    string
	replayed bool
	err      error
}

func setupDoubt(t *testing.T, opts failover.Options) *doubt {
	t.Helper()
	p := failover.New(t, opts)
	d := &doubt{
		Pair:  p,
		proxy: pgproxy.New(t, "tcp", p.Primary.Address()),
		key:   idempotency.Key{Scope: "test", ID: "key-1"},
	}
	pool := p.Pool(p.DSNThrough(d.proxy.Port()), 4)
	store, err := idempotency.NewWithConfig(pool, idempotency.Config{
		Observe: func(_ context.Context, e idempotency.Event) { d.event = e },
	})
	if err != nil {
		t.Fatal(err)
	}
	d.store = store
	return d
}

// run is the function of the call in doubt.
func (d *doubt) run(ctx context.Context, tx pgx.Tx) (string, error) {
	id, err := execute(d.key.ID)(ctx, tx)
	d.runs = append(d.runs, id)
	return id, err
}

func (d *doubt) start() <-chan outcome {
	call := make(chan outcome, 1)
	go func() {
		value, replayed, err := idempotency.Do(d.Context(), d.store, d.key, d.run)
		call <- outcome{value, replayed, err}
	}()
	return call
}

// waits until a transaction with this statement waits for the standby.
func (d *doubt) waits(statement string) {
	d.Helper()
	d.Eventually("a transaction waits for the standby: "+statement, d.Primary, `
		select exists (select from pg_stat_activity
		where wait_event = 'SyncRep' and usename = 'app' and query ilike $1)`, statement)
}

const recorded = "select exists (select from idempotency_keys where id = 'key-1' and result is not null)"

// lose breaks the connection of the COMMIT that waits. The driver then asks the
// server to cancel it, which ends the wait only: the commit is visible.
func (d *doubt) lose() {
	d.Helper()
	d.waits("commit")
	d.proxy.CutAll()
	d.Eventually("the commit is visible on the primary", d.Primary, recorded)
}

// stays: the call does not return while the standby is away, but waits for it
// with a write of its own.
func (d *doubt) stays(call <-chan outcome) {
	d.Helper()
	select {
	case got := <-call:
		d.Fatalf("got %+v before the standby had it", got)
	case <-time.After(time.Second):
	}
	d.waits("commit")
}

// effects checks that whichever server is the primary has one effect of the key:
// the one that the call has answered with.
func (d *doubt) effects(want string) {
	d.Helper()
	l := readLedger(d, d.Pool(d.DSN(), 2))
	for _, v := range l.violations([]answer{{Key: d.key.ID, Value: want}}) {
		d.Error(v)
	}
}

// absences are the ways in which a standby can be away: what is held back
// arrives later, or never.
var absences = []struct {
	name              string
	leave, back, lose func(d *doubt)
}{
	{
		name:  "the network is slow",
		leave: func(d *doubt) { d.Link.Hold() },
		back:  func(d *doubt) { d.Link.Release() },
		lose:  func(d *doubt) { d.Link.Cut() },
	},
	{
		name:  "the standby is frozen",
		leave: func(d *doubt) { d.Freeze(d.Standby) },
		back:  func(d *doubt) { d.Thaw(d.Standby) },
		lose: func(d *doubt) {
			d.Link.Cut()
			d.Kill(d.Standby)
			d.Start(d.Standby)
		},
	},
}

func TestCallInDoubtReturnsOnlyWhatTheStandbyHas(t *testing.T) {
	t.Parallel()
	for _, absence := range absences {
		t.Run(absence.name, func(t *testing.T) {
			t.Parallel()
			d := setupDoubt(t, failover.Options{SynchronousCommit: "remote_apply", WALLevel: "replica"})
			absence.leave(d)
			call := d.start()
			d.lose()
			d.stays(call)
			absence.back(d)
			got := <-call
			if got != (outcome{d.runs[0], true, nil}) || len(d.runs) != 1 || d.event.InDoubt != "committed" {
				t.Errorf("got %+v, event %+v after the runs %v", got, d.event, d.runs)
			}
			if !d.Bool(d.Standby, recorded) {
				t.Error("the call has returned what the standby does not have")
			}
			d.Kill(d.Primary)
			d.Promote()
			d.effects(got.value)
		})
	}
}

func TestCallInDoubtRunsAgainOnTheStandbyThatNeverGotItsCommit(t *testing.T) {
	t.Parallel()
	for _, absence := range absences {
		t.Run(absence.name, func(t *testing.T) {
			t.Parallel()
			d := setupDoubt(t, failover.Options{})
			absence.leave(d)
			call := d.start()
			d.lose()
			d.stays(call)
			d.Kill(d.Primary)
			absence.lose(d)
			d.Promote()
			got := <-call
			if len(d.runs) != 2 || got != (outcome{d.runs[1], false, nil}) {
				t.Errorf("got %+v after the runs %v", got, d.runs)
			}
			d.effects(got.value)
		})
	}
}

// After a restart everything that was committed is visible, with no wait for
// the standby.
func TestCallInDoubtIsNotMisledByThePrimarysRestart(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t, failover.Options{SynchronousCommit: "remote_apply"})
	d.Link.Hold()
	call := d.start()
	d.waits("commit")
	d.Kill(d.Primary)
	d.Start(d.Primary)
	if !d.Bool(d.Primary, recorded) {
		t.Error("the commit is not visible, so this test shows nothing")
	}
	d.stays(call)
	d.Link.Release()
	got := <-call
	if len(d.runs) != 1 || got != (outcome{d.runs[0], true, nil}) {
		t.Errorf("got %+v after the runs %v", got, d.runs)
	}
	if !d.Bool(d.Standby, recorded) {
		t.Error("the call has returned what the standby does not have")
	}
	d.effects(got.value)
}

func TestStandbyThatStaysAwayMakesTheOutcomeUnknown(t *testing.T) {
	t.Parallel()
	d := setupDoubt(t, failover.Options{})
	d.Link.Hold()
	call := d.start()
	d.lose()
	got := <-call
	if !errors.Is(got.err, idempotency.ErrOutcomeUnknown) || d.event.Duration < 30*time.Second || len(d.runs) != 1 {
		t.Errorf("got %+v, event %+v after the runs %v", got, d.event, d.runs)
	}
	d.Link.Release()
	value, replayed, err := idempotency.Do(t.Context(), d.store, d.key, d.run)
	if value != d.runs[0] || !replayed || err != nil {
		t.Errorf("then got %q, %v, %v", value, replayed, err)
	}
	d.effects(value)
}
