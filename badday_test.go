package idempotency_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// refuses calls every operation and expects an error with each of the words,
// and no execution.
func (b *bundle) refuses(words ...string) {
	b.Helper()
	never := func(context.Context, pgx.Tx) (int, error) {
		b.Error("the function was run")
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, _, doErr := idempotency.Do(ctx, b.store, b.key, never)
	_, getErr := b.store.Get(ctx, b.key)
	_, purgeErr := b.store.Purge(ctx)
	for name, err := range map[string]error{"Do": doErr, "Get": getErr, "Purge": purgeErr} {
		for _, word := range words {
			if err == nil || !strings.Contains(err.Error(), word) {
				b.Errorf("%s: %v\ndoes not say %q", name, err, word)
			}
		}
	}
	if ctx.Err() != nil {
		b.Error("the refusal took more than 5 s")
	}
}

func TestMissingTableIsAnErrorThatSaysWhatToRun(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("drop table idempotency_keys")
	b.refuses("migrations.Up", `"idempotency migrate up"`)
	tx := b.begin(pgx.TxOptions{})
	got := b.doTx(tx, charge(b.key.ID, 1))
	if got.err == nil || !strings.Contains(got.err.Error(), "migrations.Up") {
		t.Errorf("DoTx: %v", got.err)
	}
	b.usable(tx)
}

func TestMissingSchemaIsAnErrorThatSaysWhatToRun(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.store = b.storeOn(b.pool, idempotency.Config{Schema: "nowhere"})
	b.refuses("migrations.Up")
}

func TestTableOfAnotherVersionIsAnErrorThatSaysWhatToRun(t *testing.T) {
	inOnePiece(t)
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.exec("alter table idempotency_keys drop constraint idempotency_keys_pkey, drop column expires_at")
	b.refuses("migrations.Up")
}

func TestSchemaOfAnyNameIsUsed(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	for _, schema := range []string{"plain", "My-Schema", `it's "odd"`} {
		name := pgx.Identifier{schema}.Sanitize()
		b.exec("create schema " + name)
		b.exec("create table " + name + ".idempotency_keys (like idempotency_keys including all)")
		b.store = b.storeOn(b.pool, idempotency.Config{Schema: schema})
		b.executes(1)
		b.replays(1)
		if err := b.store.Delete(t.Context(), b.key); err != nil {
			t.Error(err)
		}
	}
}

func TestReadOnlyServerIsRefusedWithAClearError(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.store = b.storeOn(b.anotherPool(param("default_transaction_read_only", "on")), idempotency.Config{})
	_, _, err := b.do(charge(b.key.ID, 1))
	if err == nil || !strings.Contains(err.Error(), "connect to the primary") {
		t.Errorf("got %v", err)
	}
	b.effects(0)
}

// plainRole makes a role without any privilege, whose name needs no quotes.
func (b *bundle) plainRole() (name string) {
	b.Helper()
	name = "role_" + b.pool.Config().ConnConfig.Database
	b.exec("create role " + name)
	b.Cleanup(func() { b.exec("drop owned by " + name + "; drop role " + name) })
	return name
}

func TestMissingPrivilegeIsNamed(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	role := b.plainRole()
	b.store = b.storeOn(b.anotherPool(param("role", role)), idempotency.Config{})
	_, _, err := b.do(charge(b.key.ID, 1))
	if err == nil || !strings.Contains(err.Error(), "the role needs") {
		t.Errorf("got %v", err)
	}
	b.exec("grant select, insert, update, delete on idempotency_keys, charges to " + role)
	b.executes(1)
	b.replays(1)
	if err := b.store.Delete(t.Context(), b.key); err != nil {
		t.Errorf("Delete: %v", err)
	}
}

func TestUnreachableServerIsAnErrorAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.store = b.storeOn(b.anotherPool(address("127.0.0.1", 1)), idempotency.Config{})
	b.refuses("127.0.0.1:1")
	var connectErr *pgconn.ConnectError
	if _, _, err := b.do(charge(b.key.ID, 1)); !errors.As(err, &connectErr) {
		t.Errorf("got %v", err)
	}
}

func TestExhaustedPoolIsAnErrorAtTheCallersDeadline(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	pool := b.anotherPool(pgtest.MaxConns(1))
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b.store = b.storeOn(pool, idempotency.Config{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, _, err = idempotency.Do(ctx, b.store, b.key, charge(b.key.ID, 1))
	b.wantErr(err, context.DeadlineExceeded)
	if !strings.Contains(err.Error(), "acquire a connection: all connections of the pool are in use (MaxConns is 1)") {
		t.Errorf("got %v", err)
	}
	conn.Release()
	b.executes(1)
}

func TestFunctionThatWaitsForThePoolItHasUsedUpIsToldSo(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	pool := b.anotherPool(pgtest.MaxConns(1))
	b.store = b.storeOn(pool, idempotency.Config{})
	const says = "all connections of the pool are in use (MaxConns is 1)"
	for name, c := range map[string]struct {
		said bool
		fn   func(context.Context, pgx.Tx) error
	}{
		"through the pool": {true, func(ctx context.Context, _ pgx.Tx) error {
			_, err := pool.Exec(ctx, "select 1")
			return err
		}},
		"through its tx": {false, func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "select pg_sleep(10)")
			return err
		}},
	} {
		_, _, err := b.do(func(ctx context.Context, tx pgx.Tx) (int, error) {
			ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			defer cancel()
			return 0, c.fn(ctx, tx)
		})
		b.wantErr(err, context.DeadlineExceeded)
		if strings.Contains(err.Error(), says) != c.said {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.store = b.storeOn(b.pool, idempotency.Config{}) // of eight, of which one is in use
	_, _, err := b.do(func(ctx context.Context, _ pgx.Tx) (int, error) {
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		<-ctx.Done()
		return 0, ctx.Err()
	})
	if err != context.DeadlineExceeded {
		t.Errorf("a deadline of something else: %v", err)
	}
}

func TestTableThatIsLockedAwayIsNamedBehindErrInProgress(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.executes(1)
	b.store = b.storeOn(b.anotherPool(param("lock_timeout", "20ms")), idempotency.Config{Wait: 100 * time.Millisecond})
	tx := b.begin(pgx.TxOptions{})
	if _, err := tx.Exec(t.Context(), "lock table idempotency_keys in access exclusive mode"); err != nil {
		t.Fatal(err)
	}
	_, _, err := b.do(charge(b.key.ID, 2))
	b.wantErr(err, idempotency.ErrInProgress)
	if sqlState(err) != "55P03" {
		t.Errorf("got %v", err)
	}
}
