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

// A function of the role that a setting has given to the session can reset the role, and
// then has the rights of the login.
func TestTableIsAStrangersToALoginThatASettingGivesTheRoleOfItsOwner(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	name := pool.Config().ConnConfig.Database
	role := name + "_other"
	for _, sql := range []string{"create role " + role, "grant usage, create on schema public to " + role, "alter table idempotency_keys owner to " + role} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		_, err := pool.Exec(context.Background(), "alter database "+name+" reset all; reassign owned by "+role+" to current_user; drop owned by "+role+"; drop role "+role, pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Error(err)
		}
	})
	look := func(change func(*pgxpool.Config)) keytable.Table {
		t.Helper()
		table, err := keytable.Describe(t.Context(), pgtest.Pool(t, pool, change), "public", keytable.Name)
		if err != nil {
			t.Fatal(err)
		}
		return table
	}
	chosen := func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["role"] = role }
	if s := look(chosen).Stranger(); s != nil {
		t.Errorf("to the role itself: %+v", s)
	}
	options := func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["options"] = "-c work_mem=1MB -c role=" + role }
	if s := look(options).Stranger(); s != nil {
		t.Errorf("to the role itself, by options: %+v", s)
	}
	hook := func(cfg *pgxpool.Config) {
		cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "set role "+role)
			return err
		}
	}
	if s := look(hook).Stranger(); s == nil || !strings.Contains(s.Found("the table"), "login") {
		t.Errorf("to a login that a hook has given the role: %+v", s)
	}
	for _, whose := range []string{"database " + name, "role current_user in database " + name} {
		for _, sql := range []string{"alter " + whose + " set role = " + role, ""} {
			if sql == "" {
				sql = "alter " + whose + " reset all"
			}
			if _, err := pool.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
			s := look(func(*pgxpool.Config) {}).Stranger()
			if given := strings.Contains(sql, " set "); s == nil || s.Role != role || strings.Contains(s.Found("the table"), "login") != given {
				t.Errorf("%s: %+v", sql, s)
			}
		}
	}
}

// The owner of the database can take the setting away while the session waits.
func TestSettingThatIsGoneSinceTheLoginCounts(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t, pgtest.MaxConns(1))
	name := pool.Config().ConnConfig.Database
	role := name + "_other"
	other := pgtest.Pool(t, pool)
	do := func(sql string) {
		t.Helper()
		if _, err := other.Exec(context.Background(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
	}
	do("create role " + role + "; grant usage, create on schema public to " + role + "; alter table idempotency_keys owner to " + role + "; alter database " + name + " set role = " + role)
	t.Cleanup(func() {
		do("alter database " + name + " reset all; reassign owned by " + role + " to current_user; drop owned by " + role + "; drop role " + role)
	})
	victim, err := pgx.ConnectConfig(t.Context(), pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer victim.Close(context.Background())
	do("alter database " + name + " reset role")
	table, err := keytable.Describe(t.Context(), victim, "public", keytable.Name)
	if err != nil {
		t.Fatal(err)
	}
	if s := table.Stranger(); s == nil || s.Role != role || s.Login == "" {
		t.Errorf("%+v", s)
	}
}
