package recipes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// consumeKafka is a worker.
func consumeKafka(ctx context.Context, f *fated) error {
	client, err := kgo.NewClient(append(kafkaOptions("billing", "orders"), kafkaSession(strings.Split(os.Getenv("BROKERS"), ","))...)...)
	if err != nil {
		return err
	}
	atOnce, err := strconv.Atoi(os.Getenv("AT_ONCE"))
	if err != nil {
		return err
	}
	c := kafkaConsumer{store: f.store, client: client, operation: "charge", dead: "dead", atOnce: atOnce, work: f.charge}
	return c.run(ctx)
}

// kafkaSession lets the group notice soon that a consumer was killed.
func kafkaSession(brokers []string) []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(brokers...), kgo.SessionTimeout(time.Second), kgo.HeartbeatInterval(200 * time.Millisecond),
		kgo.RebalanceTimeout(time.Second), kgo.FetchMaxWait(100 * time.Millisecond),
	}
}

// A kafkaBench is a cluster with the topics of orders and of dead letters.
type kafkaBench struct {
	*testing.T
	cluster *kfake.Cluster
	client  *kgo.Client
}

func setupKafka(t *testing.T) *kafkaBench {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "orders"), kfake.SeedTopics(1, "dead"),
		kfake.GroupMinSessionTimeout(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	b := &kafkaBench{T: t, cluster: cluster}
	b.client = b.connect(kgo.DefaultProduceTopic("orders"))
	return b
}

func (b *kafkaBench) connect(opts ...kgo.Opt) *kgo.Client {
	b.Helper()
	client, err := kgo.NewClient(append(opts, kafkaSession(b.cluster.ListenAddrs())...)...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(client.CloseAllowingRebalance)
	return client
}

func (b *kafkaBench) consumer(store *idempotency.Store, atOnce int) *kafkaConsumer {
	b.Helper()
	client := b.connect(kafkaOptions("billing", "orders")...)
	return &kafkaConsumer{store: store, client: client, operation: "charge", dead: "dead", atOnce: atOnce, work: charge}
}

func (b *kafkaBench) produce(records ...*kgo.Record) {
	b.Helper()
	if err := b.client.ProduceSync(b.Context(), records...).FirstErr(); err != nil {
		b.Fatal(err)
	}
}

// record is an order of a customer, with an id or without.
func record(customer, id, orderID string) *kgo.Record {
	r := &kgo.Record{Key: []byte(customer), Value: orderMessage(orderID)}
	if id != "" {
		r.Headers = []kgo.RecordHeader{{Key: "other", Value: []byte("x")}, {Key: "id", Value: []byte(id)}}
	}
	return r
}

// committed gets the sum of the offsets of each commit that reaches the cluster.
func (b *kafkaBench) committed() <-chan int64 {
	sums := make(chan int64, 1000)
	offsets := make(map[int32]int64)
	b.cluster.ControlKey(int16(kmsg.OffsetCommit), func(request kmsg.Request) (kmsg.Response, error, bool) {
		for _, topic := range request.(*kmsg.OffsetCommitRequest).Topics {
			for _, p := range topic.Partitions {
				offsets[p.Partition] = p.Offset
			}
		}
		sum := int64(0)
		for _, offset := range offsets {
			sum += offset
		}
		sums <- sum
		return nil, nil, false // as if nobody had looked
	})
	return sums
}

// consumeAll runs a consumer until the offsets of n records are committed.
func (b *kafkaBench) consumeAll(c *kafkaConsumer, n int64) {
	b.Helper()
	sums := b.committed()
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.run(ctx) }()
	for sum := int64(0); sum < n; {
		sum = receive(b, sums, fmt.Sprintf("a commit of offsets, after %d records", sum))
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		b.Errorf("the consumer has ended with %v", err)
	}
}

// killAtCommit starts a worker and kills it when its nth commit of offsets has arrived, which
// the cluster then forgets.
func (b *kafkaBench) killAtCommit(n int, start func() *exec.Cmd) {
	b.Helper()
	started := make(chan *exec.Cmd, 1)
	dead := make(chan *exec.Cmd, 1)
	b.cluster.ControlKey(int16(kmsg.OffsetCommit), func(kmsg.Request) (kmsg.Response, error, bool) {
		if n--; n > 0 {
			return nil, nil, false
		}
		worker := <-started
		worker.Process.Kill()
		dead <- worker
		return nil, errors.New("killed"), true
	})
	started <- start()
	killed(b.T, receive(b, dead, "a commit of offsets"))
}

func testKafkaKilled(t *testing.T, atOnce int) {
	t.Parallel()
	pool := database(t)
	b := setupKafka(t)
	for i := range 60 {
		b.produce(record(fmt.Sprint("customer-", i%7), fmt.Sprint("m", i), fmt.Sprint("order-", i)))
	}
	worker := func(fate string) *exec.Cmd {
		return start(t, pool, "kafka", "BROKERS="+strings.Join(b.cluster.ListenAddrs(), ","), "AT_ONCE="+strconv.Itoa(atOnce), "RECIPES_TEST_FATE="+fate)
	}
	killed(t, worker("before 3"))
	killed(t, worker("after 4"))
	b.killAtCommit(1, func() *exec.Cmd { return worker("") })
	charges := one[int](t, pool, "select count(*) from charges")
	if charges < 3 {
		t.Errorf("the killed ones have charged %d: this test shows less than it says", charges)
	}
	b.consumeAll(b.consumer(idempotency.New(pool), atOnce), 60)
	wantCharges(t, pool, 60)
}

func TestKafkaKilledBeforeTheCommitOrTheOffsetsChargesEachOrderOnceOneByOne(t *testing.T) {
	testKafkaKilled(t, 1)
}

func TestKafkaKilledBeforeTheCommitOrTheOffsetsChargesEachOrderOnceInABatch(t *testing.T) {
	testKafkaKilled(t, 8)
}

func TestKafkaIDIsThatOfTheHeaderElseTopicPartitionAndOffset(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupKafka(t)
	withID, again, without, more := record("ann", "m1", "order-1"), record("ann", "m1", "order-1"), record("ann", "", "order-2"), record("ann", "", "order-3")
	b.produce(withID, again, without, more)
	b.consumeAll(b.consumer(idempotency.New(pool), 1), 4)
	wantCharges(t, pool, 3)
	rows, err := pool.Query(t.Context(), "select id from idempotency_keys where scope = 'charge' order by id")
	if err != nil {
		t.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	p := without.Partition
	if want := []string{"m1", fmt.Sprintf("orders/%d/2", p), fmt.Sprintf("orders/%d/3", p)}; err != nil || !slices.Equal(ids, want) {
		t.Errorf("the ids are %q, %v, want %q", ids, err, want)
	}
}

func TestKafkaDeadLetterIsCopiedBeforeItsOffsetIsCommitted(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupKafka(t)
	bad := record("ann", "m1", "order-2") // the id of another order
	b.produce(record("ann", "m1", "order-1"), bad, record("ann", "m3", "order-3"))
	b.consumeAll(b.consumer(idempotency.New(pool), 8), 3)
	wantCharges(t, pool, 2)
	fetches := b.connect(kgo.ConsumeTopics("dead"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())).PollFetches(t.Context())
	letters := fetches.Records()
	if len(letters) != 1 {
		t.Fatalf("%d dead letters, %v", len(letters), fetches.Err())
	}
	dead := letters[0]
	if kafkaID(dead) != "m1" || string(dead.Key) != "ann" || string(dead.Value) != string(bad.Value) ||
		len(dead.Headers) != 2 || !strings.Contains(string(dead.Headers[1].Value), idempotency.ErrKeyReused.Error()) {
		t.Errorf("the dead letter is %+v", dead)
	}
}

func TestKafkaDeadLetterThatCannotBeKeptCommitsNothing(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupKafka(t)
	b.produce(&kgo.Record{Value: []byte("{")})
	sums := b.committed()
	c := b.consumer(idempotency.New(pool), 1)
	c.dead = "not a topic!"
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // where it does go on
	defer cancel()
	for range 2 { // the second time it must not go on behind the record
		if err := c.run(ctx); err == nil {
			t.Error("no error")
		}
		b.produce(&kgo.Record{Value: orderMessage("order-2")})
	}
	select {
	case <-sums:
		t.Error("the offset was committed")
	default:
	}
}

// What is in flight elsewhere is tried again in place, and the next record of its key waits.
func TestKafkaInFlightElsewhereIsTriedAgainAndNotOvertaken(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupKafka(t)
	b.produce(record("ann", "m1", "order-1"), record("ann", "m2", "order-2"))
	c := b.consumer(impatient(t, pool), 8)
	var calls atomic.Int64
	c.work = func(ctx context.Context, tx pgx.Tx, message []byte) (receipt, error) {
		if calls.Add(1) == 1 {
			return receipt{}, idempotency.ErrInProgress // as Do does
		}
		return charge(ctx, tx, message)
	}
	b.consumeAll(c, 2)
	wantCharges(t, pool, 2)
	if first := one[string](t, pool, "select order_id from charges order by id limit 1"); first != "order-1" {
		t.Errorf("%s is the first", first)
	}
	if calls.Load() != 3 {
		t.Errorf("%d calls", calls.Load())
	}
}

func TestKafkaTwoOperationsOnARecordBothHappen(t *testing.T) {
	t.Parallel()
	pool := database(t)
	b := setupKafka(t)
	for _, operation := range []string{"charge", "ship"} {
		c := &kafkaConsumer{store: idempotency.New(pool), client: b.client, operation: operation, work: charge}
		if err := c.handle(t.Context(), record("ann", "m1", "order-1")); err != nil {
			t.Error(err)
		}
	}
	if n := one[int](t, pool, "select count(*) from charges"); n != 2 {
		t.Errorf("%d operations", n)
	}
}

func TestKafkaRecordsOfOneKeyAreOneLane(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		a, b kgo.Record
		same bool
	}{
		{kgo.Record{Partition: 1, Key: []byte("ann"), Offset: 1}, kgo.Record{Partition: 1, Key: []byte("ann"), Offset: 2}, true},
		{kgo.Record{Partition: 1, Key: []byte("ann")}, kgo.Record{Partition: 1, Key: []byte("bob")}, false},
		{kgo.Record{Partition: 1, Key: []byte("ann")}, kgo.Record{Partition: 2, Key: []byte("ann")}, false},
		{kgo.Record{Partition: 1, Offset: 1}, kgo.Record{Partition: 1, Offset: 2}, true},
		{kgo.Record{Partition: 1}, kgo.Record{Partition: 2}, false},
	} {
		if got := kafkaLane(&test.a) == kafkaLane(&test.b); got != test.same {
			t.Errorf("%v and %v: %v", test.a, test.b, got)
		}
	}
}
