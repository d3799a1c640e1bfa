package keytable

import (
	"slices"
	"strings"
	"testing"
)

// of is a table of the keys with these indexes.
func of(indexes ...Index) Table { return Table{name: Name, Kind: "r", Indexes: indexes} }

func named(indexes []Index) (names []string) {
	for _, i := range indexes {
		names = append(names, i.Name)
	}
	return names
}

// A claim says "on conflict (id, scope)": PostgreSQL takes no other index for that, and each
// other unique one refuses rows by itself.
func TestOnlyAWholeUniqueIndexOnIDAndScopeKeepsACallFromRunningTwice(t *testing.T) {
	t.Parallel()
	with := func(change func(*Index)) Index {
		i := Index{Name: "i", Columns: []string{"id", "scope"}, Unique: true, Valid: true, Immediate: true}
		change(&i)
		return i
	}
	for name, row := range map[string]struct {
		index             Index
		arbiter, obstacle bool
	}{
		"the primary key":      {with(func(i *Index) { i.Primary = true }), true, false},
		"a unique index":       {with(func(*Index) {}), true, false},
		"the other order":      {with(func(i *Index) { i.Columns = []string{"scope", "id"} }), true, false},
		"not unique":           {with(func(i *Index) { i.Unique = false }), false, false},
		"invalid":              {with(func(i *Index) { i.Valid = false }), false, true},
		"deferrable":           {with(func(i *Index) { i.Immediate = false }), false, true},
		"partial":              {with(func(i *Index) { i.Partial = true }), false, true},
		"folding":              {with(func(i *Index) { i.Folding = true }), false, true},
		"with a column beside": {with(func(i *Index) { i.Included = 1 }), false, true},
		"of the id":            {with(func(i *Index) { i.Columns = []string{"id"} }), false, true},
		"of three columns":     {with(func(i *Index) { i.Columns = []string{"id", "scope", "origin"} }), false, true},
		"of another column":    {with(func(i *Index) { i.Columns = []string{"id", "origin"} }), false, true},
		"without the id":       {with(func(i *Index) { i.Columns = []string{"origin", "scope"} }), false, true},
		"of an expression":     {with(func(i *Index) { i.Columns = []string{"id", ""} }), false, true},
	} {
		table := of(row.index)
		if got := len(table.Arbiters()) == 1; got != row.arbiter {
			t.Errorf("%s: it arbitrates: %v", name, got)
		}
		if got := len(table.Obstacles()) == 1; got != row.obstacle {
			t.Errorf("%s: it is in the way: %v", name, got)
		}
	}
	all := of(with(func(*Index) {}), with(func(i *Index) { i.Name = "j" }), with(func(i *Index) { i.Name, i.Partial = "k", true }))
	if got := named(all.Arbiters()); !slices.Equal(got, []string{"i", "j"}) {
		t.Error(got)
	}
	if got := named(all.Obstacles()); !slices.Equal(got, []string{"k"}) {
		t.Error(got)
	}
}

func TestPurgeGoesByAWholeIndexThatBeginsWithPurgeAfter(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		index Index
		is    bool
	}{
		{Index{Columns: []string{"purge_after"}, Valid: true}, true},
		{Index{Columns: []string{"purge_after", "id"}, Valid: true}, true},
		{Index{Columns: []string{"id", "purge_after"}, Valid: true}, false},
		{Index{Columns: []string{"purge_after"}}, false},
		{Index{Columns: []string{"purge_after"}, Valid: true, Partial: true}, false},
	} {
		if got := of(row.index).PurgeIndex(); (got != nil) != row.is {
			t.Errorf("%+v: %v", row.index, got)
		}
	}
	behind := of(Index{Name: "i", Columns: []string{"id"}, Valid: true}, Index{Name: "p", Columns: []string{"purge_after"}, Valid: true})
	if got := behind.PurgeIndex(); got == nil || got.Name != "p" {
		t.Error(got)
	}
}

func TestTablesAndPartitionedTablesAreTables(t *testing.T) {
	t.Parallel()
	for kind, want := range map[string]bool{"r": true, "p": true, "v": false, "m": false, "f": false, "i": false, "S": false, "c": false, "": false} {
		if got := (Table{Kind: kind}).IsTable(); got != want {
			t.Errorf("%q: %v", kind, got)
		}
	}
}

func TestColumnsThatDoNotFitAreNamed(t *testing.T) {
	t.Parallel()
	whole := func() Table { return Table{name: Migrations, Columns: slices.Clone(required[Migrations])} }
	if table := whole(); !table.Fits() || table.Unfit() != "" || len(table.Foreign()) > 0 {
		t.Errorf("%+v does not fit: %s", table, table.Unfit())
	}
	for unfit, change := range map[string]func(*Table){
		"it has no column version":        func(t *Table) { t.Columns = t.Columns[1:] },
		"it has no column version, dirty": func(t *Table) { t.Columns = nil },
		"it needs dirty bool":             func(t *Table) { t.Columns[1].Type = "text" },
		"it needs version int8":           func(t *Table) { t.Columns[0].Type = "pub.int8" },
		"it has no column dirty":          func(t *Table) { t.Columns = []Column{{Name: "version", Type: "text"}} },
	} {
		table := whole()
		change(&table)
		if table.Fits() || table.Unfit() != unfit {
			t.Errorf("%v, %q, want %q", table.Fits(), table.Unfit(), unfit)
		}
	}
	table := whole()
	table.Columns = append(table.Columns, Column{Name: "more", NoDefault: true}, Column{Name: "optional"})
	table.Columns[0].NoDefault = true
	if got := table.Foreign(); !table.Fits() || !slices.Equal(got, []string{"more"}) {
		t.Errorf("fits %v, foreign %q", table.Fits(), got)
	}
}

func TestOnlyTheColumnsOfTheKeyMayNotFold(t *testing.T) {
	t.Parallel()
	table := Table{name: Name, Columns: []Column{{Name: "origin", Folding: true}, {Name: "scope", Folding: true}, {Name: "id"}}}
	if got := table.Folding(); !slices.Equal(got, []string{"scope"}) {
		t.Errorf("%q", got)
	}
	table.Columns[2].Folding = true
	if got := table.Folding(); !slices.Equal(got, []string{"scope", "id"}) {
		t.Errorf("%q", got)
	}
}

// Who counts as a stranger depends on what is done with the table.
func TestEachUseOfTheTableHasItsOwnStrangers(t *testing.T) {
	t.Parallel()
	type answers struct{ first, reading, writing, unlocked, calls, owners bool }
	for name, row := range map[string]struct {
		stranger Stranger
		want     answers
	}{
		"the owner of the table":                 {Stranger{Kind: "table"}, answers{true, true, true, true, true, true}},
		"the owner of the schema":                {Stranger{Kind: "schema"}, answers{false, true, true, false, true, false}},
		"a host":                                 {Stranger{Kind: "table", Host: true}, answers{false, false, false, false, false, true}},
		"a host, of the schema":                  {Stranger{Kind: "schema", Host: true}, answers{false, false, false, false, false, false}},
		"the owner of a table that is inert":     {Stranger{Kind: "table", Inert: true}, answers{false, false, true, true, true, true}},
		"the owner of its schema":                {Stranger{Kind: "schema", Inert: true}, answers{false, false, true, false, true, false}},
		"who can put something there later":      {Stranger{Kind: "right", Later: true}, answers{false, false, false, false, true, false}},
		"a host who can put something there":     {Stranger{Kind: "right", Later: true, Host: true}, answers{false, false, false, false, false, false}},
		"who can have put something there":       {Stranger{Kind: "right"}, answers{true, true, true, true, true, true}},
		"an inert one who can put it there":      {Stranger{Kind: "table", Inert: true, Later: true}, answers{false, false, false, false, true, false}},
		"a host of a table that can run nothing": {Stranger{Kind: "table", Host: true, Inert: true}, answers{false, false, false, false, false, true}},
	} {
		table := Table{Strangers: []Stranger{row.stranger}}
		got := answers{table.Stranger() != nil, table.StrangerByName(Reading) != nil, table.StrangerByName(Writing) != nil,
			table.StrangerUnlessLocked() != nil, table.StrangerToCalls() != nil, table.StrangerToOwners() != nil}
		if got != row.want {
			t.Errorf("%s: %+v, want %+v", name, got, row.want)
		}
		if want := !row.want.reading && row.want.writing; table.Inert() != want {
			t.Errorf("%s: inert %v", name, table.Inert())
		}
	}
	several := Table{Strangers: []Stranger{{Kind: "table", Host: true}, {Kind: "trigger", Role: "a"}, {Kind: "trigger", Role: "b"}}}
	if s := several.Stranger(); s == nil || s.Role != "a" {
		t.Errorf("the first stranger is %+v", s)
	}
}

func TestStrangerSaysWhoItIsAndWhatToDo(t *testing.T) {
	t.Parallel()
	on := []string{"s", "t"}
	const member, there = "who is no superuser, and of whom the current role is no member", "would run with the rights of this role"
	for _, row := range []struct {
		s             Stranger
		found, remedy []string
	}{
		{Stranger{Kind: "table", Role: "r"}, []string{`THE belongs to role "r", ` + member, there}, []string{`connect as role "r"`, "else drop or rename the table"}},
		{Stranger{Kind: "schema", Role: "r"}, []string{`THE can be replaced by role "r", the owner of the schema, ` + member}, []string{`connect as role "r"`, "the owner of the schema"}},
		{Stranger{Kind: "parent or type", Role: "r"}, []string{`THE has a parent or a type of role "r", ` + member}, []string{"drop it, or make the owner of the table the owner"}},
		{Stranger{Kind: "trigger", Name: "n", Role: "r"}, []string{`THE has the trigger "n" of role "r", ` + member, there}, []string{"drop it, or make the owner of the table the owner"}},
		{Stranger{Kind: "right", Name: "t", Role: "r", Privilege: "trigger", On: on}, []string{`THE gives role "r" the right trigger on "t", which has a trigger, ` + member}, []string{`references on table "s"."t" from "r" cascade`}},
		{Stranger{Kind: "right", Name: "t", Role: "public", Privilege: "trigger", On: on, Later: true}, []string{`role "public" the right trigger on "t", who is`}, []string{`on table "s"."t" from "public" cascade`}},
		{Stranger{Kind: "right", Name: "t", Role: "r", Privilege: "trigger", Grantor: "g", On: on}, []string{`role "r"`}, []string{`grant option for trigger, references on table "s"."t" from "g" cascade`}},
		{Stranger{Kind: "condition", Name: "n", Role: "public", On: on}, []string{`THE has the trigger "n", whose condition or arguments can run SQL`}, []string{`drop trigger "n" on "s"."t"`, `comment on trigger "n" on "s"."t" is 'idempotency: wanted', and again after each change`}},
		{Stranger{Kind: "table", Role: "r", Login: "l"}, []string{`THE belongs to role "r", to whom the login "l" is a stranger`}, []string{"log in as the role that is to be used"}},
	} {
		found, remedy := row.s.Found("THE"), row.s.Remedy()
		for _, words := range row.found {
			if !strings.Contains(found, words) {
				t.Errorf("%+v: found %q, without %q", row.s, found, words)
			}
		}
		for _, words := range row.remedy {
			if !strings.Contains(remedy, words) {
				t.Errorf("%+v: remedy %q, without %q", row.s, remedy, words)
			}
		}
	}
}

func TestRoleOfTheOptionsIsAChoice(t *testing.T) {
	t.Parallel()
	for options, want := range map[string]bool{
		"-c role=app": true, "-crole=app": true, "--role=app": true, "-c work_mem=1MB -c role=app": true, "-c work_mem=1MB --role=app": true,
		"": false, "-c work_mem=1MB": false, "-c application_name=app--role=x": false, "-c my.role=app": false, "-c application_name=app-c role=x": false, "role=app": false,
	} {
		if got := roleOption.MatchString(options); got != want {
			t.Errorf("%q: %v", options, got)
		}
	}
}
