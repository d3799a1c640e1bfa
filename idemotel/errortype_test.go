package idemotel

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// ErrNotFound is an outcome of its own and no failure.
func TestEveryErrorOfThePackageHasATypeOfItsOwn(t *testing.T) {
	files, err := filepath.Glob("../*.go")
	if err != nil {
		t.Fatal(err)
	}
	var declared [][]string
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(file, "_test.go") {
			declared = append(declared, regexp.MustCompile(`(?m)^\s+Err(\w+)\s+= errors\.New\("([^"]+)"\)`).FindAllStringSubmatch(string(source), -1)...)
		}
	}
	if len(declared) < 11 {
		t.Fatalf("%d errors were found", len(declared))
	}
	texts := make(map[string]bool)
	for _, known := range errorTypes {
		texts[known.err.Error()] = true
		if got := errorType(fmt.Errorf("wrapped: %w", known.err)).Value.AsString(); got != known.name {
			t.Errorf("%v is %q, want %q", known.err, got, known.name)
		}
	}
	for _, d := range declared {
		if name, text := d[1], d[2]; name != "NotFound" && !texts[text] {
			t.Errorf("Err%s has no type in errortype.go", name)
		} else if strings.TrimSpace(text) == "" {
			t.Errorf("Err%s has no text", name)
		}
	}
}
