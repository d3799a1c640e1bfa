package main

import "syscall"

// dieWithParent has the process sent sig when the thread that starts it ends.
func dieWithParent(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }
