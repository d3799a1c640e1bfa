package idemweb_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestCodeOfThePageIsTheExampleThatRuns(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/web.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	if words := len(strings.Fields(string(page))); words > 520 {
		t.Errorf("%d words", words)
	}
	oneLine := func(text string) string { return strings.Join(strings.Fields(text), " ") }
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	if len(blocks) != 2 {
		t.Errorf("%d blocks of code", len(blocks))
	}
	for _, block := range blocks {
		if !strings.Contains(oneLine(string(example)), oneLine(block[1])) {
			t.Errorf("it is not in the example: %s", block[1])
		}
	}
}
