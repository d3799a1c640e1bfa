package peers

import (
	"context"
	"database/sql"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/rbaliyan/event/v3/idempotency"
	"github.com/rbaliyan/event/v3/transaction"
)

func init() {
	register(Peer{
		Name:    "event TransactionalHandler",
		About:   "rbaliyan/event v3.15.5, transaction.TransactionalHandler with idempotency.PostgresStore: look up, the business write, and a mark that it is done, in one transaction. It keeps no answer: the application reads its own row by the key, for which the business table gets an index.",
		Races:   true,
		Prepare: prepareEvent,
		Open:    openEvent,
	})
}

// As its author would review it:
//
//   - The transactional handler, which its documentation recommends for what must
//     not be executed twice, instead of IdempotentHandler, which marks in a second
//     step.
//   - database/sql over pgx, whose statements are prepared once a connection.
//   - A duplicate is told by nil and nothing else, so the application has to find
//     its answer: with an index on the key, the least that it needs.
//   - Its look-up does not lock, and its mark is an upsert: nothing stands between
//     parallel duplicates in READ COMMITTED, which SQLManager begins with. So the
//     documented atomic detection does not hold for them, and the effects in the
//     table of storms come from there: two calls of Handle at once, with nothing of
//     this adapter, have two effects. Where the application makes serializable the
//     default of its sessions, which the documentation does not ask for, one of the
//     two fails instead.

type eventDelivery struct {
	call   *Call
	answer string // empty after Handle: it was a duplicate
}

type eventClient struct {
	pool    *pgxpool.Pool
	db      *sql.DB
	store   *idempotency.PostgresStore
	handler *transaction.TransactionalHandler[*eventDelivery]
}

func prepareEvent(ctx context.Context, env Env) error {
	client, err := openEvent(ctx, env)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.(*eventClient).store.CreateTable(ctx); err != nil {
		return err
	}
	return execOnce(ctx, env, "create index on charges (key)")
}

func openEvent(ctx context.Context, env Env) (Client, error) {
	pool, err := env.Pool(ctx)
	if err != nil {
		return nil, err
	}
	e := &eventClient{pool: pool, db: stdlib.OpenDBFromPool(pool)}
	if err := e.build(); err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

func (e *eventClient) build() (err error) {
	if e.store, err = idempotency.NewPostgresStore(e.db, idempotency.WithPostgresTTL(24*time.Hour)); err != nil {
		return err
	}
	manager, err := transaction.NewSQLManager(e.db)
	if err != nil {
		return err
	}
	e.handler = transaction.NewTransactionalHandler(eventHandle, manager, e.store,
		func(d *eventDelivery) string { return d.call.Scope + ":" + d.call.ID })
	return nil
}

func (e *eventClient) Close() {
	if e.store != nil {
		e.store.Close()
	}
	e.db.Close()
	e.pool.Close()
}

// eventHandle is the application's handler.
func eventHandle(ctx context.Context, tx transaction.Transaction, d *eventDelivery) error {
	var id int64
	row := tx.(transaction.SQLTransactionProvider).Tx().QueryRowContext(ctx, BusinessSQL, d.call.ID, d.call.Amount)
	if err := row.Scan(&id); err != nil {
		return err
	}
	d.answer = d.call.Answer(id)
	d.call.Written(ctx)
	return nil
}

func (e *eventClient) Do(ctx context.Context, call *Call) (string, error) {
	delivery := &eventDelivery{call: call}
	if err := e.handler.Handle(ctx, delivery); err != nil || delivery.answer != "" {
		return delivery.answer, err
	}
	var id int64
	err := e.db.QueryRowContext(ctx, "select id from charges where key = $1 order by id limit 1", call.ID).Scan(&id)
	return call.Answer(id), err
}
