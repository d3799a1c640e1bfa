package run

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/pgidem/idempotency/bench/results"
	"github.com/pgidem/idempotency/bench/server"
)

// serverSettings are those that the figures depend on most.
var serverSettings = []string{
	"fsync", "synchronous_commit", "wal_sync_method", "full_page_writes", "wal_level",
	"shared_buffers", "max_wal_size", "max_connections", "default_transaction_isolation", "autovacuum",
}

func (b *bench) conditions(ctx context.Context) error {
	c, err := Conditions(ctx, b.server)
	if err != nil {
		return err
	}
	c.Delay, c.Pool, c.Slice, c.Rounds = b.Delay, int32(b.Pool), b.Slice, b.Rounds
	c.Window, c.Work = b.Window, b.Work
	if b.redis != nil {
		c.Tools["redis-server"] = b.redis.Version + ", appendonly, appendfsync everysec"
	}
	b.run.Conditions = c
	return nil
}

// Conditions are those of this machine and this server.
func Conditions(ctx context.Context, s *server.Server) (results.Conditions, error) {
	c := results.Conditions{
		Go: runtime.Version(), PGX: moduleVersion("github.com/jackc/pgx/v5"),
		System: runtime.GOOS + "/" + runtime.GOARCH, CPU: cpu(), Cores: runtime.NumCPU(),
		LoadBefore: loadAverage(), Socket: "a unix socket", Settings: map[string]string{}, Tools: map[string]string{},
	}
	if s.Network != "unix" {
		c.Socket = "TCP, because the server's unix socket cannot be reached"
	}
	rows, err := s.Admin.Query(ctx, "select name, current_setting(name) from unnest($1::text[]) as name", append(serverSettings, "server_version"))
	if err != nil {
		return c, err
	}
	defer rows.Close()
	for rows.Next() {
		var name, value string
		if err := rows.Scan(&name, &value); err != nil {
			return c, err
		}
		c.Settings[name] = value
	}
	c.PostgreSQL = c.Settings["server_version"]
	delete(c.Settings, "server_version")
	return c, rows.Err()
}

func moduleVersion(path string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, m := range info.Deps {
		if m.Path == path {
			return m.Version
		}
	}
	return "unknown"
}

func cpu() string {
	if file, err := os.Open("/proc/cpuinfo"); err == nil {
		defer file.Close()
		for lines := bufio.NewScanner(file); lines.Scan(); {
			if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
				return strings.TrimSpace(value)
			}
		}
	}
	if out, err := exec.Command("sysctl", "-n", "machdep.cpu.brand_string").Output(); err == nil {
		return strings.TrimSpace(string(out))
	}
	return "unknown"
}

// loadAverage is how many processes wanted to run in the last minute.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	one, _, _ := strings.Cut(string(text), " ")
	return one
}
