package main_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/doctor"
	"github.com/pgidem/idempotency/internal/pgtest"
)

type tenant struct{}

// ofTenant is the context of a request of that tenant.
func ofTenant(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, tenant{}, name)
}

// tenantsPool sets the tenant of the context, as the page says.
func tenantsPool(t *testing.T, pool *pgxpool.Pool, role string) *pgxpool.Pool {
	t.Helper()
	return pgtest.Pool(t, pool, pgtest.Direct, func(cfg *pgxpool.Config) {
		cfg.ConnConfig.RuntimeParams["role"] = role
		cfg.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
			name, _ := ctx.Value(tenant{}).(string)
			_, err := conn.Exec(ctx, "select set_config('app.tenant', $1, false)", name)
			return err == nil, err
		}
	})
}

// withTenants runs the statements of the page, and returns the names of its roles.
func withTenants(t *testing.T, owner *pgxpool.Pool) (app, purger string) {
	t.Helper()
	all, app := statements(t, owner, "tenants_app")
	purger = app + "_purger"
	for role, grants := range map[string]string{
		app:    "select, insert, update, delete",
		purger: "select (ctid, tableoid, purge_after, expires_at), update (purge_after), delete",
	} {
		do(t, owner, "create role "+role)
		t.Cleanup(func() { // the first one drops the policies
			_, err := owner.Exec(context.Background(), "drop owned by "+role+"; drop role "+role, pgx.QueryExecModeSimpleProtocol)
			if err != nil {
				t.Error(err)
			}
		})
		do(t, owner, "grant usage on schema public to "+role)
		do(t, owner, "grant "+grants+" on idempotency_keys to "+role)
	}
	for _, sql := range all {
		do(t, owner, strings.ReplaceAll(sql, "tenants_purger", purger))
	}
	return app, purger
}

func TestTenantsOfTheOperatorsPageAreKeptApart(t *testing.T) {
	t.Parallel()
	owner := pgtest.New(t)
	role, purger := withTenants(t, owner)
	app := tenantsPool(t, owner, role)
	store := idempotency.New(app)
	key := func(scope string) idempotency.Key { return idempotency.Key{Scope: scope, ID: "key-1"} }
	runs := 0
	fn := func(context.Context, pgx.Tx) (int, error) { runs++; return runs, nil }
	for i, name := range []string{"acme", "globex"} {
		for range 3 { // an execution, a replay, and a replay of a known key
			ctx := ofTenant(t.Context(), name)
			if got, _, err := idempotency.Do(ctx, store, key(name), fn); got != i+1 || err != nil {
				t.Errorf("%s: %d, %v", name, got, err)
			}
		}
	}
	acme := ofTenant(t.Context(), "acme")
	if _, _, err := idempotency.Do(acme, idempotency.New(app), key("globex"), fn); err == nil || !strings.Contains(err.Error(), "policy") || runs != 2 {
		t.Errorf("the key of another tenant: %v, %d runs", err, runs)
	}
	if _, err := store.Get(acme, key("globex")); !errors.Is(err, idempotency.ErrNotFound) {
		t.Errorf("the record of another tenant: %v", err)
	}
	if err := store.Delete(acme, key("globex")); !errors.Is(err, idempotency.ErrNotFound) {
		t.Errorf("deleting the record of another tenant: %v", err)
	}
	err := pgx.BeginFunc(t.Context(), app, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "set local app.tenant = 'initech'"); err != nil {
			return err
		}
		_, _, err := idempotency.DoTx(t.Context(), store, tx, key("initech"), fn)
		return err
	})
	if err != nil {
		t.Errorf("DoTx: %v", err)
	}
	if findings, err := doctor.Check(acme, app, idempotency.Config{}); err != nil || strings.Contains(findingsText(findings), "polic") {
		t.Errorf("the doctor: %v, %v", findings, err)
	}
	do(t, owner, "update idempotency_keys set expires_at = now(), purge_after = now()")
	if n, err := store.Purge(acme); n != 1 || err != nil {
		t.Errorf("the purge of a tenant: %d, %v", n, err)
	}
	all := pgtest.Pool(t, owner, func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["role"] = purger })
	if n, err := idempotency.New(all).Purge(t.Context()); n != 2 || err != nil {
		t.Errorf("the purge of all: %d, %v", n, err)
	}
}

func findingsText(findings []doctor.Finding) string {
	var b strings.Builder
	for _, f := range findings {
		b.WriteString(f.String() + "\n")
	}
	return b.String()
}
