//go:build !linux && !darwin && !freebsd

package main

import "os"

// windowWidth is not known here: COLUMNS may tell it.
func windowWidth(f *os.File) (width int, terminal bool) { return 0, isTerminal(f) }
