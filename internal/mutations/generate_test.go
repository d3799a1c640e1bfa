package main

import (
	"go/format"
	"slices"
	"strings"
	"testing"
)

const someCode = `package p

func f(a, b int) (int, error) {
	defer g()
	if a < b && a != 0 {
		return 7, errors.New("a")
	}
	switch a {
	case 1, 2:
		b = 3
	case 4:
		break
	}
	return func() int { return a }(), nil
}

const sql = ` + "`select\n\twhere true\n\tand a = 1\n`" + `
`

// breakage returns the line of the code that an edit has changed, as it is afterwards.
func breakage(t *testing.T, e edit) string {
	t.Helper()
	broken := string(e.apply([]byte(someCode)))
	if _, err := format.Source([]byte(broken)); err != nil {
		t.Errorf("%s: %v", e.says, err)
	}
	n := strings.Count(someCode[:e.start], "\n")
	return strings.TrimSpace(strings.Split(broken, "\n")[n])
}

func TestObviousBreakagesOfALineAreMade(t *testing.T) {
	for line, want := range map[int][]string{
		3:  nil,
		4:  {""}, // the defer
		5:  {"if !(a < b && a != 0) {", "if a <= b && a != 0 {", "if a < b || a != 0 {", "if a < b && a == 0 {", "if a < b && a != 1 {"},
		6:  {`return 8, errors.New("a")`, `return 6, errors.New("a")`, "return 7, nil"},
		9:  {"case 2:", "case 1:", "case 2, 2:", "case 0, 2:", "case 1, 3:", "case 1, 1:"},
		10: {"", "b = 4", "b = 2"},
		11: {"", "case 5:", "case 3:"},
		12: {""},
		14: nil, // nil is returned already, and the function inside returns no error
		17: {""},
	} {
		edits, err := generate("p.go", []byte(someCode), map[int]bool{line: true})
		if err != nil {
			t.Fatal(err)
		}
		if line == 17 { // in a text that begins before it
			continue
		}
		var got []string
		for _, e := range edits {
			got = append(got, breakage(t, e))
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("line %d: %q, want %q", line, got, want)
		}
	}
}

func TestLineOfAStatementThatBeginsWithAndIsTakenOut(t *testing.T) {
	line := 1 + strings.Count(someCode[:strings.Index(someCode, "\tand a")], "\n")
	edits, err := generate("p.go", []byte(someCode), map[int]bool{line: true})
	if err != nil || len(edits) != 1 {
		t.Fatal(edits, err)
	}
	if got := string(edits[0].apply([]byte(someCode))); got != strings.Replace(someCode, "\tand a = 1", "", 1) {
		t.Error(got)
	}
}

func TestLinesThatADiffAddsAreFound(t *testing.T) {
	got := added([]byte(`diff --git a/x.go b/x.go
--- a/x.go
+++ b/x.go
@@ -1,0 +2,2 @@ package x
+a
+b
@@ -9,2 +10,0 @@
-c
@@ -20 +21 @@
-d
+e
--- a/y/z.go
+++ b/y/z.go
@@ -0,0 +1 @@
+f
--- a/gone.go
+++ /dev/null
@@ -1,2 +0,0 @@
-g
`))
	if len(got) != 2 || len(got["x.go"]) != 3 || !got["x.go"][2] || !got["x.go"][3] || !got["x.go"][21] || !got["y/z.go"][1] {
		t.Error(got)
	}
}
