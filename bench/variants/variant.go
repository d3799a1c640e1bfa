package main

import (
	"fmt"
	"io/fs"
	"strings"

	"github.com/pgidem/idempotency/migrations"
)

// A variant is the package's table and statements with something exchanged.
type variant struct {
	name        string
	table       []edit                // of the migrations
	calls       []edit                // of the statements
	extra       []string              // statements after the migrations
	form        func(statements) form // nil: the package's
	randomIDs   bool
	partitioned bool
}

// An edit exchanges a text, wherever it stands.
type edit struct{ from, to string }

// ours is the package as it is.
func ours(name string) variant { return variant{name: name} }

// ddl is the variant's migrations.
func (v variant) ddl() ([]string, error) {
	files, err := fs.Glob(migrations.FS, "*.up.sql")
	if err != nil {
		return nil, err
	}
	var texts []*string
	for _, name := range files {
		text, err := fs.ReadFile(migrations.FS, name)
		if err != nil {
			return nil, err
		}
		s := string(text)
		texts = append(texts, &s)
	}
	if err := apply(v.table, texts); err != nil {
		return nil, err
	}
	var all []string
	for _, s := range texts {
		all = append(all, *s)
	}
	return append(all, v.extra...), nil
}

// statements are the variant's.
func (v variant) statements() (statements, error) {
	sql := ownStatements
	return sql, apply(v.calls, []*string{&sql.settings, &sql.claim, &sql.read, &sql.record})
}

// apply fails for an edit that changes nothing: it would make a variant that is
// none.
func apply(edits []edit, texts []*string) error {
	for _, e := range edits {
		hits := 0
		for _, text := range texts {
			hits += strings.Count(*text, e.from)
			*text = strings.ReplaceAll(*text, e.from, e.to)
		}
		if hits == 0 {
			return fmt.Errorf("%q is not in the package's SQL", e.from)
		}
	}
	return nil
}
