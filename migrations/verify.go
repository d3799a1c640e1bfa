package migrations

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/pgidem/idempotency/internal/keytable"
)

// verify makes sure that the table is there and is ours: "create table if not
// exists" is content with any relation of that name.
func (s *session) verify(ctx context.Context) error {
	err := s.inspect(ctx)
	if errors.Is(err, keytable.ErrMissing) {
		return fmt.Errorf("table %s is missing although %s says that it was made: run Down and then Up to make it again",
			s.table(keytable.Name), s.table(versionTable))
	}
	return err
}

// vacant makes sure, before the first migration, that nothing foreign is in its
// place.
func (s *session) vacant(ctx context.Context) error {
	err := s.inspect(ctx)
	if errors.Is(err, keytable.ErrMissing) {
		return nil
	}
	return err
}

// inspect returns nil for our table, and keytable.ErrMissing when there is none.
// The unique index is what keeps a call from running twice, so it counts as much
// as the columns.
func (s *session) inspect(ctx context.Context) error {
	table, err := keytable.Describe(ctx, s.pgx(), s.schema)
	switch {
	case errors.Is(err, keytable.ErrMissing):
		return err
	case err != nil:
		return fmt.Errorf("looking at table %s: %w", s.table(keytable.Name), err)
	case !table.IsTable():
		return s.foreign("it is not a table")
	case !table.Trusted:
		return s.squatted(keytable.Name, table.Owner)
	case len(table.Missing()) > 0:
		return s.foreign("it has no column " + strings.Join(table.Missing(), ", "))
	case len(table.Arbiters()) == 0:
		return s.foreign("it has no unique index on id and scope")
	}
	return nil
}

func (s *session) foreign(why string) error {
	return fmt.Errorf("%s exists but was not made by this package (%s): name another schema, or rename what is there",
		s.table(keytable.Name), why)
}

// squatted is a table of somebody who was there first. Whoever may create in the
// schema could have made it, with triggers that would run with this role's rights.
func (s *session) squatted(name, owner string) error {
	return fmt.Errorf("%s belongs to role %q, of whom the current role is no member, and who owns neither the schema nor the database: if that is the right owner, run this as that role, or make it the owner of the schema; else drop or rename the table, and let only trusted roles create in the schema",
		s.table(name), owner)
}

// ownVersions makes sure that the record of the versions is a table, and of nobody
// who could have a trigger on it, before anything reads or changes it.
func (s *session) ownVersions(ctx context.Context) error {
	table, err := keytable.Owned(ctx, s.pgx(), s.schema, versionTable)
	switch {
	case err != nil:
		return err
	case !table.IsTable():
		return fmt.Errorf("%s exists but was not made by this package (it is not a table): name another schema, or rename what is there", s.table(versionTable))
	case !table.Trusted:
		return s.squatted(versionTable, table.Owner)
	}
	return nil
}
