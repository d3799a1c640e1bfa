package keytable_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency/internal/keytable"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// owned has a table of the keys of a role that owns the schema, too. A superuser trusts it
// with no more than that nothing of it can run.
func owned(t *testing.T) (pool *pgxpool.Pool, owner string) {
	t.Helper()
	pool = pgtest.New(t)
	owner = pool.Config().ConnConfig.Database + "_owner"
	do(t, pool, "create role "+owner+"; alter schema public owner to "+owner+"; alter table idempotency_keys owner to "+owner)
	t.Cleanup(func() {
		do(t, pool, "reassign owned by "+owner+" to current_user; drop owned by "+owner+"; drop role "+owner)
	})
	return pool, owner
}

func do(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := pool.Exec(context.WithoutCancel(t.Context()), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func TestTableThatCanRunSomethingIsNotInert(t *testing.T) {
	t.Parallel()
	pool, owner := owned(t)
	for sql, inert := range map[string]bool{
		"": true,
		"create index i on idempotency_keys (origin)":                                                                           true,
		"alter table idempotency_keys alter origin set default 'x'":                                                             true,
		"alter table idempotency_keys alter origin set not null":                                                                true,
		"alter table idempotency_keys add more int":                                                                             true,
		"create unique index i on idempotency_keys (origin, id) include (scope)":                                                true,
		"create index i on idempotency_keys (lower(origin))":                                                                    false,
		"create index i on idempotency_keys (origin) where origin > 'x'":                                                        false,
		"alter table idempotency_keys alter origin set default lower('X')":                                                      false,
		"alter table idempotency_keys add constraint c check (origin <> 'x')":                                                   false,
		"alter table idempotency_keys add constraint u unique (origin, id)":                                                     false,
		"create statistics s on id, scope from idempotency_keys":                                                                false,
		"create policy p on idempotency_keys using (true)":                                                                      false,
		"create rule r as on delete to idempotency_keys do also nothing":                                                        false,
		"create table kid () inherits (idempotency_keys)":                                                                       false,
		"create table refers (id text, scope text, foreign key (id, scope) references idempotency_keys)":                        false,
		"create trigger t before update on idempotency_keys for each row execute function suppress_redundant_updates_trigger()": false,
	} {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), "set local role "+owner+"; "+sql+"; reset role", pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		table, err := keytable.Describe(t.Context(), tx, "public", keytable.Name)
		if err != nil {
			t.Fatal(err)
		}
		if table.Inert() != inert {
			t.Errorf("%s: inert %v; %+v", sql, table.Inert(), table.Strangers)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// Otherwise the planner runs the expression of an index that the owner creates meanwhile.
func TestNothingIsPutOnAnInertTableThatIsHeldForReading(t *testing.T) {
	t.Parallel()
	pool, owner := owned(t)
	hold := func(mode pgx.TxAccessMode) (table keytable.Table, release func()) {
		t.Helper()
		tx, err := pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: mode})
		if err != nil {
			t.Fatal(err)
		}
		release = func() { tx.Rollback(context.Background()) }
		t.Cleanup(release)
		if table, err = keytable.Hold(t.Context(), tx, "public", keytable.Name, keytable.Reading); err != nil {
			t.Fatal(err)
		}
		return table, release
	}
	put := func() error {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(context.Background())
		_, err = tx.Exec(t.Context(), "set local lock_timeout = '10ms'; set local role "+owner+"; create index i on idempotency_keys (lower(id))", pgx.QueryExecModeSimpleProtocol)
		return err
	}
	table, release := hold(pgx.ReadOnly)
	if table.Inert() || table.StrangerByName(keytable.Reading) == nil {
		t.Errorf("in a transaction that cannot lock it, the table is trusted: %+v", table.Strangers)
	}
	if err := put(); err != nil {
		t.Errorf("a table that is not trusted is locked: %v", err)
	}
	release()
	if table, _ = hold(pgx.ReadWrite); !table.Inert() {
		t.Errorf("%+v", table.Strangers)
	}
	if err := put(); err == nil || !strings.Contains(err.Error(), "lock timeout") {
		t.Errorf("an index was put on the table: %v", err)
	}
}

// A meddler does something when a statement with these words is about to be sent.
type meddler struct {
	words string
	do    func()
}

func (m *meddler) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if m.do != nil && strings.Contains(data.SQL, m.words) {
		do := m.do
		m.do = nil
		do()
	}
	return ctx
}

func (*meddler) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func TestWhatIsPutOnATableBetweenTheLookAndTheLockIsSeen(t *testing.T) {
	t.Parallel()
	pool, owner := owned(t)
	m := &meddler{words: "lock table", do: func() { do(t, pool, "set role "+owner+"; create index i on idempotency_keys (lower(id)); reset role") }}
	watched := pgtest.Pool(t, pool, func(cfg *pgxpool.Config) { cfg.ConnConfig.Tracer = m })
	err := pgx.BeginFunc(t.Context(), watched, func(tx pgx.Tx) error {
		table, err := keytable.Hold(t.Context(), tx, "public", keytable.Name, keytable.Reading)
		if s := table.StrangerByName(keytable.Reading); s == nil || s.Role != owner {
			t.Errorf("the index was not seen: %+v", table.Strangers)
		}
		return err
	})
	if err != nil || m.do != nil {
		t.Errorf("%v, or nothing was locked", err)
	}
}
