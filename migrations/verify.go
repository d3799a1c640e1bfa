package migrations

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/golang-migrate/migrate/v4/source"
	"github.com/pgidem/idempotency/internal/keytable"
)

// A madeTable is one that a migration makes.
type madeTable struct {
	name string
	by   uint // the number of the migration
}

var madeTables = []madeTable{{keytable.Name, 1}, {keytable.Operations, 3}}

// verify makes sure that the tables are there and are ours: "create table if not
// exists" is content with any relation of that name, and so is "create index".
func (s *session) verify(ctx context.Context) error {
	for _, made := range madeTables {
		if err := s.verifyTable(ctx, made); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) verifyTable(ctx context.Context, made madeTable) error {
	table, err := s.inspect(ctx, made.name)
	switch {
	case errors.Is(err, keytable.ErrMissing):
		return fmt.Errorf("table %s is missing although %s says that it was made: %s",
			s.table(made.name), s.table(versionTable), s.again(made))
	case err == nil && made.name == keytable.Name && table.PurgeIndex() == nil:
		return fmt.Errorf("table %s has no valid index on purge_after, without which a purge reads the whole table: as its owner, create index on %[1]s (purge_after)", s.table(made.name))
	}
	return err
}

// again says how a table that is missing is made again. Down would drop the keys, too,
// and with them every recorded result: that is no remedy as long as they are there.
func (s *session) again(made madeTable) string {
	if made.name == keytable.Name {
		return "run Down and then Up to make it again"
	}
	return fmt.Sprintf("as the owner of the tables, set search_path to %s and run %s, which the command \"idempotency migrate sql\" prints, to make it again; not Down, which drops every recorded result",
		quoted(s.schema), files(source.Up)[made.by-1].Raw)
}

// inspect returns keytable.ErrMissing when there is no table, and an error for one that
// is not ours. The unique index is what keeps a call from running twice, so it counts as
// much as the columns.
func (s *session) inspect(ctx context.Context, name string) (keytable.Table, error) {
	table, err := keytable.Describe(ctx, s.pgx(), s.schema, name)
	switch {
	case errors.Is(err, keytable.ErrMissing):
		return table, err
	case err != nil:
		return table, fmt.Errorf("looking at table %s: %w", s.table(name), err)
	case !table.IsTable():
		err = s.foreign(name, "it is not a table")
	case table.Stranger() != nil: // nothing of it is read
		err = s.squatted(name, table.Stranger())
	case len(table.Missing()) > 0:
		err = s.foreign(name, "it has no column "+strings.Join(table.Missing(), ", "))
	case len(table.Folding()) > 0:
		err = s.foreign(name, "for the collation of column "+strings.Join(table.Folding(), ", ")+" different keys are equal")
	case len(table.Arbiters()) == 0:
		err = s.foreign(name, "it has no unique index on id and scope")
	}
	return table, err
}

// mayChange makes sure, before anything is changed, that what is in the place of these
// tables is ours, and obeys nobody who could get the rights of this role. A table may
// be missing; the record of the versions is looked at by holdingVersions.
func (s *session) mayChange(ctx context.Context, tables []madeTable) error {
	for _, made := range tables {
		table, err := s.inspect(ctx, made.name)
		if err != nil && !errors.Is(err, keytable.ErrMissing) {
			return err
		}
		if stranger := table.StrangerToOwners(); stranger != nil {
			return s.squatted(made.name, stranger)
		}
	}
	return nil
}

// indexIsOurs reports whether the purge's index is ours, or missing: another table in
// the schema can have one of that name.
func (s *session) indexIsOurs(ctx context.Context) (bool, error) {
	table, err := keytable.Describe(ctx, s.pgx(), s.schema, keytable.Name)
	if err != nil && !errors.Is(err, keytable.ErrMissing) {
		return false, err
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
