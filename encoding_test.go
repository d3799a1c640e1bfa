package idempotency_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
	"github.com/pgidem/idempotency/internal/pgtest"
)

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
