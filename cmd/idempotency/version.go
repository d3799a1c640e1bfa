package main

import (
	"cmp"
	"fmt"
	"io"
	"runtime/debug"
)

// printVersion prints the module's version as the go command has put it into the
// program: v0.2.0 for "go install ...@v0.2.0", a version made of the commit for a
// build in a checkout, and (devel) where it knows none.
func printVersion(w io.Writer) error {
	version, toolchain := "", "an unknown Go"
	if info, ok := debug.ReadBuildInfo(); ok {
		version, toolchain = info.Main.Version, info.GoVersion
	}
	_, err := fmt.Fprintf(w, "idempotency %s (%s)\n", cmp.Or(version, "(devel)"), toolchain)
	return err
}
