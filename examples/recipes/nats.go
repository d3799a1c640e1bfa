package recipes

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/pgidem/idempotency"
)

// natsConfig is a consumer for it. MaxDeliver is off: settle counts the deliveries, and those
// of an outage are not the message's fault. MaxAckPending counts what is put back, too, so
// that an outage does not put back the whole stream.
var natsConfig = jetstream.ConsumerConfig{
	Durable: "billing", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 30 * time.Second, MaxDeliver: -1, MaxAckPending: 64,
}

// natsConsumer does its work once for each message of a JetStream consumer.
type natsConsumer struct {
	store     *idempotency.Store
	js        jetstream.JetStream
	operation string        // the scope: two consumers of a stream are two operations
	dead      string        // a subject in a stream of its own
	heartbeat time.Duration // a third of AckWait
	work      work
}

// run handles messages, one at a time, until ctx ends or the broker fails. It can be called
// again, and run many times in parallel, here and in other processes.
func (c *natsConsumer) run(ctx context.Context, from jetstream.Consumer) error {
	messages, err := from.Messages(jetstream.PullMaxMessages(8)) // few: AckWait runs while they wait in memory
	if err != nil {
		return err
	}
	defer messages.Stop()
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		if err := c.handle(ctx, m); err != nil {
			return err
		}
	}
}

// handle settles one message. Its error is one of the broker; the message comes again then,
// and is a replay if its effect is committed.
func (c *natsConsumer) handle(ctx context.Context, m jetstream.Msg) error {
	about, err := m.Metadata()
	if err != nil {
		return err
	}
	id := m.Headers().Get(nats.MsgIdHdr)
	if id == "" { // finds redeliveries, and not what was published twice
		id = fmt.Sprintf("%s/%d", about.Stream, about.Sequence.Stream)
	}
	key := idempotency.Key{Scope: c.operation, ID: id, Fingerprint: idempotency.FingerprintOf([]byte(m.Subject()), m.Data())}

	stop := c.keepInProgress(m)
	_, _, err = idempotency.Do(ctx, c.store, key, func(ctx context.Context, tx pgx.Tx) (receipt, error) {
		return c.work(ctx, tx, m.Data())
	})
	stop()

	switch what, after := settle(err, int(about.NumDelivered)); what {
	case acknowledge:
		return m.Ack() // after the commit. If it is lost, the next delivery is a replay
	case retry:
		return m.NakWithDelay(after)
	default:
		return c.bury(ctx, m, id, err)
	}
}

// keepInProgress tells the broker that the message is being worked on, so that it is not
// delivered again meanwhile. Nothing depends on that: a duplicate waits for the first one.
func (c *natsConsumer) keepInProgress(m jetstream.Msg) (stop func()) {
	beat := time.NewTicker(c.heartbeat)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-beat.C:
				m.InProgress()
			case <-done:
				return
			}
		}
	}()
	return func() { beat.Stop(); close(done) }
}

// bury keeps a copy first: Term alone leaves the message to the stream's limits, and removes
// it from a work queue. The copy has an id, so that burying it twice leaves one.
func (c *natsConsumer) bury(ctx context.Context, m jetstream.Msg, id string, why error) error {
	dead := nats.NewMsg(c.dead)
	dead.Data = m.Data()
	dead.Header.Set("Dead-Id", id)
	dead.Header.Set("Dead-Subject", m.Subject())
	dead.Header.Set("Dead-Reason", why.Error())
	about, err := m.Metadata()
	if err != nil {
		return err
	}
	once := jetstream.WithMsgID(fmt.Sprintf("%s/%s/%d", c.operation, about.Stream, about.Sequence.Stream))
	if _, err := c.js.PublishMsg(ctx, dead, once); err != nil {
		return err
	}
	return m.TermWithReason("see " + c.dead)
}
