package main

import (
	"errors"
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
	settings    string                // a statement before the claim, if any
	ctid        bool                  // the claim returns it, too
	form        func(statements) form // nil: the package's
	randomIDs   bool
	partitioned bool
}

// An edit exchanges a text, wherever it stands. With upTo, it is all from the first
// to the second text, both included, where that stands first.
type edit struct{ from, upTo, to string }

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

// statements are the package's with the variant's edits, on the table of a schema.
func (v variant) statements(schema string) (sql statements, err error) {
	o, err := readOwn()
	if err != nil {
		return sql, err
	}
	texts := map[string]*string{}
	var edited []*string
	for _, name := range []string{"claimSQL", "readSQL", "recordSQL"} {
		text, err := o.constant(name)
		if err != nil {
			return sql, err
		}
		texts[name] = &text
		edited = append(edited, &text)
	}
	var edits []edit
	for _, e := range v.calls {
		if e, err = e.expand(o); err != nil {
			return sql, err
		}
		edits = append(edits, e)
	}
	if err := apply(edits, edited); err != nil {
		return sql, err
	}
	settings, err := o.expand(v.settings)
	if err != nil {
		return sql, err
	}
	on, err := o.onTable(schema)
	if err != nil {
		return sql, err
	}
	return statements{
		settings: newStatement(on(settings)),
		claim:    newStatement(on(*texts["claimSQL"])),
		read:     newStatement(on(*texts["readSQL"])),
		record:   newStatement(on(*texts["recordSQL"])),
		ctid:     v.ctid,
	}, nil
}

// expand puts the package's constants in.
func (e edit) expand(o *own) (edit, error) {
	from, err := o.expand(e.from)
	upTo, upToErr := o.expand(e.upTo)
	to, toErr := o.expand(e.to)
	return edit{from, upTo, to}, errors.Join(err, upToErr, toErr)
}

// apply fails for an edit that changes nothing: it would make a variant that is
// none.
func apply(edits []edit, texts []*string) error {
	for _, e := range edits {
		hits := 0
		for _, text := range texts {
			if e.change(text) {
				hits++
			}
		}
		if hits == 0 || e.from+e.upTo == e.to {
			return fmt.Errorf("%q is not in the package's SQL, or stays as it is", e.from)
		}
	}
	return nil
}

// change reports whether the text has what is to be exchanged.
func (e edit) change(text *string) bool {
	before, after, found := strings.Cut(*text, e.from)
	if !found || e.from == "" {
		return false
	}
	if e.upTo == "" {
		*text = strings.ReplaceAll(*text, e.from, e.to)
		return true
	}
	_, after, found = strings.Cut(after, e.upTo)
	if found {
		*text = before + e.to + after
	}
	return found
}
