package recipes

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/twmb/franz-go/pkg/kgo"
)

// kafkaOptions are those of a client for the consumer: offsets are committed by run alone,
// after the database has committed.
func kafkaOptions(group, topic string) []kgo.Opt {
	return []kgo.Opt{
		kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll(),
	}
}

// kafkaConsumer does its work once for each record.
type kafkaConsumer struct {
	store     *idempotency.Store
	client    *kgo.Client
	operation string // the scope: two groups on a topic are two operations
	dead      string // a topic
	atOnce    int    // how many records of one poll run in parallel; those of one key never do
	work      work
}

// run handles polls of records until ctx ends, or the broker fails. A poll that was handled
// and whose offsets were not committed is delivered again, and replayed. Run closes the
// client: a later poll of the same one would begin behind the records that are not settled,
// and commit them too.
func (c *kafkaConsumer) run(ctx context.Context) error {
	defer c.client.CloseAllowingRebalance()
	for {
		fetches := c.client.PollRecords(ctx, 100)
		if err := fetches.Err0(); err != nil {
			return err
		}
		for _, failed := range fetches.Errors() {
			return fmt.Errorf("%s/%d: %w", failed.Topic, failed.Partition, failed.Err)
		}
		if err := inLanes(ctx, fetches.Records(), kafkaLane, c.atOnce, c.handle); err != nil {
			return err
		}
		if err := c.client.CommitRecords(ctx, fetches.Records()...); err != nil {
			return err
		}
		c.client.AllowRebalance()
	}
}

// kafkaLane: what has a key has an order. Records without one have that of their partition.
func kafkaLane(r *kgo.Record) string {
	if r.Key == nil {
		return fmt.Sprint(r.Partition)
	}
	return fmt.Sprintf("%d/%s", r.Partition, r.Key)
}

func kafkaID(r *kgo.Record) string {
	for _, h := range r.Headers {
		if h.Key == "id" { // the producer's
			return string(h.Value)
		}
	}
	// Finds redeliveries, and not what was produced twice.
	return fmt.Sprintf("%s/%d/%d", r.Topic, r.Partition, r.Offset)
}

// handle returns when the record is settled, or with an error of ctx or of the broker. Kafka
// cannot put one record back, and a later one of its key must not overtake it: so it tries
// again in place. Where that takes longer than the group's session, another consumer gets
// the partition, and each record still has one effect.
func (c *kafkaConsumer) handle(ctx context.Context, r *kgo.Record) error {
	key := idempotency.Key{Scope: c.operation, ID: kafkaID(r), Fingerprint: idempotency.FingerprintOf(r.Key, r.Value)}
	for delivery := 1; ; delivery++ {
		_, _, err := idempotency.Do(ctx, c.store, key, func(ctx context.Context, tx pgx.Tx) (receipt, error) {
			return c.work(ctx, tx, r.Value)
		})
		switch what, after := settle(err, delivery); what {
		case acknowledge:
			return nil
		case retry:
			if err := sleep(ctx, after); err != nil {
				return err
			}
		default:
			return c.bury(ctx, r, err)
		}
	}
}

// bury waits for the broker: the offset must not be committed before the copy is there. After
// a crash in between there are two copies, with the same id.
func (c *kafkaConsumer) bury(ctx context.Context, r *kgo.Record, why error) error {
	dead := &kgo.Record{Topic: c.dead, Key: r.Key, Value: r.Value, Headers: []kgo.RecordHeader{
		{Key: "id", Value: []byte(kafkaID(r))}, {Key: "reason", Value: []byte(why.Error())},
	}}
	return c.client.ProduceSync(ctx, dead).FirstErr()
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
