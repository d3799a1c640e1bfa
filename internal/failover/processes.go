package failover

import (
	"bytes"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// processes lists the processes with name in their arguments. PostgreSQL puts
// its cluster_name into the title of each of its processes; they are in no
// common process group.
func processes(name string) (pids []int, err error) {
	out, err := exec.Command("ps", "-A", "-ww", "-o", "pid=,args=").Output()
	if err != nil {
		return nil, fmt.Errorf("ps: %w", err)
	}
	for line := range bytes.Lines(out) {
		number, args, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		if pid, err := strconv.Atoi(number); err == nil && strings.Contains(args, name) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// freeze stops all processes with name in their arguments, also those that are
// being started meanwhile.
func freeze(name string) (frozen []int, err error) {
	seen := make(map[int]bool)
	for calm := 0; calm < 2; calm++ { // the last one may just have forked
		pids, err := processes(name)
		if err != nil {
			return nil, err
		}
		for _, pid := range pids {
			if !seen[pid] {
				seen[pid] = true
				calm = 0
				frozen = append(frozen, pid)
				syscall.Kill(pid, syscall.SIGSTOP)
			}
		}
	}
	return frozen, nil
}

// thaw lets go on what freeze has stopped.
func thaw(name string) error {
	pids, err := processes(name)
	signal(pids, syscall.SIGCONT)
	return err
}

// kill ends all processes with name in their arguments as a power cut would:
// none of them gets to see another one's end. PostgreSQL's processes notice
// when the first of them is gone, and one that waits for the standby then gives
// up waiting, which makes its commit visible to the others.
func kill(name string) error {
	pids, err := freeze(name)
	for end := time.Now().Add(limit); err == nil && len(pids) > 0; pids, err = processes(name) {
		if time.Now().After(end) {
			return fmt.Errorf("processes %v do not die", pids)
		}
		signal(pids, syscall.SIGKILL)
	}
	return err
}

func signal(pids []int, sig syscall.Signal) {
	for _, pid := range pids {
		syscall.Kill(pid, sig)
	}
}
