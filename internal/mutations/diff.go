package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// changed is the line of a diff that says which lines of the new file follow.
var changed = regexp.MustCompile(`^@@ -\S+ \+(\d+)(?:,(\d+))? @@`)

// added returns the lines that a diff without context has added, by file.
func added(diff []byte) map[string]map[int]bool {
	files := make(map[string]map[int]bool)
	file := ""
	for line := range bytes.Lines(diff) {
		text := strings.TrimRight(string(line), "\n")
		if name, ok := strings.CutPrefix(text, "+++ b/"); ok {
			file = name
		}
		found := changed.FindStringSubmatch(text)
		if found == nil {
			continue
		}
		first, _ := strconv.Atoi(found[1])
		n := 1
		if found[2] != "" {
			n, _ = strconv.Atoi(found[2])
		}
		for i := range n {
			if files[file] == nil {
				files[file] = make(map[int]bool)
			}
			files[file][first+i] = true
		}
	}
	return files
}

// breakages are the edits of what has changed since base, by the folder of their package.
func breakages(ctx context.Context, top, base string) (map[string][]edit, error) {
	cmd := exec.CommandContext(ctx, "git", "diff", "--unified=0", "--no-color", "--no-ext-diff", "--src-prefix=a/", "--dst-prefix=b/", "--relative", base, "--", "*.go", ":!*_test.go", ":!*.pb.go")
	cmd.Dir = top
	diff, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("git diff %s: %w", base, err)
	}
	folders := make(map[string][]edit)
	for file, lines := range added(diff) {
		source, err := os.ReadFile(filepath.Join(top, file))
		if err != nil {
			return nil, err
		}
		edits, err := generate(file, source, lines)
		if err != nil {
			return nil, err
		}
		folders[path.Dir(file)] = append(folders[path.Dir(file)], edits...)
	}
	return folders, nil
}
