package peers

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/dbos-inc/dbos-transact-golang/dbos"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

func init() {
	register(Peer{
		Name:    "DBOS Transact",
		About:   "DBOS Transact for Go v1.8.0: a workflow whose ID is the key, with the business write in RunAsTransaction, on one pool for the application and DBOS, so that its record is in the same transaction. A duplicate polls every 100 ms.",
		Prepare: prepareDBOS,
		Open: func(ctx context.Context, env Env) (Client, error) {
			return openDBOS(ctx, env, (*dbosClient).charge)
		},
	})
	register(Peer{
		Name:    "DBOS Transact, steps",
		About:   "DBOS Transact for Go v1.8.0: a workflow whose ID is the key, of RunAsTransaction, RunAsStep and RunAsTransaction, on one pool. The provider gets the workflow's ID as its key; the step is tried again as often as it takes.",
		Steps:   true,
		Prepare: prepareDBOS,
		Open: func(ctx context.Context, env Env) (Client, error) {
			return openDBOS(ctx, env, (*dbosClient).chargeAtProvider)
		},
	})
}

// As its author would review it:
//
//   - The data source is the very pool of the system database: then
//     RunAsTransaction commits the business write and the record of the step in one
//     transaction. In a plain step the write could be executed twice.
//   - The workflow ID is scope and key; DBOS does not compare the input of a
//     workflow that exists already.
//   - What was pending is recovered in Launch, as an executor does that starts again
//     after a crash: with the same executor ID and application version, which are
//     the defaults of one machine and one binary. A retry that reaches another
//     executor meanwhile waits for that; only Conductor, a service, hands over.
//   - A handle to a workflow that another call has started polls once a second by
//     default. 100 ms here: nearer to what a waiting client wants, and no flood.
//   - A workflow that returns an error has ended for good, so that the step which asks the
//     provider has retries, from 100 ms on, as is the default.
//   - The log is off. There is no queue, no schedule, no Conductor.

type dbosInput struct {
	Scope, ID string
	Amount    int64
	Body      []byte
}

type dbosClient struct {
	pool     *pgxpool.Pool
	ctx      dbos.Context
	source   *dbos.DataSource
	workflow dbos.Workflow[dbosInput, string]
	provider string
	hooked   sync.Map // of *Call by workflow ID: their hooks are not for the input
}

func prepareDBOS(ctx context.Context, env Env) error {
	client, err := openDBOS(ctx, env, (*dbosClient).charge) // it migrates
	if err != nil {
		return err
	}
	client.Close()
	return nil
}

func openDBOS(ctx context.Context, env Env, workflow func(*dbosClient, dbos.Context, dbosInput) (string, error)) (Client, error) {
	pool, err := env.Pool(ctx)
	if err != nil {
		return nil, err
	}
	d := &dbosClient{pool: pool, provider: env.Provider}
	d.workflow = func(ctx dbos.Context, in dbosInput) (string, error) { return workflow(d, ctx, in) }
	if err := d.launch(ctx); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *dbosClient) launch(ctx context.Context) (err error) {
	d.ctx, err = dbos.NewContext(context.WithoutCancel(ctx), dbos.Config{
		AppName:      "bench",
		SystemDBPool: d.pool,
		Logger:       slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelError + 1})),
	})
	if err != nil {
		return err
	}
	if d.source, err = dbos.NewDataSource(d.ctx, d.pool); err != nil {
		return err
	}
	dbos.RegisterWorkflow(d.ctx, d.workflow, dbos.WithWorkflowName("charge"))
	return dbos.Launch(d.ctx)
}

func (d *dbosClient) Close() {
	if d.ctx != nil {
		dbos.Shutdown(d.ctx, 10*time.Second)
	}
	d.pool.Close()
}

// charge is the workflow.
func (d *dbosClient) charge(ctx dbos.Context, in dbosInput) (string, error) {
	call := d.callOf(in)
	return dbos.RunAsTransaction(ctx, d.source, func(ctx context.Context, tx dbos.Tx) (string, error) {
		answer, err := call.Write(ctx, dbosTx{tx})
		call.Written(ctx)
		return answer, err
	})
}

func (d *dbosClient) callOf(in dbosInput) *Call {
	call := &Call{Scope: in.Scope, ID: in.ID, Amount: in.Amount, Body: in.Body}
	if hooked, ok := d.hooked.Load(dbosID(call)); ok {
		call = hooked.(*Call)
	}
	return call
}

// chargeAtProvider is the workflow of two steps and a call.
func (d *dbosClient) chargeAtProvider(ctx dbos.Context, in dbosInput) (string, error) {
	call := d.callOf(in)
	var made charge
	var err error
	if made.Row, err = dbos.RunAsTransaction(ctx, d.source, func(ctx context.Context, tx dbos.Tx) (int64, error) {
		return call.create(ctx, dbosTx{tx})
	}); err != nil {
		return "", err
	}
	if made.Provider, err = dbos.RunAsStep(ctx, func(ctx context.Context) (string, error) {
		return call.charge(ctx, d.provider, dbosID(call))
	}, dbos.WithStepName("charge at the provider"), dbos.WithStepMaxRetries(100)); err != nil {
		return "", err
	}
	return dbos.RunAsTransaction(ctx, d.source, func(ctx context.Context, tx dbos.Tx) (string, error) {
		return call.confirm(ctx, dbosTx{tx}, made)
	})
}

// dbosTx has the QueryRow of pgx.
type dbosTx struct{ dbos.Tx }

func (t dbosTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return t.Tx.QueryRow(ctx, sql, args...)
}

func dbosID(call *Call) string { return call.Scope + ":" + call.ID }

func (d *dbosClient) Do(ctx context.Context, call *Call) (string, error) {
	id := dbosID(call)
	if _, other := d.hooked.LoadOrStore(id, call); !other {
		defer d.hooked.Delete(id)
	}
	handle, err := dbos.RunWorkflow(d.ctx, d.workflow, dbosInput{call.Scope, call.ID, call.Amount, call.Body}, dbos.WithWorkflowID(id))
	if err != nil {
		return "", err
	}
	wait := []dbos.GetResultOption{dbos.WithHandlePollingInterval(100 * time.Millisecond)}
	if deadline, ok := ctx.Deadline(); ok {
		wait = append(wait, dbos.WithHandleTimeout(max(time.Until(deadline), time.Millisecond)))
	}
	answer, err := handle.GetResult(wait...)
	return answer, errors.Join(err, ctx.Err())
}
