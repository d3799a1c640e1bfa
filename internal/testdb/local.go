package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A server is a PostgreSQL that was started from binaries on this machine.
type server struct {
	*daemon
	bin      string
	password string
	socket   bool
}

// startLocal starts PostgreSQL from binaries on this machine.
func startLocal(ctx context.Context, set settings) (*database, error) {
	bin, err := findBinaries(set)
	if err != nil {
		return nil, err
	}
	d, err := newDaemon()
	if err != nil {
		return nil, err
	}
	s := &server{daemon: d, bin: bin, password: rand.Text(), socket: set.Socket}
	db, err := s.open(ctx)
	if err != nil {
		return nil, d.fail(err)
	}
	return db, nil
}

func (s *server) open(ctx context.Context) (*database, error) {
	if err := s.initialize(); err != nil {
		return nil, err
	}
	port, version, err := s.start(ctx, s.postgres, s.url)
	if err != nil {
		return nil, err
	}
	return &database{URL: s.url(port), Version: version, Where: "from " + s.bin, close: s.close}, nil
}

// initialize makes the data folder, with the first locale that works. It does not stop
// half-way: that would leave processes that still write to it.
func (s *server) initialize() error {
	passwordFile := filepath.Join(s.dir, "password")
	if err := os.WriteFile(passwordFile, []byte(s.password), 0o600); err != nil {
		return err
	}
	var err error
	for _, locale := range locales(serverMajor(s.bin)) {
		args := []string{"--pgdata=" + s.data(), "--username=postgres", "--auth=scram-sha-256", "--pwfile=" + passwordFile,
			"--encoding=UTF8", "--no-sync"}
		cmd := s.command(filepath.Join(s.bin, "initdb"), append(args, locale...)...)
		if err = cmd.Run(); err == nil {
			return nil
		}
	}
	return fmt.Errorf("initdb: %w", err)
}

// locales are arguments of initdb, the best first: in the databases of most users text does
// not sort as bytes, and what relies on that has to fail a test. ICU has its locales with
// it, where PostgreSQL was built with ICU; a system may have no other locale than C.
func locales(major int) (all [][]string) {
	if major >= 15 {
		all = append(all, []string{"--locale=C", "--locale-provider=icu", "--icu-locale=en"})
	}
	installed, _ := exec.Command("locale", "-a").Output()
	for name := range strings.Lines(string(installed)) {
		if name = strings.TrimSpace(name); strings.HasSuffix(strings.ToLower(name), ".utf8") && !strings.HasPrefix(name, "C.") {
			all = append(all, []string{"--locale=" + name})
			break
		}
	}
	return append(all, []string{"--locale=C"})
}

func (s *server) postgres(port string) (*exec.Cmd, error) {
	return s.command(filepath.Join(s.bin, "postgres"), "-D", s.data(), "-k", s.dir, "-p", port,
		"-c", "listen_addresses=127.0.0.1", "-c", "max_connections="+maxConnections), nil
}

func (s *server) data() string { return filepath.Join(s.dir, "data") }

func (s *server) url(port string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword("postgres", s.password),
		Host:     net.JoinHostPort("127.0.0.1", port),
		Path:     "/postgres",
		RawQuery: "sslmode=disable",
	}
	if s.socket {
		u.Host = ""
		u.RawQuery = url.Values{"host": {s.dir}, "port": {port}}.Encode()
	}
	return u.String()
}
