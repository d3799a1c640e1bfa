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
