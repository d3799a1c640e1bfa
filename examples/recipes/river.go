package recipes

import (
	"context"
	"encoding/json"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
)

// chargeJob is a job of River.
type chargeJob struct {
	Order order `json:"order"`
}

func (chargeJob) Kind() string { return "charge" }

// chargeWorker works a job once, also if the process dies before River knows that it has
// ended: River rescues the job (after an hour), and works it again.
type chargeWorker struct {
	river.WorkerDefaults[chargeJob]
	store *idempotency.Store
	work  work

	// completeTx ends the job in the commit of its effect. It saves a replay after a crash,
	// and a round trip later; the key still answers for two workers on one job, such as one
	// that was only slow when its job was rescued.
	completeTx bool
}

// Work does the job. JobSnooze puts it back and counts no attempt; JobCancel keeps it as a
// dead letter, for Config.CancelledJobRetentionPeriod.
func (w *chargeWorker) Work(ctx context.Context, job *river.Job[chargeJob]) error {
	key := idempotency.Key{Scope: "river charge", ID: strconv.FormatInt(job.ID, 10)}
	_, _, err := idempotency.Do(ctx, w.store, key, func(ctx context.Context, tx pgx.Tx) (receipt, error) {
		message, err := json.Marshal(job.Args.Order)
		if err != nil {
			return receipt{}, err
		}
		r, err := w.work(ctx, tx, message)
		if err != nil {
			return receipt{}, err
		}
		// What else is to happen is a job in the same transaction, so that it happens once.
		if _, err := river.ClientFromContext[pgx.Tx](ctx).InsertTx(ctx, tx, mailJob{Order: r.Order}, nil); err != nil {
			return receipt{}, err
		}
		if w.completeTx {
			_, err = river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job)
		}
		return r, err
	})
	switch what, after := settle(err, 1); { // as the first: River counts attempts by itself
	case what == deadLetter:
		return river.JobCancel(err)
	case isPassing(err):
		return river.JobSnooze(after)
	default:
		return err // nil completes the job; an error is tried again up to MaxAttempts
	}
}

// mailJob is the second effect.
type mailJob struct {
	Order string `json:"order"`
}

func (mailJob) Kind() string { return "mail" }

// mailJobs go to a queue of their own.
func (mailJob) InsertOpts() river.InsertOpts { return river.InsertOpts{Queue: "mail"} }
