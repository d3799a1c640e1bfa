package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// A Redis is a redis-server of this run's own.
type Redis struct {
	Socket  string // the path of its unix socket
	Version string
	dir     string
	cmd     *exec.Cmd
	stdin   io.WriteCloser
}

// StartRedis starts a redis-server that keeps what it is told: an append-only
// file, synced once a second, which is Redis' usual advice.
func StartRedis() (*Redis, error) {
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, errors.New("redis-server is not installed, and some peers need it: install it (apt-get install redis-server, or brew install redis), or choose others with -peers")
	}
	dir, err := os.MkdirTemp("", "bench-redis-")
	if err != nil {
		return nil, err
	}
	r := &Redis{Socket: filepath.Join(dir, "redis.sock"), dir: dir}
	version, err := exec.Command(path, "--version").Output()
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	r.Version = firstOf(string(version))
	// The shell ends it when its standard input ends: also when this process is killed.
	r.cmd = exec.Command("sh", "-c", `"$@" >/dev/null & cat >/dev/null; kill $!; wait`, "sh", path,
		"--port", "0", "--unixsocket", r.Socket, "--dir", dir,
		"--save", "", "--appendonly", "yes", "--appendfsync", "everysec")
	r.cmd.Stderr = os.Stderr
	if r.stdin, err = r.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return r, r.await()
}

// firstOf is the version in "Redis server v=7.0.15 sha=... malloc=...".
func firstOf(text string) string {
	for field := range strings.FieldsSeq(text) {
		if v, ok := strings.CutPrefix(field, "v="); ok {
			return v
		}
	}
	return strings.TrimSpace(text)
}

func (r *Redis) await() error {
	var err error
	for range 200 {
		var conn net.Conn
		if conn, err = net.Dial("unix", r.Socket); err == nil {
			return conn.Close()
		}
		time.Sleep(25 * time.Millisecond)
	}
	r.Close()
	return fmt.Errorf("redis-server does not answer: %w", err)
}

// Close ends it and removes its files.
func (r *Redis) Close() {
	r.stdin.Close()
	r.cmd.Wait()
	os.RemoveAll(r.dir)
}
