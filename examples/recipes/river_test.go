package recipes

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/riverqueue/river/rivertype"
)

// consumeRiver is a worker.
func consumeRiver(ctx context.Context, f *fated) error {
	client, err := riverClient(f.pool, &chargeWorker{store: f.store, work: f.charge, completeTx: os.Getenv("COMPLETE_TX") != ""}, true)
	if err != nil {
		return err
	}
	if err := client.Start(ctx); err != nil {
		return err
	}
	<-client.Stopped()
	return errors.New("stopped")
}

type mailWorker struct{ river.WorkerDefaults[mailJob] }

func (*mailWorker) Work(context.Context, *river.Job[mailJob]) error { return nil }

// riverClient works the charges, or only inserts jobs. The queue of the mails is not
// worked.
func riverClient(pool *pgxpool.Pool, worker *chargeWorker, works bool) (*river.Client[pgx.Tx], error) {
	config := &river.Config{Logger: slog.New(slog.DiscardHandler)}
	if works {
		config.Workers = river.NewWorkers()
		river.AddWorker(config.Workers, worker)
		river.AddWorker(config.Workers, &mailWorker{}) // else InsertTx does not know the kind
		config.Queues = map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 1}}
	}
	return river.NewClient(riverpgxv5.New(pool), config)
}

// setupRiver makes a database with River's tables, and a client that inserts jobs.
func setupRiver(t *testing.T) (*pgxpool.Pool, *river.Client[pgx.Tx]) {
	t.Helper()
	pool := database(t)
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := migrator.Migrate(t.Context(), rivermigrate.DirectionUp, nil); err != nil {
		t.Fatal(err)
	}
	client, err := riverClient(pool, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	return pool, client
}

func insertCharge(t *testing.T, client *river.Client[pgx.Tx], id string) {
	t.Helper()
	if _, err := client.Insert(t.Context(), chargeJob{order{ID: id, Cents: 1000}}, nil); err != nil {
		t.Fatal(err)
	}
}

// rescue does what River does with a job that runs since an hour. It returns how many.
func rescue(t *testing.T, pool *pgxpool.Pool) int64 {
	t.Helper()
	tag, err := pool.Exec(t.Context(), "update river_job set state = 'available' where kind = 'charge' and state = 'running'")
	if err != nil {
		t.Fatal(err)
	}
	return tag.RowsAffected()
}

// workUntil works jobs until one of them has come to an event.
func workUntil(t *testing.T, pool *pgxpool.Pool, worker *chargeWorker, kind river.EventKind) *rivertype.JobRow {
	t.Helper()
	client, err := riverClient(pool, worker, true)
	if err != nil {
		t.Fatal(err)
	}
	events, cancel := client.Subscribe(kind)
	defer cancel()
	if err := client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	event := receive(t, events, "no job is "+string(kind))
	if err := client.Stop(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	return event.Job
}

func wantMails(t *testing.T, pool *pgxpool.Pool, n int) {
	t.Helper()
	if got := one[int](t, pool, "select count(*) from river_job where kind = 'mail'"); got != n {
		t.Errorf("%d mails, want %d", got, n)
	}
}

func TestRiverKilledBeforeTheCommitOrTheCompletionChargesAndInsertsTheNextJobOnce(t *testing.T) {
	t.Parallel()
	pool, client := setupRiver(t)
	insertCharge(t, client, "order-1")
	for _, fate := range []string{"before 1", "after 1"} {
		killed(t, start(t, pool, "river", "RECIPES_TEST_FATE="+fate))
		if n := rescue(t, pool); n != 1 {
			t.Errorf("%s: %d jobs were running", fate, n)
		}
	}
	wantCharges(t, pool, 1)
	job := workUntil(t, pool, &chargeWorker{store: idempotency.New(pool), work: charge}, river.EventKindJobCompleted)
	if job.Attempt != 3 {
		t.Errorf("%d attempts", job.Attempt)
	}
	wantCharges(t, pool, 1)
	wantMails(t, pool, 1)
}

func TestRiverKilledAfterTheCommitWithJobCompleteTxHasNothingLeftToDo(t *testing.T) {
	t.Parallel()
	pool, client := setupRiver(t)
	insertCharge(t, client, "order-1")
	for _, fate := range []string{"before 1", "after 1"} {
		rescue(t, pool)
		killed(t, start(t, pool, "river", "COMPLETE_TX=1", "RECIPES_TEST_FATE="+fate))
	}
	if state := one[string](t, pool, "select state from river_job where kind = 'charge'"); state != "completed" {
		t.Errorf("the job is %s", state)
	}
	wantCharges(t, pool, 1)
	wantMails(t, pool, 1)
}

// A job that was rescued while its first worker was only slow: the key answers.
func TestRiverJobThatIsWorkedTwiceAtATimeIsSnoozedAndThenReplayed(t *testing.T) {
	t.Parallel()
	pool, client := setupRiver(t)
	insertCharge(t, client, "order-1")
	id := one[string](t, pool, "select id::text from river_job")
	store := impatient(t, pool)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	_, _, err = idempotency.DoTx(t.Context(), store, tx, idempotency.Key{Scope: "river charge", ID: id}, func(ctx context.Context, tx pgx.Tx) (receipt, error) {
		return charge(ctx, tx, orderMessage("order-1"))
	})
	if err != nil {
		t.Fatal(err)
	}
	workUntil(t, pool, &chargeWorker{store: store, work: charge}, river.EventKindJobSnoozed)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, "update river_job set state = 'available', scheduled_at = now() where kind = 'charge'") // no waiting
	if job := workUntil(t, pool, &chargeWorker{store: store, work: charge}, river.EventKindJobCompleted); job.Attempt != 1 {
		t.Errorf("%d attempts are counted", job.Attempt)
	}
	wantCharges(t, pool, 1)
	wantMails(t, pool, 0) // the other worker's function inserted none
}

func TestRiverHopelessJobIsCancelledAndKeepsItsError(t *testing.T) {
	t.Parallel()
	pool, client := setupRiver(t)
	insertCharge(t, client, "order-1")
	store, err := idempotency.NewWithConfig(pool, idempotency.Config{MaxResult: 1})
	if err != nil {
		t.Fatal(err)
	}
	job := workUntil(t, pool, &chargeWorker{store: store, work: charge}, river.EventKindJobCancelled)
	if job.State != rivertype.JobStateCancelled || len(job.Errors) != 1 {
		t.Errorf("the job is %s, with %d errors", job.State, len(job.Errors))
	}
	wantCharges(t, pool, 0)
}

func TestRiverFailedJobIsTriedAgainByItsPolicy(t *testing.T) {
	t.Parallel()
	pool, client := setupRiver(t)
	if _, err := client.Insert(t.Context(), chargeJob{order{ID: "order-1"}}, nil); err != nil { // no cents
		t.Fatal(err)
	}
	job := workUntil(t, pool, &chargeWorker{store: idempotency.New(pool), work: charge}, river.EventKindJobFailed)
	if job.State != rivertype.JobStateRetryable && job.State != rivertype.JobStateAvailable {
		t.Errorf("the job is %s", job.State)
	}
	if time.Until(job.ScheduledAt) > time.Hour {
		t.Errorf("tried again at %v", job.ScheduledAt)
	}
	wantCharges(t, pool, 0)
	wantMails(t, pool, 0)
}
