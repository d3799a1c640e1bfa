package main

import (
	"slices"
	"testing"
)

func TestNewestMajorFirst(t *testing.T) {
	dirs := []string{"/usr/lib/postgresql/9/bin", "/usr/lib/postgresql/18/bin", "/usr/lib/postgresql/17/bin"}
	slices.SortFunc(dirs, newestFirst)
	if dirs[0] != "/usr/lib/postgresql/18/bin" || dirs[2] != "/usr/lib/postgresql/9/bin" {
		t.Error(dirs)
	}
}
