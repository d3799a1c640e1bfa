package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/migrations"
)

// The program of the README.
func Example() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	if err := migrations.Up(ctx, pool, "idempotency_examples"); err != nil {
		log.Fatal(err)
	}
	store, err := idempotency.NewWithConfig(pool, idempotency.Config{Schema: "idempotency_examples"})
	if err != nil {
		log.Fatal(err)
	}
	key := idempotency.Key{
		Scope:       "customer-7",                                // who asks
		ID:          "charge/order-1",                            // the operation, and the ID that the client sent
		Fingerprint: idempotency.FingerprintOf([]byte("10 EUR")), // what was asked for
	}
	for range 3 { // the client, and its retries
		receipt, replayed, err := idempotency.Do(ctx, store, key, func(ctx context.Context, tx pgx.Tx) (string, error) {
			var receipt string
			err := tx.QueryRow(ctx, "select 'charged ' || $1", "10 EUR").Scan(&receipt) // your business writes
			return receipt, err
		})
		fmt.Println(receipt, replayed, err)
	}
	if err := store.Delete(ctx, key); err != nil {
		log.Fatal(err)
	}
	// Output:
	// charged 10 EUR false <nil>
	// charged 10 EUR true <nil>
	// charged 10 EUR true <nil>
}

// exampleStore is on the table that Example has made.
func exampleStore() (*pgxpool.Pool, *idempotency.Store) {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	if err := migrations.Up(ctx, pool, "idempotency_examples"); err != nil {
		log.Fatal(err)
	}
	store, err := idempotency.NewWithConfig(pool, idempotency.Config{Schema: "idempotency_examples"})
	if err != nil {
		log.Fatal(err)
	}
	return pool, store
}

// A final refusal is a value, recorded like any other; a savepoint undoes what
// was written before it.
func ExampleDo_refusal() {
	ctx := context.Background()
	pool, store := exampleStore()
	defer pool.Close()
	key := idempotency.Key{Scope: "customer-7", ID: "order-2"}
	defer store.Delete(ctx, key)

	errDeclined := errors.New("card declined")
	charge := func(ctx context.Context, tx pgx.Tx) (string, error) {
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			// ... writes that must not stay ...
			return errDeclined
		})
		if errors.Is(err, errDeclined) {
			return "declined", nil
		}
		return "charged", err
	}
	for range 2 {
		fmt.Println(idempotency.Do(ctx, store, key, charge))
	}
	// Output:
	// declined false <nil>
	// declined true <nil>
}

// A replay does not run the function, so it asks nobody whether the caller still may.
// Rights are checked before Do, and what they depend on is in the scope.
func ExampleDo_authorisation() {
	ctx := context.Background()
	pool, store := exampleStore()
	defer pool.Close()

	mayCharge := map[string]bool{"alice": true}
	charge := func(user string) {
		if !mayCharge[user] { // before the call, and not in its function
			fmt.Println(user, "may not charge")
			return
		}
		key := idempotency.Key{Scope: user, ID: "order-5"} // the scope is who was authenticated
		fmt.Println(idempotency.Do(ctx, store, key, func(context.Context, pgx.Tx) (string, error) {
			return "charged for " + user, nil
		}))
	}
	charge("alice")
	charge("bob")
	charge("alice")
	mayCharge["alice"] = false
	charge("alice")
	store.Delete(ctx, idempotency.Key{Scope: "alice", ID: "order-5"})
	// Output:
	// charged for alice false <nil>
	// bob may not charge
	// charged for alice true <nil>
	// alice may not charge
}

// A procedure also asks somebody else: here a provider whose first answer is lost.
func ExampleProcedure() {
	ctx := context.Background()
	pool, store := exampleStore()
	defer pool.Close()
	if _, err := pool.Exec(ctx, "create table rides (id int generated always as identity, rider text, state text, charge text)"); err != nil {
		log.Fatal(err)
	}
	defer pool.Exec(ctx, "drop table rides")
	key := idempotency.Key{Scope: "ann", ID: "ride/1"}
	provider := exampleProvider{}

	type request struct {
		Rider, Card string
		Cents       int
	}
	type receipt struct {
		Ride     int
		Charge   string
		Declined bool
	}
	createRide := idempotency.Procedure[request, receipt]{
		Name: "create ride",
		Run: func(ctx context.Context, op *idempotency.Op, in request) (receipt, error) {
			ride, err := idempotency.Step(ctx, op, "create", func(ctx context.Context, tx pgx.Tx) (id int, err error) {
				err = tx.QueryRow(ctx, "insert into rides (rider) values ($1) returning id", in.Rider).Scan(&id)
				return id, err
			})
			if err != nil {
				return receipt{}, err
			}
			charge, err := idempotency.Call(ctx, op, "charge", func(ctx context.Context, key string) (cardCharge, error) {
				return provider.charge(ctx, key, in.Card, in.Cents)
			})
			if err != nil {
				return receipt{}, err
			}
			return idempotency.Step(ctx, op, "confirm", func(ctx context.Context, tx pgx.Tx) (receipt, error) {
				if charge.Declined {
					_, err := tx.Exec(ctx, "update rides set state = 'declined' where id = $1", ride)
					return receipt{Ride: ride, Declined: true}, err
				}
				_, err := tx.Exec(ctx, "update rides set state = 'paid', charge = $2 where id = $1", ride, charge.ID)
				return receipt{Ride: ride, Charge: charge.ID}, err
			})
		},
	}
	got, replayed, err := createRide.Do(ctx, store, key, request{Rider: "ann", Card: "visa", Cents: 2000})
	fmt.Println(replayed, errors.Is(err, errNoAnswer))
	for range 2 {
		got, replayed, err = createRide.Do(ctx, store, key, request{Rider: "ann", Card: "visa", Cents: 2000})
		fmt.Println(got, replayed, err)
	}
	fmt.Println("charges:", len(provider))
	store.Delete(ctx, key)
	// Output:
	// false true
	// {1 ch_1 false} false <nil>
	// {1 ch_1 false} true <nil>
	// charges: 1
}

type cardCharge struct {
	ID       string
	Declined bool
}

// An exampleProvider charges once for each key.
type exampleProvider map[string]cardCharge

func (p exampleProvider) charge(_ context.Context, key, _ string, _ int) (cardCharge, error) {
	made, known := p[key]
	if !known {
		p[key] = cardCharge{ID: fmt.Sprint("ch_", len(p)+1)}
		return cardCharge{}, errNoAnswer // it was made, and the answer is lost
	}
	return made, nil
}

// DoTx joins a transaction that the caller begins and commits.
func ExampleDoTx() {
	ctx := context.Background()
	pool, store := exampleStore()
	defer pool.Close()
	key := idempotency.Key{Scope: "queue", ID: "message-1"}
	defer store.Delete(ctx, key)

	for range 2 { // the message, and its redelivery
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			handled, replayed, err := idempotency.DoTx(ctx, store, tx, key, func(ctx context.Context, tx pgx.Tx) (bool, error) {
				return true, nil
			})
			fmt.Println(handled, replayed, err)
			return err
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// true false <nil>
	// true true <nil>
}

// A key that comes with another request is refused.
func ExampleFingerprintOf() {
	ctx := context.Background()
	pool, store := exampleStore()
	defer pool.Close()

	charge := func(amount string) {
		key := idempotency.Key{Scope: "customer-7", ID: "order-3", Fingerprint: idempotency.FingerprintOf([]byte(amount))}
		receipt, _, err := idempotency.Do(ctx, store, key, func(context.Context, pgx.Tx) (string, error) {
			return "charged " + amount, nil
		})
		fmt.Println(receipt, errors.Is(err, idempotency.ErrKeyReused))
	}
	charge("10 EUR")
	charge("20 EUR")
	charge("10 EUR")
	store.Delete(ctx, idempotency.Key{Scope: "customer-7", ID: "order-3"})
	// Output:
	// charged 10 EUR false
	//  true
	// charged 10 EUR false
}

// An operation is logged with slog, at a level that its outcome decides: what is
// normal quietly, what a client has to change or to try again as a warning.
func ExampleConfig_slog() {
	ctx := context.Background()
	pool, _ := exampleStore()
	defer pool.Close()

	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == "took" {
				return slog.Attr{} // so that this example prints the same each time
			}
			return a
		},
	}))
	store, err := idempotency.NewWithConfig(pool, idempotency.Config{
		Schema: "idempotency_examples",
		Observe: func(ctx context.Context, e idempotency.Event) {
			level := slog.LevelDebug
			switch e.Outcome {
			case "replayed":
				level = slog.LevelInfo
			case "in_progress", "key_reused":
				level = slog.LevelWarn
			case "failed", "outcome_unknown":
				level = slog.LevelError
			}
			attrs := []slog.Attr{slog.String("outcome", e.Outcome), slog.Int("runs", e.Runs), slog.Duration("took", e.Duration)}
			if e.InDoubt != "" { // the answer to a COMMIT was lost
				level = max(level, slog.LevelWarn)
				attrs = append(attrs, slog.String("in_doubt", e.InDoubt))
			}
			if e.Err != nil { // the function's own, too: mind what it says
				attrs = append(attrs, slog.Any("err", e.Err))
			}
			logger.LogAttrs(ctx, level, "idempotency "+e.Operation, attrs...)
		},
	})
	if err != nil {
		log.Fatal(err)
	}

	key := idempotency.Key{Scope: "customer-7", ID: "order-4"}
	charge := func(err error) {
		idempotency.Do(ctx, store, key, func(context.Context, pgx.Tx) (string, error) { return "charged", err })
	}
	charge(errors.New("no such account"))
	charge(nil)
	charge(nil)
	key.Fingerprint = idempotency.FingerprintOf([]byte("another order"))
	charge(nil)
	store.Delete(ctx, key)
	// Output:
	// level=ERROR msg="idempotency Do" outcome=failed runs=1 err="no such account"
	// level=DEBUG msg="idempotency Do" outcome=executed runs=1
	// level=INFO msg="idempotency Do" outcome=replayed runs=0
	// level=WARN msg="idempotency Do" outcome=key_reused runs=0 err="idempotency: key was used for another request: use a new key for a new operation"
	// level=DEBUG msg="idempotency Delete" outcome=done runs=0
}
