package main

import (
	"slices"
	"strings"
	"testing"
)

const someList = `# What this is about.
package internal/keytable
tests internal/keytable migrations

trust.go after func trusts(
# A comment.
- if a ||
- 	b {
+ if a {
= killed by migrations.TestX

trust.go
- defer unlock()
? TestZ
`

func TestListIsWrittenAsItWasRead(t *testing.T) {
	l, err := parseList("keytable", someList)
	if err != nil {
		t.Fatal(err)
	}
	if l.folder != "internal/keytable" || !slices.Equal(l.tests, []string{"internal/keytable", "migrations"}) {
		t.Errorf("%+v", l)
	}
	first, second := l.blocks[1], l.blocks[2]
	if *first.mutation != (mutation{"trust.go", "func trusts(", "if a ||\n\tb {", "if a {", "killed by migrations.TestX", ""}) || first.at != 5 {
		t.Errorf("%+v", first)
	}
	if *second.mutation != (mutation{file: "trust.go", old: "defer unlock()", expected: "TestZ"}) {
		t.Errorf("%+v", second.mutation)
	}
	if l.String() != someList {
		t.Error(l)
	}
}

func TestVerdictIsReplacedAndAllElseStays(t *testing.T) {
	l, err := parseList("keytable", someList)
	if err != nil {
		t.Fatal(err)
	}
	l.blocks[1].record("hangs TestY")
	l.blocks[2].record("killed by TestZ")
	if want := strings.NewReplacer("killed by migrations.TestX", "hangs TestY", "? TestZ", "= killed by TestZ").Replace(someList); l.String() != want {
		t.Error(l)
	}
}

func TestListThatSaysTooLittleIsRefused(t *testing.T) {
	for text, says := range map[string]string{
		"a.go\n- x\n+ y\n":                               "names no package",
		"package p\n\na.go\n+ y\n":                       "needs a file, an old text",
		"package p\n\n- x\n+ y\n":                        "needs a file, an old text",
		"package p\n\na.go\n- x\n+ x\n":                  "a new one that is another",
		"package p\n\na.go\n- x\n+ y\n= fine\n":          `"fine" is no verdict`,
		"package p\n\na.go\nb.go\n- x\n+ y\n":            `"b.go" begins with none of`,
		"# a\npackage p\n\n\na.go\n- x\n+ y\nwhat is it": "5: ",
	} {
		if _, err := parseList("p", text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %s", text, err, says)
		}
	}
}

func TestOldTextIsFoundOnceOrAfterAnotherText(t *testing.T) {
	const source = "func a() { x() }\nfunc b() { x() }\n"
	for _, row := range []struct {
		m    mutation
		want string // empty: does not apply
	}{
		{mutation{old: "a()", new: "c()"}, "func c() { x() }\nfunc b() { x() }\n"},
		{mutation{after: "func b", old: "x()", new: ""}, "func a() { x() }\nfunc b() {  }\n"},
		{mutation{after: "func a", old: "x()", new: "y()"}, "func a() { y() }\nfunc b() { x() }\n"},
		{mutation{old: "x()"}, ""},
		{mutation{old: "z()"}, ""},
		{mutation{after: "func b", old: "a()"}, ""},
		{mutation{after: "func c", old: "x()"}, ""},
	} {
		e, err := row.m.find("f.go", source)
		if (err != nil) != (row.want == "") {
			t.Errorf("%+v: %v", row.m, err)
		}
		if got := string(e.apply([]byte(source))); err == nil && got != row.want {
			t.Errorf("%+v: %q", row.m, got)
		}
	}
}
