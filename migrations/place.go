package migrations

import (
	"context"
	"fmt"

	"github.com/pgidem/idempotency/internal/keytable"
)

// mayMake makes sure, before a table is made, that this is the place for it: not the
// schema of a stranger, who could put another table there at any time, and not a second
// one, which the search_path leads to since somebody has made a schema of that name
// ("$user" is one), so that every key would run again.
func (s *session) mayMake(ctx context.Context) error {
	missing, err := s.firstMissing(ctx)
	if err != nil || missing == "" {
		return err
	}
	if missing == keytable.Name {
		if err := s.isNotElsewhere(ctx); err != nil {
			return err
		}
	}
	owner, err := keytable.StrangerOfSchema(ctx, s.pgx(), s.schema)
	if err != nil {
		return fmt.Errorf("looking at the owner of schema %q: %w", s.schema, err)
	}
	if owner == "" {
		return nil
	}
	return fmt.Errorf("schema %q belongs to role %q, who is a stranger to role %q, and could put another table in the place of %s: name another schema, or make a trusted role its owner (alter schema %s owner to ...); or connect as role %[2]q; or let nobody but the owner of the database create schemas (revoke create on database)",
		s.schema, owner, s.role, s.table(missing), quoted(s.schema))
}

// firstMissing names the first of the tables that Up would make, if there is one.
func (s *session) firstMissing(ctx context.Context) (name string, err error) {
	for _, name := range []string{keytable.Name, keytable.Operations, versionTable} {
		if there, err := keytable.Holds(ctx, s.pgx(), s.schema, name); err != nil || !there {
			return name, err
		}
	}
	return "", nil
}

func (s *session) isNotElsewhere(ctx context.Context) error {
	for _, schema := range s.later {
		there, err := keytable.Holds(ctx, s.pgx(), schema, keytable.Name)
		if err != nil {
			return err
		}
		if there {
			return fmt.Errorf("the connection's search_path leads to schema %q, which has no table %s, and schema %q behind it has one: give the schema's name, %[3]q to use that one, or %[1]q to make another",
				s.schema, keytable.Name, schema)
		}
	}
	return nil
}
