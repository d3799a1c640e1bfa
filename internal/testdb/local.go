package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// A server is a PostgreSQL that was started from binaries on this machine, with
// all its files in one temporary folder.
type server struct {
	bin, dir string
	password string
	log      *os.File
	cmd      *exec.Cmd
	exited   chan struct{} // closed when cmd has ended
}

// startLocal starts PostgreSQL from binaries on this machine.
func startLocal(ctx context.Context, set settings) (*database, error) {
	bin, err := findBinaries(set)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "testdb-")
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "server.log"))
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	s := &server{bin: bin, dir: dir, password: rand.Text(), log: log}
	db, err := s.start(ctx)
	if err != nil {
		output, _ := os.ReadFile(log.Name())
		err = fmt.Errorf("%w%s", err, tail(output))
		s.close()
		return nil, err
	}
	return db, nil
}

func (s *server) start(ctx context.Context) (*database, error) {
	if err := s.initialize(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var err error
	for range 3 { // somebody else may get to the free port first
		var port string
		if port, err = freePort(); err != nil {
			return nil, err
		}
		var v string
		if v, err = s.launch(ctx, port); err == nil {
			return &database{
				URL:   s.url(port),
				About: fmt.Sprintf("PostgreSQL %s from %s", v, s.bin),
				close: s.close,
			}, nil
		}
		s.stop()
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

// initialize makes the data folder. It does not stop half-way: that would leave
// processes that still write to it.
func (s *server) initialize() error {
	passwordFile := filepath.Join(s.dir, "password")
	if err := os.WriteFile(passwordFile, []byte(s.password), 0o600); err != nil {
		return err
	}
	cmd := s.command("initdb", "--pgdata="+s.data(), "--username=postgres",
		"--auth=scram-sha-256", "--pwfile="+passwordFile,
		"--encoding=UTF8", "--locale=C", "--no-sync")
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("initdb: %w", err)
	}
	return nil
}

// launch starts the server and waits until it answers.
func (s *server) launch(ctx context.Context, port string) (version string, err error) {
	cmd := s.command("postgres", "-D", s.data(), "-k", s.dir, "-p", port,
		"-c", "listen_addresses=127.0.0.1", "-c", "max_connections="+maxConnections)
	// An immediate shutdown, should even the keeper be killed.
	dieWithParent(cmd.SysProcAttr, syscall.SIGQUIT)
	if err := cmd.Start(); err != nil {
		return "", err
	}
	s.cmd, s.exited = cmd, make(chan struct{})
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		cmd.Wait()
		cancel(errors.New("postgres ended"))
		close(s.exited)
	}()
	return waitReady(ctx, s.url(port))
}

// command prepares a command of PostgreSQL's, with its output in the log.
func (s *server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = s.log, s.log
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	return cmd
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
	return u.String()
}

// stop ends the server without a last checkpoint: nobody needs the data.
func (s *server) stop() {
	if s.cmd == nil || s.cmd.Process == nil {
		return
	}
	s.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-s.exited:
	case <-time.After(20 * time.Second):
		s.cmd.Process.Kill()
		<-s.exited
	}
	s.cmd = nil
}

func (s *server) close() {
	s.stop()
	s.log.Close()
	if err := os.RemoveAll(s.dir); err != nil {
		fmt.Fprintln(os.Stderr, "testdb:", err)
	}
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}
