//go:build !linux

package main

import "syscall"

// dieWithParent is for Linux only. Elsewhere the keeper alone sees to it.
func dieWithParent(*syscall.SysProcAttr, syscall.Signal) {}
