package main

import (
	"fmt"
	"os/user"
	"strconv"
	"syscall"
)

// An account is a user to run as.
type account struct {
	name       string
	credential *syscall.Credential
}

// ordinaryUser returns the user that runs PostgreSQL when we are root.
func ordinaryUser() (account, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		// macOS's nobody is -2.
		uid, errUID := strconv.ParseInt(u.Uid, 10, 64)
		gid, errGID := strconv.ParseInt(u.Gid, 10, 64)
		if errUID == nil && errGID == nil && uid != 0 {
			return account{name, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
		}
	}
	return account{}, fmt.Errorf("PostgreSQL refuses to run as root, and there is no user postgres or nobody to run it as")
}
