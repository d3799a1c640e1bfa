package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// cpu is how long the processes of the site's idle connections have been on a core
// so far, as Linux tells of those on this machine.
func (s *site) cpu(ctx context.Context) (sum time.Duration, known bool) {
	for _, conn := range s.pool.AcquireAllIdle(ctx) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", conn.Conn().PgConn().PID()))
		conn.Release()
		field, _, _ := strings.Cut(string(text), " ")
		ns, parseErr := strconv.ParseInt(field, 10, 64)
		if err != nil || parseErr != nil {
			return 0, false
		}
		sum += time.Duration(ns)
	}
	return sum, true
}

// cpuPerOp is in µs, of the middle turn.
func (l *lane) cpuPerOp() string {
	if len(l.cpus) == 0 {
		return "not known"
	}
	sorted := slices.Sorted(slices.Values(l.cpus))
	return fmt.Sprintf("%.0f", float64(sorted[len(sorted)/2])/float64(time.Microsecond))
}
