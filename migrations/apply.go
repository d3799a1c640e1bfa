package migrations

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/golang-migrate/migrate/v4/database"
	"github.com/golang-migrate/migrate/v4/source"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgidem/idempotency/internal/keytable"
)

// up and down walk through the files themselves, on golang-migrate's driver. Its
// Migrate type refuses a database on which a run was cut short until a human
// has forced a version, does not say which file failed, gives up a lock after
// 15 s, and leaves goroutines behind when it is interrupted.
//
// Cut short, a run leaves a dirty version v: either up was in migration v, or
// down in migration v+1. The one in question ran as a whole or not at all, since
// it is one statement, and each can be applied twice; so up goes on with v, and
// down with v+1.

func (s *session) up(ctx context.Context) error {
	at, err := s.state(ctx)
	if err == nil && len(at.pending()) == 0 && s.verify(ctx) == nil {
		return nil
	}
	if err := s.lock(ctx); err != nil {
		return err
	}
	if err := s.apply(ctx); err != nil {
		return err
	}
	return s.verify(ctx)
}

func (s *session) apply(ctx context.Context) error {
	at, err := s.state(ctx) // again: whoever held the lock may have changed it
	if err != nil || len(at.pending()) == 0 {
		return err
	}
	if err := s.mayChange(ctx, madeTables); err != nil {
		return err
	}
	switch ours, err := s.indexIsOurs(ctx); {
	case err != nil:
		return err
	case !ours:
		return s.foreign(keytable.IndexName, "it is no index on "+s.table(keytable.Name))
	}
	if err := s.createSchema(ctx); err != nil {
		return s.byOwner(err)
	}
	if err := s.mayMake(ctx); err != nil {
		return err
	}
	drv, err := s.driver(ctx)
	if err != nil {
		return s.byOwner(fmt.Errorf("%w; remove the cause and run Up again", err))
	}
	for _, f := range at.pending() {
		if err := s.run(ctx, drv, f); err != nil {
			return s.byOwner(err)
		}
	}
	return nil
}

func (s *session) down(ctx context.Context) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	at, err := s.state(ctx)
	if err != nil || !at.recorded {
		return err
	}
	if latest := uint(len(files(source.Up))); at.version > latest {
		return fmt.Errorf("schema %q is at version %d and this release knows %d: run Down of the release that made it", s.schema, at.version, latest)
	}
	if err := s.mayChange(ctx, at.droppable()); err != nil {
		return err
	}
	indexIsOurs, err := s.indexIsOurs(ctx)
	if err != nil {
		return err
	}
	drv, err := s.driver(ctx)
	if err != nil {
		return s.byOwner(err)
	}
	for _, f := range at.undoable() {
		if f.Version == indexVersion && !indexIsOurs {
			continue
		}
		if err := s.run(ctx, drv, f); err != nil {
			return s.byOwner(err)
		}
	}
	err = s.holdingVersions(ctx, toWrite, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `drop table `+s.table(versionTable))
		return err
	})
	if err != nil {
		return s.byOwner(fmt.Errorf("dropping table %s: %w; run Down again", s.table(versionTable), err))
	}
	return nil
}

// indexVersion is the migration that makes the purge's index.
const indexVersion = 2

// pending are the migrations that up has to run from here, in order.
func (at state) pending() []*source.Migration {
	return slices.DeleteFunc(files(source.Up), func(f *source.Migration) bool {
		return f.Version <= at.applied()
	})
}

// undoable are the migrations that down has to run from here, in order.
func (at state) undoable() []*source.Migration {
	all := slices.DeleteFunc(files(source.Down), func(f *source.Migration) bool {
		return f.Version > at.top()
	})
	slices.Reverse(all)
	return all
}

// droppable are the tables that down drops from here. Another one of such a name is
// none of ours, and may be whatever it is.
func (at state) droppable() (tables []madeTable) {
	for _, made := range madeTables {
		if made.by <= at.top() {
			tables = append(tables, made)
		}
	}
	return tables
}

// top is the last migration of which something may be applied.
func (at state) top() uint {
	if at.dirty {
		return at.version + 1
	}
	return at.version
}

// files lists one direction's migrations in order. They are numbered 1, 2, 3.
func files(direction source.Direction) (list []*source.Migration) {
	entries, err := FS.ReadDir(".") // sorted by name
	if err != nil {
		panic(err) // an embedded folder
	}
	for _, entry := range entries {
		if f, err := source.Parse(entry.Name()); err == nil && f.Direction == direction {
			list = append(list, f)
		}
	}
	return list
}

// run applies one file, between two records of the version it leads to.
func (s *session) run(ctx context.Context, drv database.Driver, f *source.Migration) error {
	text, err := FS.Open(f.Raw)
	if err != nil {
		return err
	}
	defer text.Close()
	version, again := int(f.Version), "Up"
	if f.Direction == source.Down {
		version, again = version-1, "Down"
		if version == 0 {
			version = database.NilVersion
		}
	}

	way := again + " goes on from here"
	if err = s.setVersion(ctx, version, true); err == nil {
		if err = s.runIn(ctx, drv, text); refused(err) {
			way = "nothing of it was applied, since it is one statement: remove the cause and run " + again + " again"
		} else if err == nil {
			err = s.setVersion(ctx, version, false)
		}
	}
	if err != nil {
		return fmt.Errorf("migration %d (%s) failed in schema %q: %w; %s", f.Version, f.Raw, s.schema, cause(err), way)
	}
	return nil
}

// runIn runs a file, whose names are unqualified, with our schema as the only one in
// the search_path: with a second one, it could find a table there.
func (s *session) runIn(ctx context.Context, drv database.Driver, text io.Reader) error {
	if err := s.searchOnly(ctx, pgx.Identifier{s.schema}.Sanitize()); err != nil {
		return err
	}
	if err := drv.Run(text); err != nil {
		return err // after which the session ends
	}
	return s.searchOnly(ctx, noSchema)
}

// refused reports whether the server answered that the statement failed, and so
// did nothing. A FATAL error or a lost connection does not tell.
func refused(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](cause(err))
	return ok && e.SeverityUnlocalized == "ERROR"
}
