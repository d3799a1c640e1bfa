package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestEveryProblemIsExplainedInTheReadme(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("problem.go")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`problemTypes \+ "([\w-]+)"`).FindAllStringSubmatch(string(source), -1)
	if len(names) < 7 {
		t.Errorf("only %d problems: is the pattern right?", len(names))
	}
	for _, m := range names {
		if !strings.Contains(readme(t), "\n### "+m[1]+"\n") {
			t.Errorf("the problem %s is not explained", m[1])
		}
	}
}

func TestLinksOfTheReadmeLeadSomewhere(t *testing.T) {
	t.Parallel()
	for _, m := range regexp.MustCompile(`\]\(([^)#:]+)`).FindAllStringSubmatch(readme(t), -1) {
		if _, err := os.Stat(filepath.FromSlash(m[1])); err != nil {
			t.Error(err)
		}
	}
}
