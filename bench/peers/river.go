package peers

import (
	"context"
	"encoding/json"
	"errors"
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
		About:   "River v0.51.2: the request is a unique job of scope and key, worked at once in the same process; the business write, the output and JobCompleteTx are one transaction. A duplicate of a job at work is told so. Its client works with a fetch cooldown of 1 ms instead of 100 ms.",
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
//     or neither. The caller is woken by a subscription.
//   - The bounds of a lost job are as short as the configuration allows for the work
//     here: JobTimeout and RescueStuckJobsAfter 5 s instead of a minute and an hour.
//     The rescuer looks every 30 s, on the client that is the elected leader; that
//     cannot be set. So what a killed process held is worked again after half a
//     minute to one, which is longer than this benchmark's clients ask.
//   - Retries of a failed job come after a second.
//   - A connection is held for LISTEN; PollOnly would save it, and cost latency.

const riverBound = 5 * time.Second

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
	stop   func()

	mu     sync.Mutex
	asking map[riverKey][]*riverAsker
}

// A riverAsker is a call of this process on its way: its hook is not for the args
// of a job.
type riverAsker struct {
	call   *Call
	events chan *river.Event
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
	events, unsubscribe := r.client.SubscribeConfig(&river.SubscribeConfig{
		ChanSize: 10_000,
		Kinds:    []river.EventKind{river.EventKindJobCompleted, river.EventKindJobFailed},
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for event := range events {
			r.wake(event)
		}
	}()
	r.stop = func() {
		unsubscribe()
		<-done
	}
	return r.client.Start(context.WithoutCancel(ctx))
}

func (r *riverClient) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*riverBound)
	defer cancel()
	r.client.StopAndCancel(ctx)
	r.stop()
	r.pool.Close()
}

func (r *riverClient) wake(event *river.Event) {
	var args riverArgs
	if json.Unmarshal(event.Job.EncodedArgs, &args) != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, asker := range r.asking[riverKey{args.Scope, args.ID}] {
		select {
		case asker.events <- event:
		default:
		}
	}
}

type riverWorker struct {
	river.WorkerDefaults[riverArgs]
	client *riverClient
}

func (w *riverWorker) NextRetry(*river.Job[riverArgs]) time.Time {
	return time.Now().Add(time.Second)
}

func (w *riverWorker) Work(ctx context.Context, job *river.Job[riverArgs]) error {
	return pgx.BeginFunc(ctx, w.client.pool, func(tx pgx.Tx) error {
		call := w.client.callOf(job.Args)
		answer, err := call.Write(ctx, tx)
		call.Written(ctx)
		if err != nil {
			return err
		}
		if err := river.RecordOutput(ctx, answer); err != nil {
			return err
		}
		_, err = river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job)
		return err
	})
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
	events, leave := r.enter(call)
	defer leave()
	inserted, err := r.client.Insert(ctx, riverArgs{call.Scope, call.ID, call.Amount, call.Body}, nil)
	switch {
	case err != nil:
		return "", err
	case inserted.UniqueSkippedAsDuplicate:
		return riverAnswer(inserted.Job)
	}
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case event := <-events:
		return riverAnswer(event.Job)
	}
}

// enter registers a call before its job is there: who inserts it has to be woken.
func (r *riverClient) enter(call *Call) (events chan *river.Event, leave func()) {
	key, asker := riverKey{call.Scope, call.ID}, &riverAsker{call, make(chan *river.Event, 1)}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asking[key] = append(r.asking[key], asker)
	return asker.events, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		left := slices.DeleteFunc(r.asking[key], func(a *riverAsker) bool { return a == asker })
		if r.asking[key] = left; len(left) == 0 {
			delete(r.asking, key)
		}
	}
}

func riverAnswer(job *rivertype.JobRow) (answer string, err error) {
	switch job.State {
	case rivertype.JobStateCompleted:
		return answer, json.Unmarshal(job.Output(), &answer)
	case rivertype.JobStateCancelled, rivertype.JobStateDiscarded:
		return "", errors.New("the job has failed for good")
	}
	return "", fmt.Errorf("%w: its job is %s", ErrInProgress, job.State)
}
