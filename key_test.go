package idempotency_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
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
