package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestEverySectionRuns(t *testing.T) {
	for _, s := range sections {
		t.Run(s.name, func(t *testing.T) {
			var out bytes.Buffer
			args := []string{"-brief", "-rows", "2000", "-scopes", "100", "-sections", s.name}
			if err := command(t.Context(), args, &out); err != nil {
				t.Fatal(err)
			}
			t.Log(out.String())
			if rows := strings.Count(out.String(), "\n| "); rows < 5 {
				t.Errorf("%d rows of tables", rows)
			}
		})
	}
}

func TestDocumentIsRenewedBetweenItsMarks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	doc := "a table that is frozen\n<!-- variants: keys -->\nold\n<!-- end of variants -->\n\n### one more\n<!-- variants: statements -->\n<!-- end of variants -->\n"
	if err := os.WriteFile(path, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := renew(path, "keys", "\nnew\n"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if want := strings.Replace(doc, "old", "new", 1); err != nil || string(got) != want {
		t.Errorf("%v, %q, want %q", err, got, want)
	}
	if err := renew(path, "result", "new"); err == nil {
		t.Error("a section without marks is renewed")
	}
}

func TestPageOfVariantsHasThePlaceOfEverySection(t *testing.T) {
	doc, err := os.ReadFile("../../docs/benchmarks/variants.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sections {
		if !strings.Contains(string(doc), "<!-- variants: "+s.name+" -->\n") {
			t.Errorf("docs/benchmarks/variants.md has no tables of %s", s.name)
		}
	}
	// What no section renews is frozen, and says from when it is.
	if marks := strings.Count(string(doc), "<!-- variants: "); marks != len(sections)+1 {
		t.Errorf("docs/benchmarks/variants.md has %d places, and there are %d sections and the conditions", marks, len(sections))
	}
}
