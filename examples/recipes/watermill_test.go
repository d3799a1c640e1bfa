package recipes

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
)

// A watermillBench is a Router with one handler: it charges what comes from the topic
// "orders", and publishes to "charged".
type watermillBench struct {
	*testing.T
	pubsub  *gochannel.GoChannel
	charged <-chan *message.Message
	dead    <-chan *message.Message
	runs    atomic.Int64
}

// setupWatermill starts it. Publisher is what publishes to "charged"; nil is the broker.
func setupWatermill(t *testing.T, pool *pgxpool.Pool, store *idempotency.Store, publisher func(message.Publisher) message.Publisher) *watermillBench {
	t.Helper()
	b := &watermillBench{T: t, pubsub: gochannel.NewGoChannel(gochannel.Config{Persistent: true}, watermill.NopLogger{})}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	router.AddMiddleware(settled(b.pubsub, "dead"))
	out := message.Publisher(b.pubsub)
	if publisher != nil {
		out = publisher(out)
	}
	router.AddHandler("billing", "orders", b.pubsub, "charged", out, once(store, "charge", func(ctx context.Context, tx pgx.Tx, m *message.Message) ([]*message.Message, error) {
		b.runs.Add(1)
		if _, err := charge(ctx, tx, m.Payload); err != nil {
			return nil, err
		}
		told := message.NewMessage(watermill.NewUUID(), m.Payload)
		told.Metadata.Set("kind", "charged")
		return []*message.Message{told}, nil
	}))
	if b.charged, err = b.pubsub.Subscribe(t.Context(), "charged"); err != nil {
		t.Fatal(err)
	}
	if b.dead, err = b.pubsub.Subscribe(t.Context(), "dead"); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- router.Run(context.WithoutCancel(t.Context())) }()
	receive(t, router.Running(), "the router does not run")
	t.Cleanup(func() {
		router.Close()
		<-ended
		b.pubsub.Close()
	})
	return b
}

func (b *watermillBench) publish(uuid string, payload []byte) {
	b.Helper()
	if err := b.pubsub.Publish("orders", message.NewMessage(uuid, payload)); err != nil {
		b.Fatal(err)
	}
}

func (b *watermillBench) receive(from <-chan *message.Message, what string) *message.Message {
	b.Helper()
	m := receive(b, from, what)
	m.Ack()
	return m
}

// lossy fails for the first message, as if the process had died behind the commit.
type lossy struct {
	message.Publisher
	mu    sync.Mutex
	asked []string
}

func (l *lossy) Publish(topic string, messages ...*message.Message) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, messages[0].UUID)
	if len(l.asked) == 1 {
		return errors.New("the broker is away")
	}
	return l.Publisher.Publish(topic, messages...)
}

func TestWatermillPublishingThatFailsAfterTheCommitPublishesTheSameMessageAgain(t *testing.T) {
	t.Parallel()
	pool := database(t)
	l := &lossy{}
	b := setupWatermill(t, pool, idempotency.New(pool), func(p message.Publisher) message.Publisher { l.Publisher = p; return l })
	b.publish("m1", orderMessage("order-1"))
	got := b.receive(b.charged, "the message")
	b.publish("m1", orderMessage("order-1")) // and a duplicate of the broker
	again := b.receive(b.charged, "the message of the duplicate")
	for _, m := range []*message.Message{got, again} {
		if m.UUID != l.asked[0] || string(m.Payload) != string(orderMessage("order-1")) || m.Metadata.Get("kind") != "charged" {
			t.Errorf("got %s %v %s, want the UUID %s", m.UUID, m.Metadata, m.Payload, l.asked[0])
		}
	}
	if b.runs.Load() != 1 {
		t.Errorf("%d runs", b.runs.Load())
	}
	wantCharges(t, pool, 1)
}

func TestWatermillHopelessMessageIsADeadLetterWithItsUUID(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupWatermill(t, pool, idempotency.New(pool), nil)
	b.publish("m1", orderMessage("order-1"))
	b.receive(b.charged, "the message")
	b.publish("m1", orderMessage("order-2"))
	dead := b.receive(b.dead, "the dead letter")
	if dead.UUID != "m1" || string(dead.Payload) != string(orderMessage("order-2")) || !strings.Contains(dead.Metadata.Get("reason"), idempotency.ErrKeyReused.Error()) {
		t.Errorf("the dead letter is %s %v %s", dead.UUID, dead.Metadata, dead.Payload)
	}
	b.publish("m3", orderMessage("order-3")) // it is in nobody's way
	b.receive(b.charged, "the next message")
	wantCharges(t, pool, 2)
}

func TestWatermillInFlightElsewhereIsTriedAgainAndThenReplayed(t *testing.T) {
	t.Parallel()
	pool := database(t)
	refused := make(chan bool, 1)
	store, err := idempotency.NewWithConfig(pool, idempotency.Config{Wait: -1, Observe: func(_ context.Context, e idempotency.Event) {
		if errors.Is(e.Err, idempotency.ErrInProgress) {
			select {
			case refused <- true:
			default:
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	message := orderMessage("order-1")
	running, goOn, ended := make(chan bool), make(chan bool), make(chan error)
	go func() { // another process
		key := idempotency.Key{Scope: "charge", ID: "m1", Fingerprint: idempotency.FingerprintOf(message)}
		_, _, err := idempotency.Do(t.Context(), idempotency.New(pool), key, func(ctx context.Context, tx pgx.Tx) ([]produced, error) {
			close(running)
			<-goOn
			_, err := charge(ctx, tx, message)
			return []produced{{UUID: "p1", Payload: message}}, err
		})
		ended <- err
	}()
	receive(t, running, "the other process does not run")
	b := setupWatermill(t, pool, store, nil)
	b.publish("m1", message)
	receive(t, refused, "nothing was refused")
	close(goOn)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if m := b.receive(b.charged, "the message"); m.UUID != "p1" {
		t.Errorf("published %s", m.UUID)
	}
	if b.runs.Load() != 0 {
		t.Errorf("%d runs", b.runs.Load())
	}
	wantCharges(t, pool, 1)
}

func TestWatermillTwoOperationsOnAMessageBothHappen(t *testing.T) {
	t.Parallel()
	pool := database(t)
	store := idempotency.New(pool)
	for _, operation := range []string{"charge", "ship"} {
		h := once(store, operation, func(ctx context.Context, tx pgx.Tx, m *message.Message) ([]*message.Message, error) {
			_, err := charge(ctx, tx, m.Payload)
			return nil, err
		})
		if _, err := h(message.NewMessage("m1", orderMessage("order-1"))); err != nil {
			t.Error(err)
		}
	}
	if n := one[int](t, pool, "select count(*) from charges"); n != 2 {
		t.Errorf("%d operations", n)
	}
}
