package keytable_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/pgidem/idempotency/internal/keytable"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestSchemaInWhichStrangersCanPlantSomethingIsOpen(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for what, row := range map[string]struct {
		sql        string
		role, root string // what each finds: of the schema, its owner or else who may create in it
	}{
		"of a superuser":                     {"", "", ""},
		"of who cannot have made it":         {"alter schema s owner to NAME_stranger", "", ""},
		"of a stranger":                      {"alter schema s owner to NAME_stranger; grant create on database DATABASE to NAME_stranger", "owner NAME_stranger", "owner NAME_stranger"},
		"of a schema's owner, and the other": {"alter schema s owner to NAME_stranger; grant create on database DATABASE to NAME_team", "owner NAME_stranger", "owner NAME_stranger"},
		"of a role that it can become":       {"alter schema s owner to NAME_stranger; grant create on database DATABASE to NAME_team; grant NAME_stranger to current_user, NAME_me; alter role NAME_me noinherit", "", "owner NAME_stranger"},
		"of the role itself":                 {"alter schema s owner to NAME_me; grant create on database DATABASE to NAME_stranger", "", "owner NAME_me"},
		"of the owner of the database":       {"alter schema s owner to NAME_stranger; alter database DATABASE owner to NAME_stranger", "", ""},
		"a right to use it":                  {"grant usage on schema s to NAME_stranger", "", ""},
		"a right to create":                  {"grant create on schema s to NAME_stranger", "NAME_stranger", "NAME_stranger"},
		"everybody's right":                  {"grant create on schema s to public, NAME_stranger", "NAME_stranger, public", "NAME_stranger, public"},
		"a right of the role itself":         {"grant create on schema s to NAME_me", "", "NAME_me"},
		"of a team of the role":              {"grant create on schema s to NAME_team; grant NAME_team to NAME_me", "", "NAME_team"},
		"of a team that it can become":       {"grant create on schema s to NAME_team; alter role NAME_me noinherit; grant NAME_team to NAME_me", "", "NAME_team"},
		"of who can become the role":         {"grant create on schema s to NAME_stranger; grant NAME_me to NAME_stranger", "", "NAME_stranger"},
		"of a predefined role":               {"grant create on schema s to pg_monitor; grant pg_monitor to NAME_me", "pg_monitor", "pg_monitor"},
		"of a superuser's":                   {"alter role NAME_stranger superuser; grant create on schema s to NAME_stranger", "", ""},
	} {
		for role, want := range map[string]string{"NAME_me": row.role, "none": row.root} {
			tx, in := session(t, pool, "create role NAME_me; create role NAME_stranger; create role NAME_team; revoke create on schema public from public; create schema s; create schema t; "+row.sql+
				"; grant usage on schema s, t to public; set local search_path = public, s, none", role)
			open, err := keytable.OpenInPath(t.Context(), tx)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, o := range open {
				if o.Owner != "" {
					got = "owner " + o.Owner
				}
				got += o.Others
				if o.Schema != "s" {
					t.Errorf("%s: %+v", what, o)
				}
			}
			if want := in(want); got != want {
				t.Errorf("%s, to %s: %q, want %q", what, role, got, want)
			}
			owner, err := keytable.StrangerOfSchema(t.Context(), tx, "s")
			if want, _ := strings.CutPrefix(got, "owner "); err != nil || owner != "" && owner != want || owner == "" && want != got {
				t.Errorf("%s, to %s: of %q, %v", what, role, owner, err)
			}
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestOpenSchemasAreInTheOrderOfThePath(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	tx, _ := session(t, pool, "create schema a; create schema b; grant usage, create on schema a, b, public to public; set local search_path = b, public, a", "none")
	defer tx.Rollback(context.Background())
	open, err := keytable.OpenInPath(t.Context(), tx)
	if got := fmt.Sprint(open); got != "[{b  public} {public  public} {a  public}]" || err != nil {
		t.Errorf("%s, %v", got, err)
	}
	if owner, err := keytable.StrangerOfSchema(t.Context(), tx, "none"); owner != "" || err != nil {
		t.Errorf("of a schema that is missing: %q, %v", owner, err)
	}
}

func TestSchemaHoldsARelationOfAnyKind(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	do(t, pool, "create schema other; create view other.a_view as select 1 as a")
	for name, want := range map[string]bool{"public.idempotency_keys": true, "public.idempotency_keys_pkey": true, "other.a_view": true, "public.a_view": false, "other.idempotency_keys": false, "none.a_view": false} {
		schema, relation, _ := strings.Cut(name, ".")
		if got, err := keytable.Holds(t.Context(), pool, schema, relation); got != want || err != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := keytable.Holds(ended, pool, "public", keytable.Name); got || err == nil {
		t.Errorf("%v without an error", got)
	}
}
