package recipes

import (
	"context"
	"database/sql"

	"github.com/ThreeDotsLabs/watermill"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemsql"
	"github.com/riverqueue/river"
)

// An outbox is a table with what is still to be told to others. Where a row of it is written
// in the function, it commits with the effect or not at all, and a replay writes none.

// chargeAndInsertJob has River as its outbox. The client needs no queues: another process
// can work the jobs.
func chargeAndInsertJob(ctx context.Context, store *idempotency.Store, jobs *river.Client[pgx.Tx], key idempotency.Key, body []byte) (receipt, error) {
	r, _, err := idempotency.Do(ctx, store, key, func(ctx context.Context, tx pgx.Tx) (receipt, error) {
		r, err := charge(ctx, tx, body)
		if err != nil {
			return receipt{}, err
		}
		_, err = jobs.InsertTx(ctx, tx, mailJob{Order: r.Order}, nil) // not Insert: that commits by itself
		return r, err
	})
	return r, err
}

// outboxConfig makes no tables, since watermill-sql refuses to make them in a transaction: a
// program calls SubscribeInitialize of a subscriber when it starts.
var outboxConfig = watermillsql.PublisherConfig{SchemaAdapter: watermillsql.DefaultPostgreSQLSchema{}}

// publishIn publishes to the topic "charged" in the transaction: a forwarder of Watermill,
// or any of its subscribers to PostgreSQL, takes it from there.
func publishIn(tx watermillsql.ContextExecutor, m *message.Message) error {
	publisher, err := watermillsql.NewPublisher(tx, outboxConfig, watermill.NopLogger{})
	if err != nil {
		return err
	}
	return publisher.Publish("charged", m)
}

// chargeAndPublish has watermill-sql as its outbox.
func chargeAndPublish(ctx context.Context, store *idempotency.Store, key idempotency.Key, body []byte) (receipt, error) {
	r, _, err := idempotency.Do(ctx, store, key, func(ctx context.Context, tx pgx.Tx) (receipt, error) {
		r, err := charge(ctx, tx, body)
		if err != nil {
			return receipt{}, err
		}
		return r, publishIn(watermillsql.TxFromPgx(tx), message.NewMessage(watermill.NewUUID(), body))
	})
	return r, err
}

// publishWithSQL is the same for a function that takes a *sql.Tx.
func publishWithSQL(ctx context.Context, store *idempotency.Store, key idempotency.Key, body []byte) error {
	_, _, err := idempotency.Do(ctx, store, key, idemsql.Func(func(ctx context.Context, tx *sql.Tx) (string, error) {
		m := message.NewMessage(watermill.NewUUID(), body)
		return m.UUID, publishIn(watermillsql.TxFromStdSQL(tx), m)
	}))
	return err
}
