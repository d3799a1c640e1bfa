package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/pgidem/idempotency/bench/measure"
)

// cpu is how long the processes of the site's idle connections have been on a core
// so far. It is known of processes of this machine, where that is Linux.
func (s *site) cpu(ctx context.Context) (sum time.Duration, known bool) {
	known = true
	for _, conn := range s.pool.AcquireAllIdle(ctx) {
		took, ok := processTime(conn.Conn().PgConn().PID())
		conn.Release()
		sum += took
		known = known && ok
	}
	return sum, known
}

func processTime(pid uint32) (took time.Duration, known bool) {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil || strings.TrimSpace(string(name)) != "postgres" { // of another machine, or a container
		return 0, false
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	if err != nil {
		return 0, false
	}
	field, _, _ := strings.Cut(string(text), " ")
	ns, err := strconv.ParseInt(field, 10, 64)
	return time.Duration(ns), err == nil
}

// cpuPerOp is in µs, of the middle turn.
func (l *lane) cpuPerOp() string {
	if len(l.cpus) == 0 {
		return "not known"
	}
	return fmt.Sprintf("%.0f", float64(measure.Median(l.cpus))/float64(time.Microsecond))
}
