package recipes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/pgidem/idempotency"
)

// consumeNATS is a worker.
func consumeNATS(ctx context.Context, f *fated) error {
	nc, err := nats.Connect(os.Getenv("NATS_URL"))
	if err != nil {
		return err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	from, err := js.Consumer(ctx, "ORDERS", "billing")
	if err != nil {
		return err
	}
	c := natsConsumer{store: f.store, js: js, operation: "charge", dead: "dead.orders", heartbeat: time.Second / 3, work: f.charge}
	return c.run(ctx, from)
}

// A natsBench is a JetStream with the stream of orders and that of dead letters.
type natsBench struct {
	*testing.T
	url  string
	nc   *nats.Conn
	js   jetstream.JetStream
	from jetstream.Consumer
}

func setupNATS(t *testing.T, ackWait time.Duration) *natsBench {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("the server does not start")
	}
	b := &natsBench{T: t, url: s.ClientURL()}
	if b.nc, err = nats.Connect(b.url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.nc.Close)
	if b.js, err = jetstream.New(b.nc); err != nil {
		t.Fatal(err)
	}
	for _, stream := range []jetstream.StreamConfig{
		{Name: "ORDERS", Subjects: []string{"orders"}, Duplicates: 100 * time.Millisecond},
		{Name: "DEAD", Subjects: []string{"dead.>"}},
	} {
		if _, err := b.js.CreateStream(t.Context(), stream); err != nil {
			t.Fatal(err)
		}
	}
	config := natsConfig
	config.AckWait = ackWait
	config.SampleFrequency = "100" // each acknowledgement is an event
	if b.from, err = b.js.CreateConsumer(t.Context(), "ORDERS", config); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *natsBench) consumer(store *idempotency.Store) *natsConsumer {
	return &natsConsumer{store: store, js: b.js, operation: "charge", dead: "dead.orders", heartbeat: time.Hour, work: charge}
}

// publish sends a message until the stream stores it: within its duplicate window it says
// that it has not.
func (b *natsBench) publish(id string, data []byte) {
	b.Helper()
	m := nats.NewMsg("orders")
	m.Data = data
	if id != "" {
		m.Header.Set(nats.MsgIdHdr, id)
	}
	for {
		ack, err := b.js.PublishMsg(b.Context(), m)
		if err != nil {
			b.Fatal(err)
		}
		if !ack.Duplicate {
			return
		}
	}
}

func (b *natsBench) next() jetstream.Msg {
	b.Helper()
	m, err := b.from.Next(jetstream.FetchMaxWait(time.Minute))
	if err != nil {
		b.Fatal(err)
	}
	return m
}

// handle settles the next message, and returns how often it was delivered.
func (b *natsBench) handle(c *natsConsumer) (deliveries uint64) {
	b.Helper()
	m := b.next()
	if err := c.handle(b.Context(), m); err != nil {
		b.Fatal(err)
	}
	about, err := m.Metadata()
	if err != nil {
		b.Fatal(err)
	}
	return about.NumDelivered
}

// events counts those of a kind, such as acknowledgements.
func (b *natsBench) events(subject string) <-chan *nats.Msg {
	b.Helper()
	events := make(chan *nats.Msg, 100)
	if _, err := b.nc.ChanSubscribe(subject+".ORDERS.billing", events); err != nil {
		b.Fatal(err)
	}
	if err := b.nc.Flush(); err != nil {
		b.Fatal(err)
	}
	return events
}

const (
	acked      = server.JSMetricConsumerAckPre
	naked      = server.JSAdvisoryConsumerMsgNakPre
	terminated = server.JSAdvisoryConsumerMsgTerminatedPre
)

// wantNothingLeft fails unless every message is settled.
func (b *natsBench) wantNothingLeft() {
	b.Helper()
	info, err := b.from.Info(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	if info.NumAckPending != 0 || info.NumPending != 0 {
		b.Errorf("%d messages are unacknowledged, and %d not delivered", info.NumAckPending, info.NumPending)
	}
}

// deadLetters are those that were buried.
func (b *natsBench) deadLetters() (letters []*nats.Msg) {
	b.Helper()
	stream, err := b.js.Stream(b.Context(), "DEAD")
	if err != nil {
		b.Fatal(err)
	}
	for seq := range stream.CachedInfo().State.LastSeq {
		m, err := stream.GetMsg(b.Context(), seq+1)
		if err != nil {
			b.Fatal(err)
		}
		letters = append(letters, &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data})
	}
	return letters
}

func TestNATSKilledBeforeTheCommitOrTheAckChargesEachOrderOnce(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupNATS(t, time.Second)
	done := b.events(acked)
	for i := range 20 {
		b.publish(fmt.Sprint("m", i), orderMessage(fmt.Sprint("order-", i)))
	}
	for _, fate := range []string{"before 2", "after 3", "after 1", "before 1", "after 4"} {
		killed(t, start(t, pool, "nats", "NATS_URL="+b.url, "RECIPES_TEST_FATE="+fate))
	}
	if left := 20 - one[int](t, pool, "select count(*) from charges"); left == 0 {
		t.Error("nothing is left for the last consumer: this test shows less than it says")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- b.consumer(idempotency.New(pool)).run(ctx, b.from) }()
	for i := range 20 {
		receive(t, done, fmt.Sprintf("acknowledgement %d", i+1))
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the consumer has ended with %v", err)
	}
	b.wantNothingLeft()
	wantCharges(t, pool, 20)
}

func TestNATSPublishedTwiceBeyondTheDuplicateWindowChargesOnce(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupNATS(t, time.Hour)
	done := b.events(acked)
	for range 2 {
		b.publish("m1", orderMessage("order-1"))
		b.handle(b.consumer(idempotency.New(pool)))
		receive(t, done, "the acknowledgement")
	}
	b.wantNothingLeft()
	wantCharges(t, pool, 1)
}

func TestNATSSameIDWithOtherContentIsADeadLetter(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupNATS(t, time.Hour)
	ended := b.events(terminated)
	c := b.consumer(idempotency.New(pool))
	b.publish("m1", orderMessage("order-1"))
	b.handle(c)
	b.publish("m1", orderMessage("order-2"))
	m := b.next()
	if err := c.handle(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	receive(t, ended, "the termination")
	b.wantNothingLeft()
	wantCharges(t, pool, 1)

	// As if the process had died before Term: the copy is there once.
	if err := c.bury(t.Context(), m, "m1", errors.New("again")); !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
		t.Errorf("got %v", err)
	}
	letters := b.deadLetters()
	if len(letters) != 1 {
		t.Fatalf("%d dead letters", len(letters))
	}
	dead := letters[0]
	if dead.Header.Get("Dead-Id") != "m1" || dead.Header.Get("Dead-Subject") != "orders" ||
		!strings.Contains(dead.Header.Get("Dead-Reason"), idempotency.ErrKeyReused.Error()) || string(dead.Data) != string(orderMessage("order-2")) {
		t.Errorf("the dead letter is %v %s", dead.Header, dead.Data)
	}
}

func TestNATSWhatIsNoOrderIsADeadLetterAndTheNextMessageIsCharged(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupNATS(t, time.Hour)
	ended := b.events(terminated)
	c := b.consumer(idempotency.New(pool))
	b.publish("m1", []byte("{"))
	b.publish("m2", orderMessage("order-2"))
	b.handle(c)
	receive(t, ended, "the termination")
	b.handle(c)
	wantCharges(t, pool, 1)
	if letters := b.deadLetters(); len(letters) != 1 || string(letters[0].Data) != "{" {
		t.Errorf("the dead letters are %v", letters)
	}
}

func TestNATSDeadLetterThatCannotBeKeptIsNotTerminated(t *testing.T) {
	t.Parallel()
	b := setupNATS(t, time.Hour)
	c := b.consumer(idempotency.New(database(t)))
	c.dead = "nowhere"
	b.publish("m1", []byte("{"))
	if err := c.handle(t.Context(), b.next()); err == nil {
		t.Error("no error")
	}
	if info, err := b.from.Info(t.Context()); err != nil || info.NumAckPending != 1 {
		t.Errorf("the message is gone: %v", err)
	}
}

// AckWait is an hour: it is the Nak that brings the message back.
func TestNATSInFlightElsewhereIsPutBackAndThenReplayed(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupNATS(t, time.Hour)
	back, done := b.events(naked), b.events(acked)
	c := b.consumer(impatient(t, pool))
	message := orderMessage("order-1")
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	key := idempotency.Key{Scope: "charge", ID: "m1", Fingerprint: idempotency.FingerprintOf([]byte("orders"), message)}
	_, _, err = idempotency.DoTx(t.Context(), c.store, tx, key, func(ctx context.Context, tx pgx.Tx) (receipt, error) {
		return charge(ctx, tx, message)
	})
	if err != nil {
		t.Fatal(err)
	}
	b.publish("m1", message)
	b.handle(c)
	receive(t, back, "the Nak")
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := b.handle(c); n != 2 {
		t.Errorf("delivered %d times", n)
	}
	receive(t, done, "the acknowledgement")
	b.wantNothingLeft()
	wantCharges(t, pool, 1)
}

// AckWait is shorter than the function, and nothing says that it is at work.
func TestNATSRedeliveredWhileItRunsIsRunOnce(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupNATS(t, 200*time.Millisecond)
	done := b.events(acked)
	var runs atomic.Int64
	running, goOn := make(chan bool, 2), make(chan bool)
	ended := make(chan error)
	deliver := func() { // each in a process of its own, as far as the stores can tell
		m, c := b.next(), b.consumer(idempotency.New(pool))
		c.work = func(ctx context.Context, tx pgx.Tx, message []byte) (receipt, error) {
			runs.Add(1)
			running <- true
			<-goOn
			return charge(ctx, tx, message)
		}
		go func() { ended <- c.handle(t.Context(), m) }()
	}
	b.publish("m1", orderMessage("order-1"))
	deliver()
	receive(t, running, "the function does not run")
	deliver() // once AckWait is over
	close(goOn)
	for range 2 {
		if err := receive(t, ended, "a delivery does not end"); err != nil {
			t.Error(err)
		}
	}
	receive(t, done, "the acknowledgement")
	if runs.Load() != 1 {
		t.Errorf("%d runs", runs.Load())
	}
	wantCharges(t, pool, 1)
}

// A delivery is a message whose settlement a test looks at.
type delivery struct {
	jetstream.Msg
	number   uint64
	progress chan bool
	loses    bool
	settled  string
}

// Ack that is lost lets AckWait pass; the test does not wait that long.
func (d *delivery) Ack() error {
	if d.loses {
		return d.Msg.Nak()
	}
	return d.Msg.Ack()
}

func (d *delivery) Metadata() (*jetstream.MsgMetadata, error) {
	about, err := d.Msg.Metadata()
	if err == nil && d.number > 0 {
		about.NumDelivered = d.number
	}
	return about, err
}

func (d *delivery) InProgress() error {
	select {
	case d.progress <- true:
	default: // nobody looks
	}
	return d.Msg.InProgress()
}

func (d *delivery) NakWithDelay(after time.Duration) error {
	d.settled = "nak " + after.String()
	return nil
}

func (d *delivery) TermWithReason(string) error {
	d.settled = "term"
	return nil
}

func TestNATSLongFunctionSaysThatItIsInProgressUntilItEnds(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupNATS(t, time.Hour)
	b.publish("m1", orderMessage("order-1"))
	m := &delivery{Msg: b.next(), progress: make(chan bool, 1)}
	c := b.consumer(idempotency.New(pool))
	c.heartbeat = time.Millisecond
	c.work = func(ctx context.Context, tx pgx.Tx, message []byte) (receipt, error) {
		for range 3 {
			receive(t, m.progress, "InProgress")
		}
		return charge(ctx, tx, message)
	}
	if err := c.handle(t.Context(), m); err != nil {
		t.Error(err)
	}
	wantCharges(t, pool, 1)
}

func TestNATSDeliveriesCountForTheFunctionsErrors(t *testing.T) {
	t.Parallel()
	b := setupNATS(t, time.Hour)
	c := b.consumer(idempotency.New(database(t)))
	c.work = func(context.Context, pgx.Tx, []byte) (receipt, error) { return receipt{}, errors.New("out of paper") }
	b.publish("m1", orderMessage("order-1"))
	m := b.next()
	for number, want := range map[uint64]string{1: "nak 1s", 3: "nak 4s", 5: "term"} {
		d := &delivery{Msg: m, number: number}
		if err := c.handle(t.Context(), d); err != nil || d.settled != want {
			t.Errorf("delivery %d: %s, %v, want %s", number, d.settled, err, want)
		}
	}
}

func TestNATSTwoOperationsOnAMessageBothHappen(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupNATS(t, time.Hour)
	b.publish("m1", orderMessage("order-1"))
	m := b.next()
	for _, operation := range []string{"charge", "ship"} {
		c := b.consumer(idempotency.New(pool))
		c.operation = operation
		if err := c.handle(t.Context(), &delivery{Msg: m}); err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
			t.Error(err)
		}
	}
	if n := one[int](t, pool, "select count(*) from charges"); n != 2 {
		t.Errorf("%d operations", n)
	}
}

func TestNATSMessageWithoutAnIDIsKnownByItsPlaceInTheStream(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupNATS(t, time.Hour)
	c := b.consumer(idempotency.New(pool))
	for i := range 2 { // two messages, each delivered twice
		b.publish("", orderMessage(fmt.Sprint("order-", i)))
		if err := c.handle(t.Context(), &delivery{Msg: b.next(), loses: true}); err != nil {
			t.Error(err)
		}
		b.handle(c)
	}
	wantCharges(t, pool, 2)
	if n := one[int](t, pool, "select count(*) from idempotency_keys where scope = 'charge' and id in ('ORDERS/1', 'ORDERS/2')"); n != 2 {
		t.Errorf("%d keys are places", n)
	}
}
