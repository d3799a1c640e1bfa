package peers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/riverqueue/river/rivertype"
)

func init() {
	register(Peer{
		Name:    "River unique job",
		About:   "River v0.51.2: the request is a unique job of scope and key, worked at once in the same process; the business write, the output and JobCompleteTx are one transaction. A duplicate waits for the job as the first caller does. Its client works with a fetch cooldown of 1 ms instead of 100 ms.",
		Prepare: prepareRiver,
		Open:    openRiver,
	})
}

// As its author would review it:
//
//   - River is a queue, for work that nobody waits for. Here somebody does, so what
//     its documentation offers for latency is set: FetchCooldown at its least.
//   - The unique options are the default states, which include completed ones; a
//     completed job is kept for 24 h, its default, and with it the key.
//   - RecordOutput and JobCompleteTx in the transaction of the business write: both
//     or neither. The worker wakes the caller itself, right after the COMMIT: the
//     events of a subscription come up to 100 ms later.
//   - A duplicate is given the job's row, and waits for its end. It must not insert
//     again to ask: an insert that meets its like locks that row until it commits,
//     and workers pass over locked rows, so that a storm of such inserts keeps the
//     job from being worked at all.
//   - The bounds of a lost job are as short as makes sense for the work here:
//     JobTimeout and RescueStuckJobsAfter 5 s instead of a minute and an hour. The
//     rest cannot be set: the lease of the leader, whose client rescues (15 s), and
//     the interval in which it makes rescued jobs available (5 s).
//   - Retries of a failed job come after a second.
//   - A connection is held for LISTEN; PollOnly would save it, and cost latency.

const (
	riverBound = 5 * time.Second
	riverPoll  = 200 * time.Millisecond
)

type riverArgs struct {
	Scope  string `json:"scope" river:"unique"`
	ID     string `json:"id" river:"unique"`
	Amount int64  `json:"amount"`
	Body   []byte `json:"body"`
}

func (riverArgs) Kind() string { return "charge" }

func (riverArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{UniqueOpts: river.UniqueOpts{ByArgs: true}}
}

type riverClient struct {
	pool   *pgxpool.Pool
	client *river.Client[pgx.Tx]

	mu     sync.Mutex
	asking map[riverKey][]*riverAsker
}

// A riverAsker is a call of this process on its way: its hook is not for the args
// of a job.
type riverAsker struct {
	call   *Call
	worked chan riverOutcome
}

type riverOutcome struct {
	answer string
	err    error
}

type riverKey struct{ scope, id string }

func prepareRiver(ctx context.Context, env Env) error {
	pool, err := env.Pool(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), nil)
	if err != nil {
		return err
	}
	_, err = migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
	return err
}

func openRiver(ctx context.Context, env Env) (Client, error) {
	pool, err := env.Pool(ctx)
	if err != nil {
		return nil, err
	}
	r := &riverClient{pool: pool, asking: make(map[riverKey][]*riverAsker)}
	if err := r.start(ctx, env); err != nil {
		pool.Close()
		return nil, err
	}
	return r, nil
}

func (r *riverClient) start(ctx context.Context, env Env) (err error) {
	workers := river.NewWorkers()
	river.AddWorker(workers, &riverWorker{client: r})
	r.client, err = river.NewClient(riverpgxv5.New(r.pool), &river.Config{
		Workers:              workers,
		Queues:               map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: int(env.MaxConns)}},
		FetchCooldown:        river.FetchCooldownMin,
		JobTimeout:           riverBound,
		RescueStuckJobsAfter: riverBound,
		Logger:               slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		return err
	}
	return r.client.Start(context.WithoutCancel(ctx))
}

func (r *riverClient) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*riverBound)
	defer cancel()
	r.client.StopAndCancel(ctx)
	r.pool.Close()
}

type riverWorker struct {
	river.WorkerDefaults[riverArgs]
	client *riverClient
}

func (w *riverWorker) NextRetry(*river.Job[riverArgs]) time.Time {
	return time.Now().Add(time.Second)
}

func (w *riverWorker) Work(ctx context.Context, job *river.Job[riverArgs]) error {
	answer, err := w.charge(ctx, job)
	w.client.wake(job.Args, riverOutcome{answer, err})
	return err
}

func (w *riverWorker) charge(ctx context.Context, job *river.Job[riverArgs]) (answer string, err error) {
	return answer, pgx.BeginFunc(ctx, w.client.pool, func(tx pgx.Tx) error {
		call := w.client.callOf(job.Args)
		if answer, err = call.Write(ctx, tx); err != nil {
			return err
		}
		call.Written(ctx)
		if err := river.RecordOutput(ctx, answer); err != nil {
			return err
		}
		_, err = river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job)
		return err
	})
}

func (r *riverClient) wake(args riverArgs, outcome riverOutcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, asker := range r.asking[riverKey{args.Scope, args.ID}] {
		select {
		case asker.worked <- outcome:
		default:
		}
	}
}

func (r *riverClient) callOf(args riverArgs) *Call {
	r.mu.Lock()
	defer r.mu.Unlock()
	if askers := r.asking[riverKey{args.Scope, args.ID}]; len(askers) > 0 {
		return askers[0].call
	}
	return &Call{Scope: args.Scope, ID: args.ID, Amount: args.Amount, Body: args.Body}
}

func (r *riverClient) Do(ctx context.Context, call *Call) (string, error) {
	worked, leave := r.enter(call)
	defer leave()
	inserted, err := r.client.Insert(ctx, riverArgs{call.Scope, call.ID, call.Amount, call.Body}, nil)
	if err != nil {
		return "", err
	}
	if inserted.Job.FinalizedAt != nil {
		return riverAnswer(inserted.Job)
	}
	return r.await(ctx, inserted.Job.ID, worked)
}

// await asks for the job now and then, too: another process may work it. It does not
// stay for a job that has failed and comes again.
func (r *riverClient) await(ctx context.Context, id int64, worked <-chan riverOutcome) (string, error) {
	poll := time.NewTicker(riverPoll)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case outcome := <-worked:
			return outcome.answer, outcome.err
		case <-poll.C:
			job, err := r.client.JobGet(ctx, id)
			if err != nil {
				return "", err
			}
			if job.FinalizedAt != nil {
				return riverAnswer(job)
			}
		}
	}
}

// enter registers a call before its job is there: who inserts it has to be woken.
func (r *riverClient) enter(call *Call) (worked <-chan riverOutcome, leave func()) {
	key, asker := riverKey{call.Scope, call.ID}, &riverAsker{call, make(chan riverOutcome, 1)}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asking[key] = append(r.asking[key], asker)
	return asker.worked, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		left := slices.DeleteFunc(r.asking[key], func(a *riverAsker) bool { return a == asker })
		if r.asking[key] = left; len(left) == 0 {
			delete(r.asking, key)
		}
	}
}

// riverAnswer is the answer of a job that has ended.
func riverAnswer(job *rivertype.JobRow) (answer string, err error) {
	if job.State != rivertype.JobStateCompleted {
		return "", fmt.Errorf("the job has failed for good: it is %s", job.State)
	}
	return answer, json.Unmarshal(job.Output(), &answer)
}
