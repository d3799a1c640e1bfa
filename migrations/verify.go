package migrations

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

const keysTable = "idempotency_keys"

// columns are those that package idempotency needs.
var columns = []string{"id", "scope", "fingerprint", "result", "origin", "completed_at", "expires_at", "purge_after"}

var errMissing = errors.New("missing")

// verify makes sure that the table is there and is ours: "create table if not
// exists" is content with any relation of that name.
func (s *session) verify(ctx context.Context) error {
	err := s.inspect(ctx)
	if errors.Is(err, errMissing) {
		return fmt.Errorf("table %s is missing although %s says that it was made: run Down and then Up to make it again",
			s.table(keysTable), s.table(versionTable))
	}
	return err
}

// vacant makes sure, before the first migration, that nothing foreign is in its
// place.
func (s *session) vacant(ctx context.Context) error {
	err := s.inspect(ctx)
	if errors.Is(err, errMissing) {
		return nil
	}
	return err
}

// inspect returns nil for our table, and errMissing when there is none.
func (s *session) inspect(ctx context.Context) error {
	// The unique index is what keeps a call from running twice, so it counts as
	// much as the columns. A partitioned table, or one distributed by Citus, is
	// ours too.
	const query = `
		select c.relkind in ('r', 'p'),
			array(
				select name from unnest($3::text[]) with ordinality required (name, place)
				where not exists (
					select from pg_attribute a
					where a.attrelid = c.oid and a.attname = name and a.attnum > 0 and not a.attisdropped)
				order by place),
			exists (
				select from pg_index i
				where i.indrelid = c.oid and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null and i.indnatts = 2
				and array['id', 'scope'] <@ array(
					select a.attname::text from pg_attribute a
					where a.attrelid = c.oid and a.attnum = any (i.indkey)))
		from pg_class c join pg_namespace n on n.oid = c.relnamespace
		where n.nspname = $1 and c.relname = $2`
	var table, unique bool
	var missing []string
	err := s.pgx().QueryRow(ctx, query, s.schema, keysTable, columns).Scan(&table, &missing, &unique)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return errMissing
	case err != nil:
		return fmt.Errorf("looking at table %s: %w", s.table(keysTable), err)
	case !table:
		return s.foreign("it is not a table")
	case len(missing) > 0:
		return s.foreign("it has no column " + strings.Join(missing, ", "))
	case !unique:
		return s.foreign("it has no unique index on id and scope")
	}
	return nil
}

func (s *session) foreign(why string) error {
	return fmt.Errorf("%s exists but was not made by this package (%s): name another schema, or rename what is there",
		s.table(keysTable), why)
}
