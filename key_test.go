package idempotency_test

import (
	"context"
	"errors"
	"hash/fnv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestInvalidKeyIsRefusedBeforeAConnectionIsTaken(t *testing.T) {
	t.Parallel()
	// Nobody listens there: to ask for a connection would be another error.
	pool, err := pgxpool.New(t.Context(), "postgres://127.0.0.1:1/none")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	b := &bundle{TB: t, store: idempotency.New(pool)}
	ok := strings.Repeat("x", 255)
	for _, bad := range []struct {
		key   idempotency.Key
		names string
	}{
		{idempotency.Key{Scope: ok}, "Key.ID is empty"},
		{idempotency.Key{ID: ok}, "Key.Scope is empty"},
		{idempotency.Key{Scope: ok, ID: ok + "x"}, "Key.ID has 256 bytes"},
		{idempotency.Key{Scope: ok + "x", ID: ok}, "Key.Scope has 256 bytes"},
		{idempotency.Key{Scope: ok, ID: "a\x00b"}, "Key.ID contains a NUL byte"},
		{idempotency.Key{Scope: ok, ID: "a\xff"}, "Key.ID is not valid UTF-8"},
	} {
		b.key = bad.key
		_, _, err := b.do(charge("", 1))
		b.wantErr(err, idempotency.ErrInvalidKey)
		if !strings.Contains(err.Error(), bad.names) {
			t.Errorf("%q does not say %q", err, bad.names)
		}
		_, _, err = idempotency.DoTx(t.Context(), b.store, nil, b.key, charge("", 1))
		b.wantErr(err, idempotency.ErrInvalidKey)
		_, err = b.store.Get(t.Context(), b.key)
		b.wantErr(err, idempotency.ErrInvalidKey)
		b.wantErr(b.store.Delete(t.Context(), b.key), idempotency.ErrInvalidKey)
	}
	for _, err := range b.store.All(context.Background(), "") {
		b.wantErr(err, idempotency.ErrInvalidKey)
	}
}

func TestKeysThatDifferNeverMeet(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	long := strings.Repeat("x", 254)
	for i, key := range []idempotency.Key{
		{Scope: "a", ID: "bc"},
		{Scope: "ab", ID: "c"},
		{Scope: "bc", ID: "a"},
		{Scope: "a", ID: "BC"},
		{Scope: "a", ID: "bc "},
		{Scope: long + "1", ID: long + "1"},
		{Scope: long + "2", ID: long + "1"},
		{Scope: long + "1", ID: long + "2"},
		{Scope: "é", ID: "e\u0301"},
		{Scope: "e\u0301", ID: "é"},
	} {
		b.key = key
		b.executes(i)
		b.replays(i)
	}
}

func TestFingerprintDependsOnTheBordersOfItsParts(t *testing.T) {
	t.Parallel()
	of := func(parts ...string) idempotency.Fingerprint {
		var bytes [][]byte
		for _, part := range parts {
			bytes = append(bytes, []byte(part))
		}
		return idempotency.FingerprintOf(bytes...)
	}
	seen := make(map[idempotency.Fingerprint][]string)
	for _, parts := range [][]string{
		{}, {""}, {"", ""}, {"abc"}, {"ab", "c"}, {"a", "bc"}, {"a", "b", "c"}, {"abc", ""}, {"", "abc"},
	} {
		f := of(parts...)
		if other, ok := seen[f]; ok {
			t.Errorf("%q and %q have one fingerprint", parts, other)
		}
		seen[f] = parts
		if f != of(parts...) {
			t.Errorf("%q has two fingerprints", parts)
		}
		if f == (idempotency.Fingerprint{}) {
			t.Errorf("%q has the zero fingerprint", parts)
		}
	}
}

// PostgreSQL takes the UTF-8 of both scopes for SJIS, in which two codes stand for one
// character.
var sameInSJIS = [2]string{"おま", "お㇜"}

// sends is every method that sends a key, on store.
func (b *bundle) sends(store *idempotency.Store, key idempotency.Key) map[string]error {
	b.Helper()
	ctx := b.Context()
	_, _, doErr := idempotency.Do(ctx, store, key, charge("x", 1))
	_, _, rowErr := idempotency.QueryRow[int](ctx, store, key, "select 1")
	_, getErr := store.Get(ctx, key)
	var allErr error
	for _, err := range store.All(ctx, key.Scope) {
		allErr = err
	}
	steps := idempotency.Procedure[int, int]{Name: "steps", Run: func(ctx context.Context, op *idempotency.Op, in int) (int, error) {
		return idempotency.Step(ctx, op, "one", func(context.Context, pgx.Tx) (int, error) { return in, nil })
	}}
	_, _, procedureErr := steps.Do(ctx, store, key, 1)
	errs := map[string]error{"Do": doErr, "QueryRow": rowErr, "Get": getErr, "All": allErr, "Procedure": procedureErr,
		"Delete": store.Delete(ctx, key), "Settle": store.Settle(ctx, key, "call", 1), "Discard": store.Discard(ctx, key)}
	err := pgx.BeginFunc(ctx, idempotency.PoolOf(store), func(tx pgx.Tx) error {
		_, _, err := idempotency.DoTx(ctx, store, tx, key, charge("x", 1))
		errs["DoTx"] = err
		_, err = tx.Exec(ctx, "select 1")
		return err
	})
	if err != nil {
		b.Error("the transaction of DoTx: ", err)
	}
	return errs
}

func TestKeyThatTheConnectionWouldChangeIsErrInvalidKey(t *testing.T) {
	t.Parallel()
	for server, clients := range map[string][]string{"UTF8": {"SJIS", "LATIN1"}, "EUC_JP": {"SJIS"}} {
		b := encoded(t, server)
		for _, client := range clients {
			store, _ := b.speaking(client)
			for _, key := range []idempotency.Key{{Scope: sameInSJIS[0], ID: "i"}, {Scope: "s", ID: sameInSJIS[1]}} {
				for method, err := range b.sends(store, key) {
					if method == "All" && key.Scope == "s" {
						continue
					}
					b.wantErr(err, idempotency.ErrInvalidKey)
					if err == nil || !strings.Contains(err.Error(), "client_encoding is "+client) || !strings.Contains(err.Error(), "set client_encoding=UTF8") {
						t.Errorf("%s in %s, %s: %v", client, server, method, err)
					}
				}
			}
			b.store, b.key = store, idempotency.Key{Scope: "s", ID: "plain " + client}
			b.executes(1) // ASCII arrives as it is
			b.replays(1)
		}
		if server == "UTF8" {
			for _, client := range []string{"UTF8", "SQL_ASCII"} {
				b.store, _ = b.speaking(client)
				b.key = idempotency.Key{Scope: sameInSJIS[0], ID: "of " + client}
				b.executes(1)
				b.key.Scope = sameInSJIS[1]
				b.executes(1)
			}
		}
	}
}

// EUC_JP takes two characters for one, and EUC_JIS_2004 control characters that it does not
// give back, so that no list would show any record.
func TestKeyThatTheDatabaseDoesNotGiveBackIsErrInvalidKey(t *testing.T) {
	t.Parallel()
	for server, keys := range map[string]map[string]string{
		"EUC_JP":       {"a\u00a6": "U+00A6 or U+FFE4", "a\uffe4": "U+00A6 or U+FFE4", "a\u0080": "control character"},
		"EUC_JIS_2004": {"a\u0080": "control character", "a\u009f": "control character"},
		"LATIN1":       {"a\u0085": "control character"},
	} {
		b := encoded(t, server)
		store, _ := b.speaking("UTF8")
		for id, says := range keys {
			for method, err := range b.sends(store, idempotency.Key{Scope: "s", ID: id}) {
				if method == "All" {
					if err != nil {
						t.Errorf("%s: %v", server, err)
					}
					continue
				}
				b.wantErr(err, idempotency.ErrInvalidKey)
				if err == nil || !strings.Contains(err.Error(), says) {
					t.Errorf("%s, %q, %s: %v", server, id, method, err)
				}
			}
		}
		b.store, b.key = store, idempotency.Key{Scope: "s", ID: map[string]string{"LATIN1": "Zo\u00eb\u00a0\u00a6"}[server] + "\u00a7"}
		b.executes(1)
		b.replays(1)
	}
	b := encoded(t, "UTF8")
	b.key = idempotency.Key{Scope: "s", ID: "a\u0080\u00a6\uffe4"}
	b.executes(1)
	b.replays(1)
}

// The record would be written to the key that the converted text is.
func TestFunctionThatChangesTheClientEncodingLeavesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, idempotency.Config{})
	b.key.Scope = sameInSJIS[0]
	spoil := func(ctx context.Context, tx pgx.Tx) (int, error) {
		if _, err := charge(b.key.ID, 1)(ctx, tx); err != nil {
			return 0, err
		}
		_, err := tx.Exec(ctx, "set local client_encoding to 'SJIS'")
		return 1, err
	}
	steps := idempotency.Procedure[int, int]{Name: "steps", Run: func(ctx context.Context, op *idempotency.Op, _ int) (int, error) {
		if _, err := idempotency.Step(ctx, op, "one", spoil); err != nil {
			return 0, err
		}
		return idempotency.Step(ctx, op, "two", func(context.Context, pgx.Tx) (int, error) { return 2, nil })
	}}
	_, _, err := idempotency.Do(t.Context(), b.store, b.key, spoil)
	b.wantErr(err, idempotency.ErrInvalidKey)
	_, _, err = steps.Do(t.Context(), b.store, b.key, 1)
	b.wantErr(err, idempotency.ErrInvalidKey)
	err = pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error {
		_, _, err := idempotency.DoTx(t.Context(), b.store, tx, b.key, spoil)
		b.wantErr(err, idempotency.ErrInvalidKey)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	b.effects(0)
	if n := query[int](b, "select (select count(*) from idempotency_keys) + (select count(*) from idempotency_operations)"); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}

// notSimple: pgx refuses the simple protocol for other encodings than UTF8.
func notSimple(cfg *pgxpool.Config) {
	if cfg.ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol {
		cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	}
}

// encoded is a bundle on a database of another encoding.
func encoded(t *testing.T, encoding string) *bundle {
	t.Helper()
	b := &bundle{TB: t, pool: pgtest.Encoded(t, encoding, pgtest.Direct, notSimple), key: idempotency.Key{Scope: "customer-1", ID: "key-1"}}
	b.exec(`create table charges (id bigint generated always as identity, key text not null, amount int not null)`)
	b.store = b.storeOn(b.pool, idempotency.Config{})
	return b
}

// speaking is a Store on connections that say which encoding they send.
func (b *bundle) speaking(encoding string) (*idempotency.Store, *pgxpool.Pool) {
	b.Helper()
	pool := b.anotherPool(param("client_encoding", encoding), notSimple)
	return b.storeOn(pool, idempotency.Config{}), pool
}

func TestKeyIsOneKeyInEveryEncodingThatTheDoctorDoesNotNameAndOnesOwnInOthers(t *testing.T) {
	t.Parallel()
	for encoding, one := range map[string]bool{"UTF8": true, "SQL_ASCII": true, "LATIN1": false} {
		b := encoded(t, encoding)
		b.key.ID = "plain"
		b.executes(1)
		utf8, pool := b.speaking("UTF8")
		silent := b.store
		b.store = utf8
		b.replays(1)
		b.key.ID = "Zoë"
		b.executes(2)
		b.replays(2)
		b.store = silent
		_, replayed, err := b.do(charge("again", 3))
		if replayed != one || err != nil {
			t.Errorf("%s: replayed %v, %v", encoding, replayed, err)
		}
		warned := false
		for _, p := range []*pgxpool.Pool{pool, b.pool} {
			findings, err := doctor.Check(t.Context(), p, idempotency.Config{})
			if err != nil {
				t.Error(err)
			}
			for _, f := range findings {
				warned = warned || f.Check == "encoding"
			}
		}
		if warned == one {
			t.Errorf("%s: the doctor's finding: %v", encoding, warned)
		}
	}
}

func TestKeyThatTheDatabaseCannotHoldIsErrInvalidKey(t *testing.T) {
	t.Parallel()
	latin1 := encoded(t, "LATIN1")
	speaking, _ := latin1.speaking("UTF8")
	japanese := encoded(t, "EUC_JP")
	for name, store := range map[string]*idempotency.Store{"22P05": speaking, "22021": japanese.store} {
		for _, key := range []idempotency.Key{{Scope: "s", ID: "10 €"}, {Scope: "10 €", ID: "i"}} {
			_, _, doErr := idempotency.Do(t.Context(), store, key, charge("x", 1))
			_, getErr := store.Get(t.Context(), key)
			deleteErr := store.Delete(t.Context(), key)
			tx, err := idempotency.PoolOf(store).Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, _, txErr := idempotency.DoTx(t.Context(), store, tx, key, charge("x", 1))
			_, usable := tx.Exec(t.Context(), "select 1")
			tx.Rollback(context.Background())
			for _, err := range []error{doErr, getErr, deleteErr, txErr} {
				latin1.wantErr(err, idempotency.ErrInvalidKey)
				if sqlState(err) != name {
					t.Errorf("%s: %v", name, err)
				}
			}
			if usable != nil {
				t.Errorf("%s: after DoTx: %v", name, usable)
			}
		}
	}
	for _, err := range speaking.All(t.Context(), "10 €") {
		latin1.wantErr(err, idempotency.ErrInvalidKey)
	}
	latin1.trigger("insert", "perform convert_from('\\xff', 'UTF8');")
	_, _, err := latin1.do(charge("x", 1))
	latin1.noRemedy("a trigger", err, "22021")
	if errors.Is(err, idempotency.ErrInvalidKey) {
		t.Error("it is taken for the key's: ", err)
	}
}

func TestOriginThatTheDatabaseCannotHoldIsLeftOut(t *testing.T) {
	t.Parallel()
	origins := map[string]string{"ascii": "00-abc-01", "latin": "Zoë", "beyond": "10 €"}
	for _, row := range []struct {
		server, client string
		kept           bool // also beyond ASCII
	}{
		{"UTF8", "UTF8", true}, {"SQL_ASCII", "UTF8", true}, {"SQL_ASCII", "SQL_ASCII", true}, {"UTF8", "LATIN1", false}, {"LATIN1", "UTF8", false}, {"EUC_JP", "EUC_JP", false}, {"LATIN1", "LATIN1", false},
	} {
		b := encoded(t, row.server)
		_, pool := b.speaking(row.client)
		for name, origin := range origins {
			store := b.storeOn(pool, idempotency.Config{Trace: func(ctx context.Context, _ string) (context.Context, string) { return ctx, origin }})
			want := origin
			if name != "ascii" && !row.kept {
				want = ""
			}
			for _, id := range []string{name + " Do", name + " DoTx"} {
				key := idempotency.Key{Scope: "s", ID: id}
				var err error
				if id == name+" Do" {
					_, _, err = idempotency.Do(t.Context(), store, key, charge(id, 1))
				} else {
					err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
						_, _, err := idempotency.DoTx(t.Context(), store, tx, key, charge(id, 1))
						return err
					})
				}
				rec, getErr := store.Get(t.Context(), key)
				if err != nil || getErr != nil || rec.Origin != want {
					t.Errorf("%s in %s, %s: origin %q, want %q; %v, %v", row.client, row.server, id, rec.Origin, want, err, getErr)
				}
			}
		}
	}
}

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
			receive(t, k.begun)
			second := two.start(t.Context(), two.store, charge(two.key.ID, 2))
			one.stays(second)
			one.wantErr(two.store.Delete(t.Context(), two.key), idempotency.ErrInProgress)
			k.goOn <- nil
			one.wantOutcome(receive(one, first), outcome{1, false, nil})
			two.wantOutcome(receive(two, second), outcome{2, false, nil})
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
			b.wantOutcome(receive(b, call), outcome{1, true, nil})
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
			b.wantOutcome(receive(b, call), outcome{2, false, nil})
			b.effects(1)
		})
		t.Run(name+", the former one comes second", func(t *testing.T) {
			b := begin(t)
			k := newBlocker()
			call := b.start(t.Context(), b.store, k.charge(b.key.ID, 2))
			receive(b, k.begun)
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
			b.wantOutcome(receive(b, call), outcome{2, false, nil})
			if n := <-claimed; n != 0 {
				t.Errorf("it has claimed %d rows", n)
			}
			b.effects(1)
		})
	}
}
