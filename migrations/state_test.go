package migrations

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/golang-migrate/migrate/v4/database"
	"github.com/golang-migrate/migrate/v4/source"
	"github.com/jackc/pgx/v5/pgconn"
)

func versions(files []*source.Migration) (all []uint) {
	for _, f := range files {
		all = append(all, f.Version)
	}
	return all
}

// Cut short, a run leaves a dirty version v: up was in v, or down in v+1.
func TestEachStateSaysWhatUpAndDownHaveToDo(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		at        state
		applied   uint
		pending   []uint
		undoable  []uint
		droppable int
	}{
		{state{}, 0, []uint{1, 2, 3}, nil, 0},
		{state{recorded: true, dirty: true}, 0, []uint{1, 2, 3}, []uint{1}, 1},
		{state{version: 1, dirty: true}, 0, []uint{1, 2, 3}, []uint{2, 1}, 1},
		{state{version: 1}, 1, []uint{2, 3}, []uint{1}, 1},
		{state{version: 2, dirty: true}, 1, []uint{2, 3}, []uint{3, 2, 1}, 2},
		{state{version: 2}, 2, []uint{3}, []uint{2, 1}, 1},
		{state{version: 3, dirty: true}, 2, []uint{3}, []uint{3, 2, 1}, 2},
		{state{version: 3}, 3, nil, []uint{3, 2, 1}, 2},
		{state{version: 4}, 4, nil, []uint{3, 2, 1}, 2},
	} {
		if got := row.at.applied(); got != row.applied {
			t.Errorf("%+v: applied %d, want %d", row.at, got, row.applied)
		}
		if got := versions(row.at.pending()); !slices.Equal(got, row.pending) {
			t.Errorf("%+v: pending %d, want %d", row.at, got, row.pending)
		}
		if got := versions(row.at.undoable()); !slices.Equal(got, row.undoable) {
			t.Errorf("%+v: undoable %d, want %d", row.at, got, row.undoable)
		}
		if got := len(row.at.droppable()); got != row.droppable {
			t.Errorf("%+v: %d tables to be dropped, want %d", row.at, got, row.droppable)
		}
	}
}

// "Nothing of it was applied" must not be said of what may have been.
func TestOnlyAnErrorOfTheServerProvesThatNothingWasApplied(t *testing.T) {
	t.Parallel()
	severity := func(s string) error { return &pgconn.PgError{SeverityUnlocalized: s, Code: "42P07"} }
	for _, row := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{errors.New("connection lost"), false},
		{severity("ERROR"), true},
		{severity("FATAL"), false},
		{severity("PANIC"), false},
		{severity(""), false},
		{fmt.Errorf("running: %w", severity("ERROR")), true},
		{database.Error{OrigErr: severity("ERROR")}, true},
		{&database.Error{OrigErr: severity("ERROR")}, true},
		{database.Error{OrigErr: severity("FATAL")}, false},
		{&database.Error{OrigErr: errors.New("connection lost")}, false},
	} {
		if got := refused(row.err); got != row.want {
			t.Errorf("%v: %v", row.err, got)
		}
	}
}
