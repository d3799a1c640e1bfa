package main

import (
	"fmt"
	"os"
	"strings"
)

// renew exchanges what a document has between the marks of a section.
func renew(path, section, text string) error {
	doc, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	begin, end := "<!-- variants: "+section+" -->\n", "<!-- end of variants -->"
	before, rest, found := strings.Cut(string(doc), begin)
	if !found {
		return fmt.Errorf("%s has no line %q", path, strings.TrimSpace(begin))
	}
	_, after, found := strings.Cut(rest, end)
	if !found {
		return fmt.Errorf("%s has no line %q behind that of %s", path, end, section)
	}
	return os.WriteFile(path, []byte(before+begin+strings.TrimSpace(text)+"\n"+end+after), 0o644)
}
