package recipes

import (
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
)

// badOrder is refused by the database, after the function has begun.
var badOrder = []byte(`{"id": "order-bad", "cents": 0}`)

func TestOutboxJobIsInsertedOnceWithItsEffectOrNotAtAll(t *testing.T) {
	t.Parallel()
	pool, client := setupRiver(t)
	store := idempotency.New(pool)
	for range 2 {
		if r, err := chargeAndInsertJob(t.Context(), store, client, idempotency.Key{Scope: "charge", ID: "1"}, orderMessage("order-1")); err != nil || r.Charge != 1 {
			t.Errorf("got %v, %v", r, err)
		}
	}
	wantCharges(t, pool, 1)
	wantMails(t, pool, 1)

	// The function inserts the job, and then nothing commits.
	small, err := idempotency.NewWithConfig(pool, idempotency.Config{MaxResult: 1})
	if err != nil {
		t.Fatal(err)
	}
	for key, body := range map[string][]byte{"too large": orderMessage("order-2"), "bad": badOrder} {
		if _, err := chargeAndInsertJob(t.Context(), small, client, idempotency.Key{Scope: "charge", ID: key}, body); err == nil {
			t.Errorf("%s: no error", key)
		}
	}
	wantCharges(t, pool, 1)
	wantMails(t, pool, 1)
}

// setupOutbox makes the topic's table, as a program does when it starts.
func setupOutbox(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := database(t)
	subscriber, err := watermillsql.NewSubscriber(watermillsql.BeginnerFromPgx(pool), watermillsql.SubscriberConfig{
		SchemaAdapter: outboxConfig.SchemaAdapter, OffsetsAdapter: watermillsql.DefaultPostgreSQLOffsetsAdapter{}, InitializeSchema: true,
	}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	if err := subscriber.SubscribeInitialize("charged"); err != nil {
		t.Fatal(err)
	}
	return pool
}

func wantPublished(t *testing.T, pool *pgxpool.Pool, n int) {
	t.Helper()
	if got := one[int](t, pool, "select count(*) from watermill_charged"); got != n {
		t.Errorf("%d messages, want %d", got, n)
	}
}

func TestOutboxMessageIsPublishedOnceWithItsEffectOrNotAtAll(t *testing.T) {
	t.Parallel()
	pool := setupOutbox(t)
	store := idempotency.New(pool)
	for range 2 {
		if r, err := chargeAndPublish(t.Context(), store, idempotency.Key{Scope: "charge", ID: "1"}, orderMessage("order-1")); err != nil || r.Charge != 1 {
			t.Errorf("got %v, %v", r, err)
		}
	}
	wantCharges(t, pool, 1)
	wantPublished(t, pool, 1)

	small, err := idempotency.NewWithConfig(pool, idempotency.Config{MaxResult: 1})
	if err != nil {
		t.Fatal(err)
	}
	for key, body := range map[string][]byte{"too large": orderMessage("order-2"), "bad": badOrder} {
		if _, err := chargeAndPublish(t.Context(), small, idempotency.Key{Scope: "charge", ID: key}, body); err == nil {
			t.Errorf("%s: no error", key)
		}
	}
	wantCharges(t, pool, 1)
	wantPublished(t, pool, 1)
}

func TestOutboxTakesATransactionOfDatabaseSQLToo(t *testing.T) {
	t.Parallel()
	pool := setupOutbox(t)
	store := idempotency.New(pool)
	for range 2 {
		if err := publishWithSQL(t.Context(), store, idempotency.Key{Scope: "charge", ID: "1"}, orderMessage("order-1")); err != nil {
			t.Error(err)
		}
	}
	wantPublished(t, pool, 1)
	small, err := idempotency.NewWithConfig(pool, idempotency.Config{MaxResult: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := publishWithSQL(t.Context(), small, idempotency.Key{Scope: "charge", ID: "2"}, orderMessage("order-2")); err == nil {
		t.Error("no error")
	}
	wantPublished(t, pool, 1)
}
