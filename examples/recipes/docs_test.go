package recipes

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestEveryCodeBlockOfThePageStandsInARecipe(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/recipes.md")
	if err != nil {
		t.Fatal(err)
	}
	if words := len(strings.Fields(string(page))); words > 1100 {
		t.Errorf("%d words", words)
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var recipes []string
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		recipes = append(recipes, unspaced(string(source)))
	}
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	if len(blocks) < 5 {
		t.Errorf("only %d blocks: is the pattern right?", len(blocks))
	}
	for _, block := range blocks {
		found := false
		for _, recipe := range recipes {
			found = found || strings.Contains(recipe, unspaced(block[1]))
		}
		if !found {
			t.Errorf("in no recipe:\n%s", block[1])
		}
	}
}

func TestTableOfThePageSaysWhatSettleDoes(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/recipes.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range verdicts {
		row := regexp.MustCompile("(?m)^\\| [^|]*`" + v.name + "`[^|]*\\| ([^|]*) \\|").FindSubmatch(page)
		want := map[verdict]string{retry: "put back, however often", deadLetter: "dead letter"}[v.later]
		switch {
		case v.name == "ErrNotFound": // Do does not return it
		case row == nil:
			t.Errorf("the page does not say what to do for %s", v.name)
		case string(row[1]) != want:
			t.Errorf("%s: the page says %q, and settle %q", v.name, row[1], want)
		}
	}
}

func unspaced(text string) string { return strings.Join(strings.Fields(text), " ") }
