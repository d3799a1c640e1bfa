package migrations

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pgidem/idempotency/internal/keytable"
)

// verify makes sure that the table is there and is ours: "create table if not
// exists" is content with any relation of that name, and so is "create index".
func (s *session) verify(ctx context.Context) error {
	table, err := s.inspect(ctx)
	switch {
	case errors.Is(err, keytable.ErrMissing):
		return fmt.Errorf("table %s is missing although %s says that it was made: run Down and then Up to make it again",
			s.table(keytable.Name), s.table(versionTable))
	case err == nil && table.PurgeIndex() == nil:
		return fmt.Errorf("table %s has no valid index on purge_after, without which a purge reads the whole table: as its owner, create index on %[1]s (purge_after)", s.table(keytable.Name))
	}
	return err
}

// inspect returns keytable.ErrMissing when there is no table, and an error for one that
// is not ours. The unique index is what keeps a call from running twice, so it counts as
// much as the columns.
func (s *session) inspect(ctx context.Context) (keytable.Table, error) {
	table, err := keytable.Describe(ctx, s.pgx(), s.schema, keytable.Name)
	switch {
	case errors.Is(err, keytable.ErrMissing):
		return table, err
	case err != nil:
		return table, fmt.Errorf("looking at table %s: %w", s.table(keytable.Name), err)
	case !table.IsTable():
		err = s.foreign(keytable.Name, "it is not a table")
	case table.Stranger() != nil: // nothing of it is read
		err = s.squatted(keytable.Name, table.Stranger())
	case len(table.Missing()) > 0:
		err = s.foreign(keytable.Name, "it has no column "+strings.Join(table.Missing(), ", "))
	case len(table.Folding()) > 0:
		err = s.foreign(keytable.Name, "for the collation of column "+strings.Join(table.Folding(), ", ")+" different keys are equal")
	case len(table.Arbiters()) == 0:
		err = s.foreign(keytable.Name, "it has no unique index on id and scope")
	}
	return table, err
}

// mayChange makes sure, before anything is changed, that what is in the place of our
// table is ours, and obeys nobody who could get the rights of this role. The table may
// be missing; the record of the versions is looked at by holdingVersions. It reports whether the purge's index is missing, too, or ours: another
// table in the schema can have one of that name.
func (s *session) mayChange(ctx context.Context) (indexIsOurs bool, err error) {
	table, err := s.inspect(ctx)
	if err != nil && !errors.Is(err, keytable.ErrMissing) {
		return false, err
	}
	if stranger := table.StrangerToOwners(); stranger != nil {
		return false, s.squatted(keytable.Name, stranger)
	}
	if slices.ContainsFunc(table.Indexes, func(i keytable.Index) bool { return i.Name == keytable.IndexName }) {
		return true, nil
	}
	_, err = keytable.Describe(ctx, s.pgx(), s.schema, keytable.IndexName)
	if errors.Is(err, keytable.ErrMissing) {
		return true, nil
	}
	return false, err
}

func (s *session) foreign(name, why string) error {
	return fmt.Errorf("%s exists but was not made by this package (%s): name another schema, or rename what is there",
		s.table(name), why)
}

// A squattedError is about a table that obeys a stranger.
type squattedError struct{ error }

func (s *session) squatted(name string, by *keytable.Stranger) error {
	return squattedError{fmt.Errorf("%s: %s", by.Found(s.table(name)), by.Remedy())}
}

// ownVersions makes sure that the record of the versions is a table, and of nobody
// who could have a trigger on it.
func (s *session) ownVersions(ctx context.Context, q keytable.Querier, how hold) error {
	table, err := keytable.Describe(ctx, q, s.schema, versionTable)
	switch {
	case err != nil:
		return err
	case !table.IsTable():
		return s.foreign(versionTable, "it is not a table")
	case how.stranger(table) != nil:
		return s.squatted(versionTable, how.stranger(table))
	}
	return nil
}
