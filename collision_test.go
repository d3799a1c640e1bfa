package idempotency_test

import (
	"context"
	"hash/fnv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

// Two keys with one lock number: 6.7 billion hashes were made to find a pair.
var colliding = [2]idempotency.Key{
	{Scope: "tenant-1", ID: "1288543528c3b57e"},
	{Scope: "tenant-2", ID: "f1fa4fff1df1edaf"},
}

func setupColliding(t *testing.T) (one, two *bundle) {
	if idempotency.LockID(colliding[0]) != idempotency.LockID(colliding[1]) {
		t.Fatal("the two keys have two lock numbers: this test shows nothing")
	}
	one = setup(t, idempotency.Config{Wait: time.Minute})
	one.key = colliding[0]
	other := *one
	other.key = colliding[1]
	return one, &other
}

// The lock lets the second one wait. Nothing else hangs on it: the index knows
// that they are two keys.
func TestKeyWithTheLockNumberOfAnotherWaitsAndIsNotConfusedWithIt(t *testing.T) {
	t.Parallel()
	for _, state := range []string{"new", "expired"} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			one, two := setupColliding(t)
			if state == "expired" {
				two.executes(5)
				two.exec("update idempotency_keys set expires_at = now()")
				two.exec("delete from charges")
			}
			k := newBlocker()
			first := one.start(t.Context(), one.store, k.charge(one.key.ID, 1))
			<-k.begun
			second := two.start(t.Context(), two.store, charge(two.key.ID, 2))
			one.stays(second)
			one.wantErr(two.store.Delete(t.Context(), two.key), idempotency.ErrInProgress)
			k.goOn <- nil
			one.wantOutcome(<-first, outcome{1, false, nil})
			two.wantOutcome(<-second, outcome{2, false, nil})
			one.effects(1)
			two.effects(1)
			one.replays(1)
			two.replays(2)
			one.wantErr(one.store.Delete(t.Context(), one.key), nil)
			one.executes(3)
			two.replays(2)
		})
	}
}

func TestOneTransactionCanUseTwoKeysWithOneLockNumber(t *testing.T) {
	t.Parallel()
	one, two := setupColliding(t)
	tx := one.begin(pgx.TxOptions{})
	one.wantOutcome(one.doTx(tx, func(ctx context.Context, tx pgx.Tx) (int, error) {
		two.wantOutcome(two.doTx(tx, charge(two.key.ID, 2)), outcome{2, false, nil})
		return charge(one.key.ID, 1)(ctx, tx)
	}), outcome{1, false, nil})
	one.commit(tx)
	one.replays(1)
	two.replays(2)
}

// formerLockSQL takes the lock under which release 0.1.0 has a key, whose number
// formerLock is.
const formerLockSQL = "select pg_try_advisory_xact_lock($1::bigint # 'idempotency_keys'::regclass::oid::bigint)"

func formerLock(key idempotency.Key) int64 {
	h := fnv.New64a()
	h.Write([]byte(key.Scope + "\x00" + key.ID))
	return int64(h.Sum64())
}

// formerClaim is the claim of release 0.1.0 in a transaction of its own.
func (b *bundle) formerClaim(expired bool) pgx.Tx {
	b.Helper()
	tx := b.begin(pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	var free bool
	if err := tx.QueryRow(b.Context(), formerLockSQL, formerLock(b.key)).Scan(&free); err != nil || !free {
		b.Fatal(free, err)
	}
	claim := "insert into idempotency_keys (id, scope, purge_after) values ($1, $2, now() + interval '1 day')"
	if expired {
		claim = "update idempotency_keys set result = null, completed_at = null, expires_at = null where id = $1 and scope = $2"
	}
	if tag, err := tx.Exec(b.Context(), claim, b.key.ID, b.key.Scope); err != nil || tag.RowsAffected() != 1 {
		b.Fatal(tag, err)
	}
	return tx
}

// record is what a former release writes at the end.
func (b *bundle) formerRecord(tx pgx.Tx, amount int) {
	b.Helper()
	if _, err := charge(b.key.ID, amount)(b.Context(), tx); err != nil {
		b.Fatal(err)
	}
	if _, err := tx.Exec(b.Context(), `update idempotency_keys set result = convert_to($3::int::text, 'UTF8'), completed_at = now(), expires_at = now() + interval '1 day'
		where id = $1 and scope = $2`, b.key.ID, b.key.Scope, amount); err != nil {
		b.Fatal(err)
	}
	b.commit(tx)
}

// The two releases do not see each other's locks. The index and the row decide.
func TestCallsOfAFormerReleaseWithOtherLockNumbersStayOneEffect(t *testing.T) {
	t.Parallel()
	for _, expired := range []bool{false, true} {
		begin := func(t *testing.T) *bundle {
			t.Parallel()
			b := setup(t, idempotency.Config{Wait: time.Minute})
			if formerLock(b.key) == idempotency.LockID(b.key) {
				t.Fatal("the lock numbers are the same: this test shows nothing")
			}
			if expired {
				b.executes(5)
				b.exec("update idempotency_keys set expires_at = now()")
				b.exec("delete from charges")
			}
			return b
		}
		name := map[bool]string{false: "new", true: "expired"}[expired]
		t.Run(name+", the former one commits", func(t *testing.T) {
			b := begin(t)
			former := b.formerClaim(expired)
			call := b.start(t.Context(), b.store, charge(b.key.ID, 2))
			b.stays(call)
			b.formerRecord(former, 1)
			b.wantOutcome(<-call, outcome{1, true, nil})
			b.effects(1)
		})
		t.Run(name+", the former one rolls back", func(t *testing.T) {
			b := begin(t)
			former := b.formerClaim(expired)
			call := b.start(t.Context(), b.store, charge(b.key.ID, 2))
			b.stays(call)
			if err := former.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.wantOutcome(<-call, outcome{2, false, nil})
			b.effects(1)
		})
		t.Run(name+", the former one comes second", func(t *testing.T) {
			b := begin(t)
			k := newBlocker()
			call := b.start(t.Context(), b.store, k.charge(b.key.ID, 2))
			<-k.begun
			former := b.begin(pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
			var free bool
			if err := former.QueryRow(t.Context(), formerLockSQL, formerLock(b.key)).Scan(&free); err != nil || !free {
				t.Fatal(free, err)
			}
			claimed := make(chan int64, 1)
			go func() {
				tag, err := former.Exec(t.Context(), `insert into idempotency_keys (id, scope, purge_after) values ($1, $2, now()) on conflict do nothing`, b.key.ID, b.key.Scope)
				if err != nil {
					t.Error(err)
				}
				claimed <- tag.RowsAffected()
			}()
			if !expired { // an expired row is there for the insert: it does not wait
				select {
				case n := <-claimed:
					t.Fatalf("it did not wait, and has claimed %d rows", n)
				case <-time.After(60 * time.Millisecond):
				}
			}
			k.goOn <- nil
			b.wantOutcome(<-call, outcome{2, false, nil})
			if n := <-claimed; n != 0 {
				t.Errorf("it has claimed %d rows", n)
			}
			b.effects(1)
		})
	}
}
