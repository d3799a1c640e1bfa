package server_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/pgidem/idempotency/bench/server"
)

func TestRedisAnswersAndLeavesNothingBehind(t *testing.T) {
	redis, err := server.StartRedis()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", redis.Socket)
	if err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte("PING\r\n"))
	answer := make([]byte, 7)
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "+PONG\r\n" {
		t.Errorf("it answered %q, %v", answer, err)
	}
	if redis.Version == "" {
		t.Error("it has no version")
	}
	redis.Close()
	if n, err := conn.Read(answer); err == nil {
		t.Errorf("after Close it still says %q", answer[:n])
	}
	if _, err := os.Stat(filepath.Dir(redis.Socket)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its files are there: %v", err)
	}
}
