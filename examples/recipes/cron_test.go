package recipes

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
)

// setupCron makes a table of the slots that were run.
func setupCron(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := database(t)
	execute(t, pool, "create table runs (slot timestamptz not null)")
	return pool
}

func insertRun(ctx context.Context, tx pgx.Tx, slot time.Time) error {
	_, err := tx.Exec(ctx, "insert into runs values ($1)", slot)
	return err
}

func TestCronSlotIsRunOnceByThreeProcesses(t *testing.T) {
	t.Parallel()
	pool := setupCron(t)
	const slots = 5
	ctx, cancel := context.WithCancel(t.Context())
	began := time.Now()
	ran, ended := make(chan time.Time, 1000), make(chan error)
	for range 3 {
		store, err := idempotency.NewWithConfig(pool, idempotency.Config{Retention: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		j := &cronJob{store: store, name: "bills", every: 50 * time.Millisecond, work: func(ctx context.Context, tx pgx.Tx, slot time.Time) error {
			err := insertRun(ctx, tx, slot)
			ran <- slot
			return err
		}}
		go func() { ended <- j.run(ctx) }()
	}
	latest := receive(t, ran, "no slot")
	for range slots {
		slot := receive(t, ran, "the next slot")
		if slot.After(latest) {
			latest = slot
		}
	}
	cancel()
	for range 3 {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	if twice := one[int](t, pool, "select count(*) - count(distinct slot) from runs"); twice != 0 {
		t.Errorf("%d slots were run twice", twice)
	}
	// The latest one before the start is caught up with. Nothing between is left out.
	first, last := one[time.Time](t, pool, "select min(slot) from runs"), one[time.Time](t, pool, "select max(slot) from runs")
	if first.Before(began.Add(-50 * time.Millisecond)) {
		t.Errorf("the first slot is %v before the start", began.Sub(first))
	}
	if n, want := one[int](t, pool, "select count(*) from runs"), int(last.Sub(first)/(50*time.Millisecond))+1; n != want {
		t.Errorf("%d slots were run, from the first to the last there are %d", n, want)
	}
}

func TestCronLatestSlotIsCaughtUpWithOnce(t *testing.T) {
	t.Parallel()
	pool := setupCron(t)
	for range 2 { // two starts of the program
		ctx, cancel := context.WithCancel(t.Context())
		store, err := idempotency.NewWithConfig(pool, idempotency.Config{Observe: func(context.Context, idempotency.Event) { cancel() }})
		if err != nil {
			t.Fatal(err)
		}
		j := &cronJob{store: store, name: "bills", every: 10000 * time.Hour, work: insertRun}
		if err := j.run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	if n := one[int](t, pool, "select count(*) from runs"); n != 1 {
		t.Errorf("%d runs", n)
	}
}

func TestCronSlotThatFailedIsTriedAgain(t *testing.T) {
	t.Parallel()
	pool := setupCron(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var tries atomic.Int64
	store, err := idempotency.NewWithConfig(pool, idempotency.Config{Observe: func(_ context.Context, e idempotency.Event) {
		if e.Err == nil {
			cancel()
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	j := &cronJob{store: store, name: "bills", every: 10000 * time.Hour, work: func(ctx context.Context, tx pgx.Tx, slot time.Time) error {
		if tries.Add(1) == 1 {
			return errors.New("out of paper")
		}
		return insertRun(ctx, tx, slot)
	}}
	if err := j.run(ctx); !errors.Is(err, context.Canceled) || tries.Load() != 2 {
		t.Errorf("%d tries, %v", tries.Load(), err)
	}
	if n := one[int](t, pool, "select count(*) from runs"); n != 1 {
		t.Errorf("%d runs", n)
	}
}

func TestCronKeyIsTheNameAndThePlannedTimeInAnyZone(t *testing.T) {
	t.Parallel()
	pool := setupCron(t)
	store := idempotency.New(pool)
	slot := time.Date(2026, 3, 29, 1, 0, 0, 0, time.UTC)
	for i, run := range []struct {
		name string
		slot time.Time
		runs int
	}{
		{"bills", slot, 1},
		{"bills", slot.In(time.FixedZone("CEST", 2*60*60)), 1},
		{"mails", slot, 2},
		{"bills", slot.Add(24 * time.Hour), 3},
		{"bills", slot.Add(50 * time.Millisecond), 4},
	} {
		j := &cronJob{store: store, name: run.name, work: insertRun}
		if err := j.runSlot(t.Context(), run.slot); err != nil {
			t.Error(err)
		}
		if n := one[int](t, pool, "select count(*) from runs"); n != run.runs {
			t.Errorf("after call %d: %d runs, want %d", i+1, n, run.runs)
		}
	}
}
