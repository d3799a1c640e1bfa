package idempotency_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

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
